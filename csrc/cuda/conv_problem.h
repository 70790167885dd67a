// A convolution with its epilogue as plain data: what the host describes, plans and launches. No CUTLASS, no torch.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <string>

#include "channels.cuh"

namespace atrous::cuda {

// x: (n, h, w, c), weight: (k, r, s, c), residual and y: (n, p, q, k), all dense; pairs are (height, width).
struct ConvProblem {
  const void *x, *weight, *residual;
  void* y;
  ScalarType type;  // of all four
  int64_t n, h, w, c, k, r, s, p, q;
  int64_t stride[2], padding[2], dilation[2], groups;
  Vectors vectors;
  Slope slope;
  Residual place;
  bool dropout;

  int64_t pixels() const { return n * p * q; }
};

// The tiles that are built, pixels x channels; `few` is 128x64 for 4 input channels.
enum class Tile { t128x128, t128x64, t64x64, few };

// The kernels read whole vectors of 16 bytes, or 4 channels: as many as c has to be padded to with zeros.
int64_t conv_channels(int64_t c, ScalarType type);

// How it is computed: the reduction is cut into `splits` shares, whose sums go through a workspace; or, where `tma`, by
// the products of compute capability 9.0 (conv_sm90.cuh), which have the two large tiles and no shares.
struct ConvPlan {
  Tile tile;
  int splits;
  size_t workspace_bytes;
  bool tma = false;
};

// Why there is no kernel for it; empty where there is one.
std::string conv_reasons(const ConvProblem& problem);
// sm90: the card is of compute capability 9.0, and this build has its products.
ConvPlan conv_plan(const ConvProblem& problem, int multiprocessors, bool sm90);
// workspace: plan.workspace_bytes, aligned to 16 bytes.
cudaError_t conv_run(const ConvProblem& problem, const ConvPlan& plan, void* workspace, cudaStream_t stream);

// Of conv_run: the product of each dtype, and what follows a product in shares.
cudaError_t conv_fp16(const ConvProblem& problem, const ConvPlan& plan, void* workspace, cudaStream_t stream);
cudaError_t conv_bf16(const ConvProblem& problem, const ConvPlan& plan, void* workspace, cudaStream_t stream);
cudaError_t conv_fp32(const ConvProblem& problem, const ConvPlan& plan, void* workspace, cudaStream_t stream);
cudaError_t conv_sm90_fp16(const ConvProblem& problem, const ConvPlan& plan, void* workspace, cudaStream_t stream);
cudaError_t conv_sm90_bf16(const ConvProblem& problem, const ConvPlan& plan, void* workspace, cudaStream_t stream);
cudaError_t conv_reduce(const ConvProblem& problem, int splits, const float* partial, cudaStream_t stream);

// Whether conv_sm90_* are built for the current card, which is of compute capability 9.0: they are for sm_90a alone.
bool conv_sm90_built();

}  // namespace atrous::cuda
