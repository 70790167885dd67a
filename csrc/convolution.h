// The arguments that describe a convolution, checked once for every device.
#pragma once

#include "arguments.h"

namespace atrous {

// Throws where torch's own convolution would refuse these: an error in there reaches us without its message; and where
// it would take what we do not.
void check_convolution(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const Sizes& stride,
                       const Sizes& padding, const Sizes& dilation, int64_t groups);

// Whether the strides of a 4-D tensor are ordered as NHWC: what suggest_memory_format() says, which a convolution
// follows.
bool suggests_channels_last(const Tensor& tensor);

// torch's own convolution of checked arguments, channels last where the input or the weight is: on a card some of its
// kernels (fp64, without cuDNN) give the other order.
Tensor convolution(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const Sizes& stride,
                   const Sizes& padding, const Sizes& dilation, int64_t groups);

// (N, K, H', W') of checked arguments.
Sizes convolution_sizes(const Tensor& input, const Tensor& weight, const Sizes& stride, const Sizes& padding,
                        const Sizes& dilation);

}  // namespace atrous
