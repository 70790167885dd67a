// The geometry of a Winograd convolution, and its blocking for threads and caches.
#pragma once

#include <array>

#include "../../arguments.h"
#include "quantize.h"
#include "transform.h"

namespace atrous::winograd {

// The outputs of a tile are its M x N outputs; it has (M + 2) x (N + 2) inputs and as many positions.
struct TileShape {
  int64_t rows, columns;

  int64_t positions() const { return (rows + 2) * (columns + 2); }
};

// Checks the argument `tile`.
TileShape check_tile(const Sizes& tile);

// `size` floats padded to an odd number of cache lines: blocks of memory at such a distance do not share cache sets.
inline int64_t odd_lines(int64_t size) { return ((size + 15) / 16 | 1) * 16; }

// Memory for `size` values that is reused from call to call: fresh memory would cost a page fault for each page.
template <class T>
T* reserve(std::vector<T>& values, int64_t size) {
  if (int64_t(values.size()) < size) values.resize(size);
  return values.data();
}

struct Geometry {
  int64_t images, in_channels, height, width, out_channels, out_height, out_width;
  std::array<int64_t, 2> padding, dilation;
  TileShape tile;
  bool quantized;                    // to int16
  std::vector<int64_t> tops, lefts;  // the first output row and column of each tile

  int64_t tiles() const { return images * int64_t(tops.size() * lefts.size()); }
  int64_t panels() const { return ceil_div(out_channels, PANEL); }
  // In floats, of one position: a transformed tile, their distance, and a panel's weight (multiply.h).
  int64_t v_size() const { return quantized ? chunks() * CHUNK / 2 : in_channels; }
  int64_t v_step() const { return odd_lines(v_size()); }
  int64_t u_size() const { return (v_size() + quantized) * PANEL; }
  int64_t chunks() const { return ceil_div(in_channels, CHUNK); }
};

// A tile's image, and the row and column of its first output.
struct Tile {
  int64_t image, top, left;
};

Tile tile_at(const Geometry& shape, int64_t index);

// Calls function(output, pixel) for each output of a tile that lies in the map.
template <class Function>
void for_outputs(const Geometry& shape, const Tile& tile, Function&& function) {
  for (int64_t a = 0, y = tile.top; a < shape.tile.rows && y < shape.out_height; ++a, y += shape.dilation[0])
    for (int64_t b = 0, x = tile.left; b < shape.tile.columns && x < shape.out_width; ++b, x += shape.dilation[1])
      function(a * shape.tile.columns + b, (tile.image * shape.out_height + y) * shape.out_width + x);
}

// The geometry of a convolution of this input; an error names the invalid argument.
Geometry geometry(const Tensor& input, int64_t out_channels, TileShape tile, bool quantized, const Sizes& padding,
                  const Sizes& dilation);
// The same from the arguments of _winograd_epilogue, which it checks.
Geometry geometry(const Tensor& input, const Tensor& weight, bool turned, TileShape tile, bool quantized,
                  const Sizes& padding, const Sizes& dilation);
// Checks the argument `transformed`.
void check_transformed(const Tensor& transformed, const Geometry& shape);

// The sizes of what _winograd_weight returns: [panel][position][channel][16] in fp32, [panel][position][pair][32] in
// int16, where the last pair is the scales.
inline Sizes transformed_sizes(int64_t out_channels, int64_t channels, int64_t positions, bool int16) {
  const int64_t panels = ceil_div(out_channels, PANEL), pairs = ceil_div(channels, CHUNK) * CHUNK / 2;
  return int16 ? Sizes{panels, positions, pairs + 1, 2 * PANEL} : Sizes{panels, positions, channels, PANEL};
}

// The tiles are divided into `blocks`, each block's panels into `splits` ranges, which take `panels` panels at a time.
struct Blocking {
  int64_t blocks, splits, panels;
};

Blocking choose_blocking(const Geometry& shape, int64_t threads);

}  // namespace atrous::winograd
