// torch.ops.atrous_host: the CUDA primitives for tensors on the CPU.
#include "../../csrc/cuda/ops.h"

#define OP(schema) m.def(schema);
STABLE_TORCH_LIBRARY(atrous_host, m) {
#include "../../pyops/schemas.def"
}

STABLE_TORCH_LIBRARY_IMPL(atrous_host, CPU, m) { atrous::cuda::implement(m); }
