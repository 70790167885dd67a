// Turns run-time values that select a kernel's code into compile-time constants.
#pragma once

#include <stdexcept>
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

// Calls function(Kind) with one of four kinds. A number is a tensor of one value here, and every kernel with dropout
// but ReLU's is compiled as `random`.
template <class Function>
void with_kind(Slope slope, bool dropout, Function&& function) {
  switch (slope) {
    case Slope::relu:
      return dropout ? function(Kind<Slope::relu, true>{}) : function(Kind<Slope::relu, false>{});
    case Slope::number:
    case Slope::tensor:
      return dropout ? function(Kind<Slope::random, true>{}) : function(Kind<Slope::tensor, false>{});
    case Slope::random:
      return function(Kind<Slope::random, true>{});
  }
  throw std::logic_error("atrous: unknown Slope");
}

// Calls function(place) with a compile-time constant.
template <class Function>
auto with_place(Residual place, Function&& function) {
  switch (place) {
    case Residual::none:
      return function(Constant<Residual::none>{});
    case Residual::before:
      return function(Constant<Residual::before>{});
    case Residual::after:
      return function(Constant<Residual::after>{});
  }
  throw std::logic_error("atrous: unknown Residual");
}

// with_place for a gradient, which does not depend on a residual after the activation.
template <class Function>
auto with_place_before(bool before, Function&& function) {
  if (before) return function(Constant<Residual::before>{});
  return function(Constant<Residual::none>{});
}

// Calls function(slope, place) for an epilogue that draws nothing. A number is a tensor of one value here.
template <class Function>
auto with_slope(Slope slope, Residual place, Function&& function) {
  return with_place(place, [&](auto place) {
    switch (slope) {
      case Slope::relu:
        return function(Constant<Slope::relu>{}, place);
      case Slope::number:
      case Slope::tensor:
        return function(Constant<Slope::tensor>{}, place);
      case Slope::random:
        throw std::logic_error("atrous: expected an epilogue that draws nothing, got random slopes");
    }
    throw std::logic_error("atrous: unknown Slope");
  });
}

}  // namespace atrous::cuda
