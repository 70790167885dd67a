// The CUDA primitives, with the arguments, results and errors of ../cpu/primitives.h.
#pragma once

#include "../arguments.h"

namespace atrous::cuda {

Tensor epilogue(const Arguments& arguments, const Tensor& z);
Tensor epilogue_reduce(const Arguments& arguments, const Tensor& grad, const Tensor& z);
std::tuple<Tensor, Tensor> epilogue_backward(const Arguments& arguments, const Tensor& grad, const Tensor& z,
                                             const OptionalTensor& means, bool need_z, bool need_residual);
std::tuple<Tensor, Tensor> statistics(const Tensor& z);

// Runs our kernel in one launch, or in two with split-K, if it supports the convolution (conv/problem.h): groups is 1,
// the input is channels_last in fp16, bf16 or fp32 (fp32 is multiplied in tf32), and nothing is drawn. Otherwise
// torch's own convolution runs, then the epilogue. A weight with other strides is copied, and so are an input and a
// weight whose channels do not fill whole vectors, as in a stem.
Tensor conv_epilogue(const Arguments& arguments, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                     const Sizes& stride, const Sizes& padding, const Sizes& dilation, int64_t groups);
// Fixes the tile of every later conv_epilogue, for measurements and tests; an empty name returns to the predicted tile.
// A convolution that the tile cannot compute is an error.
void conv_tile(std::string name);

}  // namespace atrous::cuda
