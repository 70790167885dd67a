// Registers torch.ops.atrous_host: the CUDA primitives, emulated for tensors on the CPU.
#include "../../../csrc/cuda/ops.h"

#define OP(schema) m.def(schema);
STABLE_TORCH_LIBRARY(atrous_host, m) {
#include "../../../pyops/schemas.def"
}

STABLE_TORCH_LIBRARY_IMPL(atrous_host, CPU, m) { atrous::cuda::implement(m); }
STABLE_TORCH_LIBRARY_FRAGMENT(atrous_host, m) { atrous::cuda::define(m); }
STABLE_TORCH_LIBRARY_IMPL(atrous_host, CompositeExplicitAutograd, m) { atrous::cuda::implement_anywhere(m); }
