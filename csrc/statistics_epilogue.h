// _statistics_epilogue from a device's own _statistics and _epilogue.
#pragma once

#include "arguments.h"

namespace atrous {

template <auto STATISTICS, auto EPILOGUE>
std::tuple<Tensor, Tensor, Tensor> statistics_epilogue(const Epilogue& arguments, const Tensor& z) {
  STD_TORCH_CHECK(!arguments.mean && !arguments.var, "mean and var: expected None: they are those of z");
  Epilogue with_statistics = arguments;
  std::tie(with_statistics.mean, with_statistics.var) = STATISTICS(z);
  return {EPILOGUE(with_statistics, z), *with_statistics.mean, *with_statistics.var};
}

}  // namespace atrous
