// Defines the primitives' schemas. Their implementations are registered beside the kernels, in cpu/ and cuda/.
#include <torch/csrc/stable/library.h>

#define OP(schema) m.def(schema);
STABLE_TORCH_LIBRARY(atrous, m) {
#include "../pyops/schemas.def"
}
