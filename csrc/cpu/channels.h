// Per-channel epilogue parameters in the compute type.
#pragma once

#include <vector>

#include "../arguments.h"
#include "vector.h"

namespace atrous {

// Reads `count` values of a vector; a vector of one value is broadcast.
template <class T>
void read(const Tensor& vector, T* values, int64_t count) {
  const int64_t stride = vector.size(0) == 1 ? 0 : vector.stride(0);
  with_storage(vector, [&](auto* data) {
    for (int64_t i = 0; i < count; ++i) values[i] = T(widen(data[i * stride]));
  });
}

template <class T>
struct Channels {
  // At least one and at least `padded` elements each: kernels read the padding but do not use it.
  std::vector<T> scale, shift, slope;
  Draw<T> draw{};

  // bias: of a convolution whose accumulators do not include it yet; it is folded into the shift.
  Channels(const Epilogue& arguments, int64_t channels, const OptionalTensor& bias = {}, int64_t padded = 1)
      : scale(std::max(channels, padded), identity<T>().scale),
        shift(scale.size(), identity<T>().shift),
        slope(scale.size(), T(arguments.slope_value)) {
    if (arguments.mean)
      read_batch_norm(arguments, channels);
    else if (arguments.beta)
      read(*arguments.beta, shift.data(), channels);
    if (bias) {
      std::vector<T> values(channels);
      read(*bias, values.data(), channels);
      for (int64_t i = 0; i < channels; ++i) shift[i] = std::fma(values[i], scale[i], shift[i]);
    }
    if (arguments.kind() == Slope::tensor) read(*arguments.slope, slope.data(), channels);
    if (arguments.draws()) {
      const int64_t *seed = static_cast<const int64_t*>(arguments.seed->const_data_ptr()),
                    step = arguments.seed->stride(0);
      draw = {uint64_t(seed[0]),        uint64_t(seed[step]),     T(arguments.slope_value),
              T(arguments.slope_upper), float(arguments.dropout), T(1 / (1 - arguments.dropout))};
    }
  }

 private:
  void read_batch_norm(const Epilogue& arguments, int64_t channels) {
    std::vector<T> mean(channels), var(channels), gamma(channels, T(1)), beta(channels, T(0));
    read(*arguments.mean, mean.data(), channels);
    read(*arguments.var, var.data(), channels);
    if (arguments.gamma) read(*arguments.gamma, gamma.data(), channels);
    if (arguments.beta) read(*arguments.beta, beta.data(), channels);
    for (int64_t i = 0; i < channels; ++i) {
      const Affine<T> channel = affine(mean[i], var[i], gamma[i], beta[i], T(arguments.eps));
      scale[i] = channel.scale;
      shift[i] = channel.shift;
    }
  }
};

}  // namespace atrous
