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

// These take no tensor and so have no device. Only CUDA builds define them.
inline void define(torch::stable::detail::StableLibrary& m) {
  m.def("_conv_tile(str name) -> ()");
  m.def(
      "_conv_reasons(ScalarType dtype, bool channels_last, int[4] input, int[4] weight, int[2] stride, int[2] padding, "
      "int[2] dilation, int groups) -> str");
}
inline void implement_anywhere(torch::stable::detail::StableLibrary& m) {
  m.impl("_conv_tile", TORCH_BOX(&conv_tile));
  m.impl("_conv_reasons", TORCH_BOX(&conv_reasons));
}

}  // namespace atrous::cuda
