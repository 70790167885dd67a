// What runs the primitives on CUDA.
#pragma once

#include "../op_adapter.h"
#include "primitives.h"

namespace atrous::cuda {

inline void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("_epilogue", TORCH_BOX(&Flat<&epilogue>::call));
  m.impl("_epilogue_again", TORCH_BOX(&Flat<&epilogue>::call));
  m.impl("_epilogue_reduce", TORCH_BOX(&Flat<&epilogue_reduce>::call));
  m.impl("_epilogue_backward", TORCH_BOX(&Flat<&epilogue_backward>::call));
  m.impl("_statistics", TORCH_BOX(&statistics));
  m.impl("_conv_epilogue", TORCH_BOX(&Flat<&conv_epilogue>::call));
}

// What has no tensor, and so no device: of CUDA builds alone.
inline void define(torch::stable::detail::StableLibrary& m) { m.def("_conv_tile(str name) -> ()"); }
inline void implement_anywhere(torch::stable::detail::StableLibrary& m) { m.impl("_conv_tile", TORCH_BOX(&conv_tile)); }

}  // namespace atrous::cuda
