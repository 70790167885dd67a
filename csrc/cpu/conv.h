// torch's own convolution, followed by the epilogue in place.
#pragma once

#include "../arguments.h"

namespace atrous::cpu {

Tensor conv_epilogue(Epilogue& arguments, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                     const Sizes& stride, const Sizes& padding, const Sizes& dilation, int64_t groups);

}  // namespace atrous::cpu
