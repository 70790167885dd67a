// What a Winograd convolution computes, tile by tile, and how its work is cut for threads and caches.
#pragma once

#include <array>

#include "../../arguments.h"
#include "transform.h"

namespace atrous::winograd {

struct Geometry {
  int64_t images, in_channels, height, width, out_channels, out_height, out_width;
  std::array<int64_t, 2> padding, dilation;
  std::vector<int64_t> tops, lefts;  // first output row and column of each tile

  int64_t tiles() const { return images * int64_t(tops.size() * lefts.size()); }
  int64_t panels() const { return (out_channels + PANEL - 1) / PANEL; }
  // Channels of a transformed tile, padded: an odd number of cache lines, so that tiles do not share cache sets.
  int64_t tile_step() const { return ((in_channels + 15) / 16 | 1) * 16; }
};

// Where the 2 x 2 outputs of a tile go: numbers of pixels; -1 where a border cuts one off.
struct Tile {
  int64_t image, pixels[4];
};

// Checks the arguments of _winograd_epilogue that shape the work; an error names the one that is wrong.
Geometry geometry(const Tensor& input, int64_t out_channels, const Sizes& padding, const Sizes& dilation);
void check_weight(const Tensor& transformed, const Geometry& shape);

Tile tile_at(const Geometry& shape, int64_t image, int64_t top, int64_t left);

// How the work is cut: blocks of tiles, each block's panels in `splits` ranges, `panels` of them at a time.
struct Cut {
  int64_t blocks, splits, panels;
};

Cut cut(const Geometry& shape, int64_t threads);

}  // namespace atrous::winograd
