// The values of a channel as kernels read them: straight from the BatchNorm's own vectors, so that nothing is launched
// before them.
#pragma once

#include "../arguments.h"

namespace atrous::cuda {

// One value a channel, of any floating type and stride; or none.
struct Vector {
  const void* data;
  int64_t stride;
  ScalarType type;

  Vector(const OptionalTensor& tensor) : data(nullptr), stride(0), type(ScalarType::Float) {
    if (!tensor) return;
    data = tensor->const_data_ptr();
    stride = tensor->size(0) == 1 ? 0 : tensor->stride(0);
    type = tensor->scalar_type();
  }

  template <class T>
  __device__ T read(int64_t channel, T absent) const {
    if (!data) return absent;
    const int64_t at = channel * stride;
    switch (type) {
      case ScalarType::Float:
        return T(static_cast<const float*>(data)[at]);
      case ScalarType::Double:
        return T(static_cast<const double*>(data)[at]);
      case ScalarType::Half:
        return T(widen(static_cast<const Half*>(data)[at]));
      default:
        return T(widen(static_cast<const BFloat16*>(data)[at]));
    }
  }
};

template <class T>
struct Channel {
  Affine<T> affine;
  T slope;
};

// The arguments of an epilogue, but for the residual.
struct Vectors {
  Vector mean, var, gamma, beta, slope;
  double eps, slope_value, slope_upper, dropout;
  const int64_t* seed;
  int64_t seed_stride;
  bool draws_slope;

  explicit Vectors(const Arguments& arguments)
      : mean(arguments.mean),
        var(arguments.var),
        gamma(arguments.gamma),
        beta(arguments.beta),
        slope(arguments.kind() == Slope::tensor ? arguments.slope : OptionalTensor()),
        eps(arguments.eps),
        slope_value(arguments.slope_value),
        slope_upper(arguments.slope_upper),
        dropout(arguments.dropout),
        seed(nullptr),
        seed_stride(0),
        draws_slope(arguments.kind() == Slope::random) {
    if (!draws_slope && dropout == 0) return;
    seed = static_cast<const int64_t*>(arguments.seed->const_data_ptr());
    seed_stride = arguments.seed->stride(0);
  }

  template <class T>
  __device__ Channel<T> at(int64_t channel) const {
    Channel<T> values{identity<T>(), slope.read(channel, T(slope_value))};
    if (mean.data)
      values.affine = affine(mean.read(channel, T(0)), var.read(channel, T(1)), gamma.read(channel, T(1)),
                             beta.read(channel, T(0)), T(eps));
    else
      values.affine.shift = beta.read(channel, values.affine.shift);
    return values;
  }
  // 1 / sqrt(var + eps)
  template <class T>
  __device__ T factor(int64_t channel) const {
    return T(1) / std::sqrt(var.read(channel, T(1)) + T(eps));
  }
  template <class T>
  __device__ Draw<T> draw() const {
    if (!seed) return {};
    return {uint64_t(seed[0]), uint64_t(seed[seed_stride]), T(slope_value), T(slope_upper),
            float(dropout),    T(1 / (1 - dropout))};
  }
};

}  // namespace atrous::cuda
