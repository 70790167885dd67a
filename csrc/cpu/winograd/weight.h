// _winograd_weight: G g G' of a convolution's weight.
#pragma once

#include "../../arguments.h"

namespace atrous::cpu {

// turned: rotates the kernel by 180 degrees and swaps input and output channels, for the gradient of the input.
// tile: the outputs of a tile, rows and columns. int16: in 16-bit fixed point instead of fp32.
Tensor winograd_weight(const Tensor& weight, bool turned, const Sizes& tile, bool int16);

}  // namespace atrous::cpu
