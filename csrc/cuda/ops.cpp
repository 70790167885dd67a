#include "ops.h"

STABLE_TORCH_LIBRARY_IMPL(atrous, CUDA, m) { atrous::cuda::implement(m); }
