// Registers the CUDA primitives in torch.ops.atrous.
#include "ops.h"

STABLE_TORCH_LIBRARY_IMPL(atrous, CUDA, m) { atrous::cuda::implement(m); }
STABLE_TORCH_LIBRARY_FRAGMENT(atrous, m) { atrous::cuda::define(m); }
STABLE_TORCH_LIBRARY_IMPL(atrous, CompositeExplicitAutograd, m) { atrous::cuda::implement_anywhere(m); }
