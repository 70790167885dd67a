// Per-channel epilogue parameters in the compute type.
#pragma once

#include <vector>

#include "../kernel_args.h"
#include "../layout.h"
#include "vector.h"

namespace atrous {

// Fills values[own .. channels) with copies of the first `own`.
template <class T>
void repeat(T* values, int64_t own, int64_t channels) {
  for (int64_t i = own; i < channels; ++i) values[i] = values[i - own];
}

// The rows that an elementwise loop takes: long ones, but not if it draws, which needs index().
inline Layout loop_rows(const Epilogue& arguments, const Layout& layout) {
  return arguments.draws() ? layout : layout.with_long_rows();
}

template <class T>
struct Channels {
  Draw<T> draw;
  T *scale, *shift, *slope;

  // Each has at least one and at least `padded` elements: kernels read the padding but do not use it.
  // bias: of a convolution whose accumulators do not include it yet; it is folded into the shift.
  // repeats: see Layout.
  Channels(const Epilogue& arguments, int64_t channels, const OptionalTensor& bias = {}, int64_t padded = 1,
           int64_t repeats = 1) {
    const ChannelVectors vectors = vectors_of(arguments, bias);
    const int64_t size = std::max(channels, padded);
    values_.resize(3 * size);
    scale = values_.data(), shift = scale + size, slope = shift + size;
    const int64_t own = channels / repeats;
    for (int64_t i = 0; i < own; ++i) {
      const Channel<T> channel = vectors.at<T>(i);
      scale[i] = channel.affine.scale;
      shift[i] = channel.affine.shift;
      slope[i] = channel.slope;
    }
    for (T* values : {scale, shift, slope}) repeat(values, own, channels);
    draw = vectors.draw<T>();
  }
  Channels(const Epilogue& arguments, const Layout& layout)
      : Channels(arguments, layout.channels, {}, 1, layout.repeats) {}
  Channels(const Channels&) = delete;  // the pointers would be the other's

 private:
  std::vector<T> values_;
};

}  // namespace atrous
