// Per-channel epilogue parameters in the compute type.
#pragma once

#include <vector>

#include "../kernel_args.h"
#include "vector.h"

namespace atrous {

template <class T>
struct Channels {
  Draw<T> draw;
  T *scale, *shift, *slope;

  // Each has at least one and at least `padded` elements: kernels read the padding but do not use it.
  // bias: of a convolution whose accumulators do not include it yet; it is folded into the shift.
  Channels(const Epilogue& arguments, int64_t channels, const OptionalTensor& bias = {}, int64_t padded = 1) {
    const ChannelVectors vectors = vectors_of(arguments, bias);
    const int64_t size = std::max(channels, padded);
    values_.resize(3 * size);
    scale = values_.data(), shift = scale + size, slope = shift + size;
    for (int64_t i = 0; i < channels; ++i) {
      const Channel<T> channel = vectors.at<T>(i);
      scale[i] = channel.affine.scale;
      shift[i] = channel.affine.shift;
      slope[i] = channel.slope;
    }
    draw = vectors.draw<T>();
  }
  Channels(const Channels&) = delete;  // the pointers would be the other's

 private:
  std::vector<T> values_;
};

}  // namespace atrous
