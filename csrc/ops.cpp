// Registers the primitives' schemas and their CPU implementations.
#include "cpu/primitives.h"
#include "op_adapter.h"

#define OP(schema) m.def(schema);
STABLE_TORCH_LIBRARY(atrous, m) {
#include "../pyops/schemas.def"
}

STABLE_TORCH_LIBRARY_IMPL(atrous, CPU, m) {
  m.impl("_epilogue", TORCH_BOX(&atrous::OpAdapter<&atrous::cpu::epilogue>::call));
  m.impl("_epilogue_again", TORCH_BOX(&atrous::OpAdapter<&atrous::cpu::epilogue>::call));
  m.impl("_epilogue_reduce", TORCH_BOX(&atrous::OpAdapter<&atrous::cpu::epilogue_reduce>::call));
  m.impl("_epilogue_backward", TORCH_BOX(&atrous::OpAdapter<&atrous::cpu::epilogue_backward>::call));
  m.impl("_statistics", TORCH_BOX(&atrous::cpu::statistics));
  m.impl("_conv_epilogue", TORCH_BOX(&atrous::OpAdapter<&atrous::cpu::conv_epilogue>::call));
  m.impl("_winograd_weight", TORCH_BOX(&atrous::cpu::winograd_weight));
  m.impl("_winograd_epilogue", TORCH_BOX(&atrous::OpAdapter<&atrous::cpu::winograd_epilogue>::call));
}
