// Per-element device functions: random draws, and the gradient of the epilogue.
#pragma once

#include "../channel_vectors.h"

namespace atrous::cuda {

// Draws for element `index`: replaces `slope` if slopes are random, and returns dropout's factor. One variant serves
// all kinds but ReLU, since the comparison costs nothing beside the generator.
template <Slope SLOPE, bool DROPOUT, class T>
__device__ T draw_slope_and_keep(const Draw<T>& draw, bool draws_slope, uint64_t index, T& slope) {
  if constexpr (!DROPOUT) return T(1);
  const Uniforms uniforms = draw.at(index);
  if (SLOPE == Slope::random && draws_slope) slope = draw.slope(uniforms);
  return draw.keep(uniforms);
}

template <class T>
struct Gradient {
  T du, dslope;  // dslope: the element's contribution
};

// draws_slope: as for draw_slope_and_keep; the gradient at NaN depends on it.
template <class T, Slope SLOPE, Residual RESIDUAL, bool DROPOUT>
__device__ Gradient<T> gradient(T dy, T z, Channel<T> channel, bool draws_slope, T residual, T keep) {
  if (DROPOUT) dy = multiply(dy, keep);
  const T u = before_activation<T, RESIDUAL>(z, channel.affine, residual);
  const T factor = SLOPE == Slope::random && !draws_slope ? derivative<T, Slope::tensor>(u, channel.slope)
                                                          : derivative<T, SLOPE>(u, channel.slope);
  return {multiply(dy, factor), slope_gradient(dy, u)};
}

}  // namespace atrous::cuda
