// The CPU primitives. Each checks its arguments and throws an error that names the invalid one.
#pragma once

#include "../arguments.h"

namespace atrous::cpu {

Tensor epilogue(const Epilogue& arguments, const Tensor& z);
// Writes the epilogue of z to y, which may be z itself.
void epilogue_into(const Epilogue& arguments, const Tensor& z, const Tensor& y);

Tensor epilogue_reduce(const Epilogue& arguments, const Tensor& grad, const Tensor& z);
std::tuple<Tensor, Tensor> epilogue_backward(const Epilogue& arguments, const Tensor& grad, const Tensor& z,
                                             const OptionalTensor& means, bool need_z, bool need_residual);
std::tuple<Tensor, Tensor> statistics(const Tensor& z);

Tensor conv_epilogue(const Epilogue& arguments, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                     const Sizes& stride, const Sizes& padding, const Sizes& dilation, int64_t groups);

// turned: rotates the kernel by 180 degrees and swaps input and output channels, for the gradient of the input.
Tensor winograd_weight(const Tensor& weight, bool turned);
Tensor winograd_epilogue(const Epilogue& arguments, const Tensor& input, const Tensor& transformed,
                         int64_t out_channels, const OptionalTensor& bias, const Sizes& padding, const Sizes& dilation);

}  // namespace atrous::cpu
