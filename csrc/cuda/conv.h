// _conv_epilogue on a card: the convolution with its whole epilogue in one launch, or two where the reduction is cut.
#pragma once

#include "../arguments.h"

namespace atrous::cuda {

// input, weight and the residual in fp16, bf16 or fp32 (whose products are rounded to tf32); groups = 1. The input must
// be channels_last and the result is. Copied are: a weight of other strides; input and weight where their channels are
// neither 4 nor a multiple of 16 bytes, as those of a stem.
// Throws with all reasons where there is no kernel for it.
Tensor conv_epilogue(const Arguments& arguments, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                     const Sizes& stride, const Sizes& padding, const Sizes& dilation, int64_t groups);

}  // namespace atrous::cuda
