// What a Winograd convolution computes, tile by tile, and how its work is cut for threads and caches.
#pragma once

#include <array>

#include "../arguments.h"
#include "winograd.h"

namespace atrous::winograd {

constexpr int64_t ROWS = 6;  // tiles that a micro-kernel takes: 12 of 16 vector registers hold sums

struct Geometry {
  int64_t images, in_channels, height, width, out_channels, out_height, out_width;
  std::array<int64_t, 2> padding, dilation;
  std::vector<int64_t> tops, lefts;  // first output row and column of each tile

  int64_t tiles() const { return images * int64_t(tops.size() * lefts.size()); }
  int64_t panels() const { return (out_channels + PANEL - 1) / PANEL; }
  int64_t padded_channels() const { return (in_channels + LANES - 1) / LANES * LANES; }
};

// Where the 2 x 2 outputs of a tile go: numbers of pixels; -1 where a border cuts one off.
struct Tile {
  int64_t image, pixels[4];
};

// Checks the arguments of _winograd_epilogue that shape the work; an error names the one that is wrong.
Geometry geometry(const Tensor& input, int64_t out_channels, const Sizes& padding, const Sizes& dilation);
void check_weight(const Tensor& transformed, const Geometry& shape);

Tile tile_at(const Geometry& shape, int64_t image, int64_t top, int64_t left);

// How the work is cut: blocks of tiles, each block's panels in `splits` ranges.
struct Cut {
  int64_t blocks, splits;
};

Cut cut(const Geometry& shape, int64_t threads);

}  // namespace atrous::winograd
