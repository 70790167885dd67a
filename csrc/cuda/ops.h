// Registers the primitives' CUDA implementations.
#pragma once

#include "../op_adapter.h"
#include "primitives.h"

namespace atrous::cuda {

inline void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("_epilogue", TORCH_BOX(&OpAdapter<&epilogue>::call));
  m.impl("_epilogue_again", TORCH_BOX(&OpAdapter<&epilogue>::call));
  m.impl("_epilogue_reduce", TORCH_BOX(&OpAdapter<&epilogue_reduce>::call));
  m.impl("_epilogue_backward", TORCH_BOX(&OpAdapter<&epilogue_backward>::call));
  m.impl("_statistics", TORCH_BOX(&statistics));
  m.impl("_conv_epilogue", TORCH_BOX(&OpAdapter<&conv_epilogue>::call));
}

// _conv_tile takes no tensor and so has no device. Only CUDA builds define it.
inline void define(torch::stable::detail::StableLibrary& m) { m.def("_conv_tile(str name) -> ()"); }
inline void implement_anywhere(torch::stable::detail::StableLibrary& m) { m.impl("_conv_tile", TORCH_BOX(&conv_tile)); }

}  // namespace atrous::cuda
