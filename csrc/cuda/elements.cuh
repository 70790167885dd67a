// An element's part in the epilogue and in its gradient, with what is drawn for it.
#pragma once

#include "channels.cuh"

namespace atrous::cuda {

// What is drawn for element `index`: in place of the channel's slope, and what dropout multiplies by. One variant draws
// for all kinds but ReLU: next to the generator a comparison costs nothing.
template <Slope SLOPE, bool DROPOUT, class T>
__device__ T drawn(const Draw<T>& draw, bool draws_slope, uint64_t index, T& slope) {
  if constexpr (!DROPOUT) return T(1);
  const Uniforms uniforms = draw.at(index);
  if (SLOPE == Slope::random && draws_slope) slope = draw.slope(uniforms);
  return draw.keep(uniforms);
}

template <class T>
struct Gradient {
  T du, of_slope;  // what it adds to its slope's gradient
};

template <class T, Slope SLOPE, Residual RESIDUAL, bool DROPOUT>
__device__ Gradient<T> gradient(T dy, T z, Channel<T> channel, T residual, T keep) {
  if (DROPOUT) dy = multiply(dy, keep);
  const T u = before_activation<T, RESIDUAL>(z, channel.affine, residual);
  return {multiply(dy, derivative<T, SLOPE>(u, channel.slope)), slope_gradient(dy, u)};
}

}  // namespace atrous::cuda
