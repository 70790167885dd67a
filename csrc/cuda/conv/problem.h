// A convolution with its epilogue as plain data, and the functions that plan and launch it. No CUTLASS, no torch.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <string>
#include <string_view>

#include "../../channel_vectors.h"

namespace atrous::cuda {

// Input channels of a padded stem, whose kernel rows are read as one position.
constexpr int64_t STEM_CHANNELS = 4;

// x: (n, h, w, c), weight: (k, r, s, c), residual and y: (n, p, q, k), all aligned to 16 bytes. All but x are dense.
// Pairs are (height, width).
struct ConvProblem {
  const void *x, *weight, *residual;
  void* y;
  ScalarType type;      // the dtype of all four tensors
  bool channels_first;  // the caller's input and weight are NCHW
  int64_t n, h, w, c, k, r, s, p, q;
  int64_t x_strides[3];  // in elements: pixel, row, image
  int64_t stride[2], padding[2], dilation[2], groups;
  ChannelVectors vectors;
  Slope slope;
  Residual place;

  int64_t pixels() const { return n * p * q; }
};

// The compiled tiles, pixels x channels. `stem` is 128x64 for a 16-bit dtype that is read 4 channels at a time.
enum class Tile { t256x128, t128x128, t128x64, t64x64, stem };

// A copy of an (n, c, h, w) tensor with these strides, in elements, to (n, h, w + 2 * margin, channels), padded with
// zeros. channels is a multiple of 4.
struct ConvPad {
  const void* from;
  void* to;
  ScalarType type;
  int64_t n, c, h, w, strides[4], channels, margin;
};

// True if a kernel row is read as one position of s * c channels. They are contiguous in a dense x of few channels
// whose width has neither padding nor dilation, and 7 positions of 28 channels take fewer steps than 49 positions of 4.
inline bool merges_kernel_rows(int64_t c, int64_t dilation_w) { return c <= STEM_CHANNELS && dilation_w == 1; }
// The channels that c is padded to: STEM_CHANNELS if kernel rows are merged, else whole vectors of 16 bytes.
int64_t conv_channels(int64_t c, ScalarType type, int64_t dilation_w);
// Rewrites the problem so that each kernel row is one position.
void merge_kernel_rows(ConvProblem& problem);

// The kernel of a convolution. With splits > 1 the partial sums of split-K go through a workspace. tma selects the
// kernels for compute capability 9.0 (conv/sm90.cuh), which have the three large tiles and no split-K.
struct ConvPlan {
  Tile tile;
  int splits;
  size_t workspace_bytes;
  bool tma = false;
  int multiprocessors = 1;  // the GPU's: as many blocks of the persistent kernel run at once
};

// Returns why no kernel computes the problem, "; " between reasons; empty if one does. It needs no memory.
std::string conv_reasons(const ConvProblem& problem);
// The GPU, and the name of the tile to use; empty for the predicted one.
struct Target {
  int chip, multiprocessors;  // chip: 90 for compute capability 9.0
  bool wgmma;                 // the GPU is of compute capability 9.0 and this build has code for sm_90a
  std::string_view tile;
};
// The names of the tiles, those of wgmma before those of mma.sync.
std::string conv_tiles();
// The same name with static lifetime; null if no tile has it.
const char* conv_tile_name(std::string_view name);
// Returns the tile and the splits of the least predicted time. If the target names a tile, returns that one or throws
// the reason why it cannot be used.
ConvPlan conv_plan(const ConvProblem& problem, const Target& target);
// Launches the convolution, with its epilogue if plan.splits is 1; otherwise it writes partial sums to the workspace,
// plan.workspace_bytes that are 16-byte aligned, and conv_reduce follows.
cudaError_t conv_fp16(const ConvProblem& problem, const ConvPlan& plan, void* workspace, cudaStream_t stream);
cudaError_t conv_bf16(const ConvProblem& problem, const ConvPlan& plan, void* workspace, cudaStream_t stream);
cudaError_t conv_fp32(const ConvProblem& problem, const ConvPlan& plan, void* workspace, cudaStream_t stream);
cudaError_t conv_sm90_fp16(const ConvProblem& problem, const ConvPlan& plan, void* workspace, cudaStream_t stream);
cudaError_t conv_sm90_bf16(const ConvProblem& problem, const ConvPlan& plan, void* workspace, cudaStream_t stream);
cudaError_t conv_pad(const ConvPad& pad, cudaStream_t stream);
cudaError_t conv_reduce(const ConvProblem& problem, int splits, const float* partial, cudaStream_t stream);

// True if conv_sm90_* are compiled for the current GPU, of compute capability 9.0: that takes a build for sm_90a.
bool conv_sm90_built();

}  // namespace atrous::cuda
