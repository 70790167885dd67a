// The geometry of a Winograd convolution, and its blocking for threads and caches.
#pragma once

#include <array>

#include "../../arguments.h"
#include "transform.h"

namespace atrous::winograd {

struct Geometry {
  int64_t images, in_channels, height, width, out_channels, out_height, out_width;
  std::array<int64_t, 2> padding, dilation;
  std::vector<int64_t> tops, lefts;  // the first output row and column of each tile

  int64_t tiles() const { return images * int64_t(tops.size() * lefts.size()); }
  int64_t panels() const { return (out_channels + PANEL - 1) / PANEL; }
  // The padded channels of a transformed tile: an odd number of cache lines, so that tiles do not share cache sets.
  int64_t tile_step() const { return ((in_channels + 15) / 16 | 1) * 16; }
};

// The pixel indices of a tile's 2 x 2 outputs, -1 for those outside the output.
struct Tile {
  int64_t image, pixels[4];
};

// Checks the arguments of _winograd_epilogue that determine the geometry; an error names the invalid one.
Geometry geometry(const Tensor& input, int64_t out_channels, const Sizes& padding, const Sizes& dilation);
void check_weight(const Tensor& transformed, const Geometry& shape);

Tile tile_at(const Geometry& shape, int64_t image, int64_t top, int64_t left);

// The tiles are divided into `blocks`, each block's panels into `splits` ranges, which take `panels` panels at a time.
struct Blocking {
  int64_t blocks, splits, panels;
};

Blocking choose_blocking(const Geometry& shape, int64_t threads);

}  // namespace atrous::winograd
