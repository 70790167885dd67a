// The weight of a convolution as its GEMMs read it.
#pragma once

#include "../../arguments.h"

namespace atrous::winograd {

// Writes what _winograd_weight returns for a weight [K, C, 3, 3] of any strides; `positions` are its tile's.
void transform_weight(const Tensor& weight, bool turned, int64_t positions, bool int16, void* u);

}  // namespace atrous::winograd
