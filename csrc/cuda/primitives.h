// The primitives on CUDA: arguments, results and errors are those of ../cpu/primitives.h.
#pragma once

#include "../arguments.h"

namespace atrous::cuda {

Tensor epilogue(const Arguments& arguments, const Tensor& z);
Tensor epilogue_reduce(const Arguments& arguments, const Tensor& grad, const Tensor& z);
std::tuple<Tensor, Tensor> epilogue_backward(const Arguments& arguments, const Tensor& grad, const Tensor& z,
                                             const OptionalTensor& means, bool need_z, bool need_residual);
std::tuple<Tensor, Tensor> statistics(const Tensor& z);

// One launch, or two where the reduction is cut into splits, where there is a kernel for it (conv/problem.h): groups is
// 1, the input channels_last in fp16, bf16 or fp32, whose products are rounded to tf32, and nothing is drawn. Copied
// are a weight of other strides, and input and weight whose channels the kernels cannot read whole, as those of a stem.
Tensor conv_epilogue(const Arguments& arguments, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                     const Sizes& stride, const Sizes& padding, const Sizes& dilation, int64_t groups);
// Names the tile of every conv_epilogue from now on, for measurements and tests; empty: the predicted one again. A
// convolution that the tile cannot compute is an error.
void conv_tile(std::string name);

}  // namespace atrous::cuda
