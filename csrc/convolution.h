// Convolution arguments, checked once for every device, and torch's own convolution.
#pragma once

#include "arguments.h"

namespace atrous {

// Throws on arguments that torch's own convolution refuses, since its error would reach us without a message, and on
// arguments that it accepts but our kernels do not.
void check_convolution(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const Sizes& stride,
                       const Sizes& padding, const Sizes& dilation, int64_t groups);

// True if the strides of a 4-D tensor are in NHWC order, as in torch's suggest_memory_format(), which a convolution
// follows.
bool suggests_channels_last(const Tensor& tensor);

// torch's own convolution of checked arguments. The result is channels_last if the input or the weight is: on a GPU
// some of torch's kernels (fp64, without cuDNN) return the other order.
Tensor convolution(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const Sizes& stride,
                   const Sizes& padding, const Sizes& dilation, int64_t groups);

// The output sizes (N, K, H', W') for checked arguments.
Sizes convolution_sizes(const Tensor& input, const Tensor& weight, const Sizes& stride, const Sizes& padding,
                        const Sizes& dilation);

}  // namespace atrous
