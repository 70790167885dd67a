// Convolution arguments and sizes, checked and computed once for every device.
#pragma once

#include "arguments.h"

namespace atrous {

// Throws on arguments that torch's own convolution refuses, since its error would reach us without a message, and on
// arguments that it accepts but our kernels do not.
void check_convolution(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, SizesRef stride,
                       SizesRef padding, SizesRef dilation, int64_t groups);

// The output sizes (N, K, H', W') for an input (N, C, H, W) and a weight (K, C / groups, kH, kW). Throws unless the
// padded input is at least as large as the dilated kernel.
Sizes convolution_sizes(SizesRef input, SizesRef weight, SizesRef stride, SizesRef padding, SizesRef dilation);

// The memory order of the output: channels_last if the strides of the input or of the weight are in NHWC order, as in
// torch's suggest_memory_format().
Order convolution_order(const Tensor& input, const Tensor& weight);

// An uninitialized tensor with the dtype and device of another.
Tensor empty_tensor(const Tensor& like, const Sizes& sizes, Order order);

}  // namespace atrous
