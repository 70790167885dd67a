// An element's part in the epilogue and in its gradient, with what is drawn for it; and the one switch over variants.
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

template <Slope SLOPE, bool DROPOUT>
struct Kind {
  static constexpr Slope slope = SLOPE;
  static constexpr bool dropout = DROPOUT;
};

// run(Kind), one of four.
template <class Run>
void with_kind(const Arguments& arguments, Run&& run) {
  const Slope slope = arguments.kind();
  const bool dropout = arguments.dropout > 0;
  if (slope == Slope::relu)
    dropout ? run(Kind<Slope::relu, true>{}) : run(Kind<Slope::relu, false>{});
  else if (dropout || slope == Slope::random)
    run(Kind<Slope::random, true>{});
  else
    run(Kind<Slope::tensor, false>{});
}

// run(place), a compile-time constant.
template <class Run>
void with_place(Residual place, Run&& run) {
  if (place == Residual::none) return run(std::integral_constant<Residual, Residual::none>{});
  if (place == Residual::before) return run(std::integral_constant<Residual, Residual::before>{});
  return run(std::integral_constant<Residual, Residual::after>{});
}

// The same for a gradient, in which a residual after the activation has no part.
template <class Run>
void with_place_before(bool before, Run&& run) {
  if (before) return run(std::integral_constant<Residual, Residual::before>{});
  return run(std::integral_constant<Residual, Residual::none>{});
}

}  // namespace atrous::cuda
