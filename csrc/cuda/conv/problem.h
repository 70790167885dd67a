// A convolution with its epilogue as plain data: what the host describes, plans and launches. No CUTLASS, no torch.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <string>
#include <string_view>

#include "../channels.cuh"

namespace atrous::cuda {

// Input channels whose kernel rows are read as one position.
constexpr int64_t FEW = 4;

// x: (n, h, w, c), weight: (k, r, s, c), residual and y: (n, p, q, k), all dense but x; pairs are (height, width).
struct ConvProblem {
  const void *x, *weight, *residual;
  void* y;
  ScalarType type;  // of all four
  int64_t n, h, w, c, k, r, s, p, q;
  int64_t x_strides[3];  // in elements, from pixel to pixel, row to row, image to image
  int64_t stride[2], padding[2], dilation[2], groups;
  Vectors vectors;
  Slope slope;
  Residual place;
  bool dropout;

  int64_t pixels() const { return n * p * q; }
};

// The tiles that are built, pixels x channels; `few` is 128x64 where a 16-bit dtype is read by 4 channels.
enum class Tile { t256x128, t128x128, t128x64, t64x64, few };

// A tensor of (n, c, h, w) with these strides in elements, to (n, h, w + 2 * around, channels) with zeros for what is
// new; channels: a multiple of 4.
struct ConvPad {
  const void* from;
  void* to;
  ScalarType type;
  int64_t n, c, h, w, strides[4], channels, around;
};

// Whether a kernel row is read as one position of s * c channels: in a dense x of few channels whose width needs no
// padding and has no dilation they lie side by side, and 7 positions of 28 channels are fewer steps than 49 of 4.
inline bool reads_rows(int64_t c, int64_t dilation_w) { return c <= FEW && dilation_w == 1; }
// As many channels as c has to be padded to with zeros: FEW for rows, else whole vectors of 16 bytes.
int64_t conv_channels(int64_t c, ScalarType type, int64_t dilation_w);
// The problem as one of rows.
void merge_rows(ConvProblem& problem);

// How it is computed: in `splits` parts of the reduction, whose sums go through a workspace; or, where `tma`, by the
// kernels for compute capability 9.0 (conv/sm90.cuh), which have the three large tiles and no splits.
struct ConvPlan {
  Tile tile;
  int splits;
  size_t workspace_bytes;
  bool tma = false;
  int multiprocessors = 1;  // of the GPU: as many blocks of the persistent kernel run at once
};

// Why there is no kernel for it; empty where there is one.
std::string conv_reasons(const ConvProblem& problem);
// What it is computed on, and the name of the tile to take; empty for the predicted one.
struct Target {
  int chip, multiprocessors;  // chip: 90 for compute capability 9.0
  bool wgmma;                 // the chip is 9.0, and this build has code for it
  std::string_view tile;
};
// The names of the tiles, those of wgmma before those of mma.sync; this name where it lives as long as the program, or
// null if no tile has it.
std::string conv_tiles();
const char* conv_tile_name(std::string_view name);
// The tile and the splits that are predicted to take the least time; a tile that is named, or an error with the reason.
ConvPlan conv_plan(const ConvProblem& problem, const Target& target);
// The product of each dtype, with the epilogue unless it is split, and what follows it then.
// workspace: plan.workspace_bytes, aligned to 16 bytes.
cudaError_t conv_fp16(const ConvProblem& problem, const ConvPlan& plan, void* workspace, cudaStream_t stream);
cudaError_t conv_bf16(const ConvProblem& problem, const ConvPlan& plan, void* workspace, cudaStream_t stream);
cudaError_t conv_fp32(const ConvProblem& problem, const ConvPlan& plan, void* workspace, cudaStream_t stream);
cudaError_t conv_sm90_fp16(const ConvProblem& problem, const ConvPlan& plan, void* workspace, cudaStream_t stream);
cudaError_t conv_sm90_bf16(const ConvProblem& problem, const ConvPlan& plan, void* workspace, cudaStream_t stream);
cudaError_t conv_pad(const ConvPad& pad, cudaStream_t stream);
cudaError_t conv_reduce(const ConvProblem& problem, int splits, const float* partial, cudaStream_t stream);

// Whether conv_sm90_* are built for the current GPU, which is of compute capability 9.0: they are for sm_90a alone.
bool conv_sm90_built();

}  // namespace atrous::cuda
