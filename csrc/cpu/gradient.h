// The gradient of the epilogue, tile by tile. A tile goes through two steps: what depends on the kind of epilogue and
// on the storage type leaves `Parts` in the nearest cache, and what is made of those depends on neither.
#pragma once

#include "channels.h"
#include "work_partition.h"

namespace atrous {

// Part of a chunk that a thread has in hand; row r of it is at r * pitch in its parts.
struct Tile {
  int64_t at, channel, rows, length, stride, pitch;
};

// Of each element: the gradient of u, z - mean, and what it adds to its slope's gradient where that is a tensor. Rows
// end in zeros up to a multiple of PAD.
template <class T>
struct Parts {
  static constexpr int64_t SIZE = 1024, PAD = 32;
  alignas(64) T du[SIZE + PAD], deviation[SIZE + PAD], slope[SIZE + PAD];
};

template <class S>
struct Source {
  using T = Wide<S>;
  const S *grad, *z, *residual;
  const Layout& layout;
  Slope slope;
  Residual place;  // never after: that has no part in the gradient
  bool dropout;
  Channels<T> vectors;
  std::vector<T> mean, factor;  // 1 / sqrt(var + eps); without BatchNorm 0 and 1

  Source(const Arguments& arguments, const Tensor& grad, const S* z, const Layout& layout)
      : grad(static_cast<const S*>(grad.const_data_ptr())),
        z(z),
        residual(arguments.residual ? static_cast<const S*>(arguments.residual->const_data_ptr()) : nullptr),
        layout(layout),
        slope(arguments.kind()),
        place(arguments.place() == Residual::before ? Residual::before : Residual::none),
        dropout(arguments.dropout > 0),
        vectors(arguments, layout.channels),
        mean(layout.channels, T(0)),
        factor(layout.channels, T(1)) {
    if (!arguments.mean) return;
    read(*arguments.mean, mean.data(), layout.channels);
    read(*arguments.var, factor.data(), layout.channels);
    for (T& value : factor) value = 1 / std::sqrt(value + T(arguments.eps));
  }
};

// Fills the parts of a tile.
void differentiate(const Source<float>& source, const Tile& tile, Parts<float>& parts);
void differentiate(const Source<double>& source, const Tile& tile, Parts<double>& parts);
void differentiate(const Source<Half>& source, const Tile& tile, Parts<float>& parts);
void differentiate(const Source<BFloat16>& source, const Tile& tile, Parts<float>& parts);

// run(tile) for the tiles of a chunk, in an order that its shape gives.
template <class T, class Run>
void for_tiles(const Chunk& chunk, bool channels_last, Run&& run) {
  const int64_t width = std::min(chunk.length, Parts<T>::SIZE);
  const int64_t pitch = (width + Parts<T>::PAD - 1) / Parts<T>::PAD * Parts<T>::PAD;
  const int64_t height = Parts<T>::SIZE / pitch;
  for (int64_t row = 0; row < chunk.rows; row += height)
    for (int64_t column = 0; column < chunk.length; column += width)
      run(Tile{chunk.at + row * chunk.stride + column, chunk.channel + (channels_last ? column : row),
               std::min(height, chunk.rows - row), std::min(width, chunk.length - column), chunk.stride, pitch});
}

}  // namespace atrous
