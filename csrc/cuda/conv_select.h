// From the values that select a kernel's code to the types that do.
#pragma once

#include <type_traits>

#include "../epilogue.h"

namespace atrous::cuda {

template <auto VALUE>
using Constant = std::integral_constant<decltype(VALUE), VALUE>;

// Calls run(slope, residual). A number is a tensor of one value here, so two kinds are left.
template <class Run>
auto select_epilogue(Slope slope, Residual place, Run&& run) {
  const auto with_slope = [&](auto residual) {
    return slope == Slope::relu ? run(Constant<Slope::relu>(), residual) : run(Constant<Slope::tensor>(), residual);
  };
  if (place == Residual::none) return with_slope(Constant<Residual::none>());
  if (place == Residual::before) return with_slope(Constant<Residual::before>());
  return with_slope(Constant<Residual::after>());
}

}  // namespace atrous::cuda
