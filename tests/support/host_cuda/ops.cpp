// Defines the schemas of torch.ops.atrous_host: the CUDA primitives, emulated for tensors on the CPU.
#include <torch/csrc/stable/library.h>

#define OP(schema) m.def(schema);
STABLE_TORCH_LIBRARY(atrous_host, m) {
#include "../../../pyops/schemas.def"
}
