// Per-channel epilogue parameters, which kernels read directly from the BatchNorm's vectors, so that no other kernel
// has to be launched first. Independent of torch tensors, for CPU and GPU; kernel_args.h fills these structs.
#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include "epilogue.h"
#include "half_types.h"

namespace atrous {

using torch::headeronly::ScalarType;

// One value per channel, of any floating type; a stride of 0 broadcasts one value. data is null if the vector is
// absent.
struct ChannelVector {
  const void* data;
  int64_t stride;
  ScalarType type;

  template <class T>
  ATROUS_HD T read(int64_t channel, T absent) const {
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

// The epilogue's arguments without the residual, and the bias of the convolution before it. The bias is folded into the
// shift: (z + bias) * scale + shift = z * scale + (bias * scale + shift).
struct ChannelVectors {
  ChannelVector mean, var, gamma, beta, bias, slope;
  double eps, slope_value, slope_upper, dropout;
  const int64_t* seed;
  int64_t seed_stride;
  bool draws_slope;

  template <class T>
  ATROUS_HD Channel<T> at(int64_t channel) const {
    Affine<T> values = identity<T>();
    if (mean.data)
      values = affine(mean.read(channel, T(0)), var.read(channel, T(1)), gamma.read(channel, T(1)),
                      beta.read(channel, T(0)), T(eps));
    else
      values.shift = beta.read(channel, values.shift);
    if (bias.data) values.shift = std::fma(bias.read(channel, T(0)), values.scale, values.shift);
    return {values, slope.read(channel, T(slope_value))};
  }
  // 1 / sqrt(var + eps)
  template <class T>
  ATROUS_HD T factor(int64_t channel) const {
    return T(1) / std::sqrt(var.read(channel, T(1)) + T(eps));
  }
  template <class T>
  ATROUS_HD Draw<T> draw() const {
    if (!seed) return {};
    return {uint64_t(seed[0]), uint64_t(seed[seed_stride]), T(slope_value), T(slope_upper),
            float(dropout),    T(1 / (1 - dropout))};
  }
};

}  // namespace atrous
