// _statistics_epilogue from a device's own _statistics and _epilogue.
#pragma once

#include "arguments.h"

namespace atrous {

template <auto STATISTICS, auto EPILOGUE>
std::tuple<Tensor, Tensor, Tensor> statistics_epilogue(Epilogue& arguments, const Tensor& z) {
  STD_TORCH_CHECK(!arguments.mean && !arguments.var, "mean and var: expected None: they are those of z");
  std::tie(arguments.mean, arguments.var) = STATISTICS(z);
  return {EPILOGUE(arguments, z), *arguments.mean, *arguments.var};
}

}  // namespace atrous
