// From the values that select a kernel's code to the types that do.
#pragma once

#include <type_traits>

#include "../epilogue.h"

namespace atrous::cuda {

template <auto VALUE>
using Constant = std::integral_constant<decltype(VALUE), VALUE>;

template <Slope SLOPE, bool DROPOUT>
struct Kind {
  static constexpr Slope slope = SLOPE;
  static constexpr bool dropout = DROPOUT;
};

// run(Kind), one of four.
template <class Run>
void with_kind(Slope slope, bool dropout, Run&& run) {
  if (slope == Slope::relu)
    dropout ? run(Kind<Slope::relu, true>{}) : run(Kind<Slope::relu, false>{});
  else if (dropout || slope == Slope::random)
    run(Kind<Slope::random, true>{});
  else
    run(Kind<Slope::tensor, false>{});
}

// run(place), a compile-time constant.
template <class Run>
auto with_place(Residual place, Run&& run) {
  if (place == Residual::none) return run(Constant<Residual::none>{});
  if (place == Residual::before) return run(Constant<Residual::before>{});
  return run(Constant<Residual::after>{});
}

// The same for a gradient, in which a residual after the activation has no part.
template <class Run>
auto with_place_before(bool before, Run&& run) {
  if (before) return run(Constant<Residual::before>{});
  return run(Constant<Residual::none>{});
}

// run(slope, place) for an epilogue that draws nothing. A number is a tensor of one value here.
template <class Run>
auto with_slope(Slope slope, Residual place, Run&& run) {
  return with_place(place, [&](auto where) {
    return slope == Slope::relu ? run(Constant<Slope::relu>{}, where) : run(Constant<Slope::tensor>{}, where);
  });
}

}  // namespace atrous::cuda
