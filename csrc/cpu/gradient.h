// The gradient of the epilogue, tile by tile, in two steps. The first depends on the kind of epilogue and on the
// storage type and writes TileGradients, which stay in the L1 cache. The second reads those and depends on neither.
#pragma once

#include "channels.h"
#include "work_partition.h"

namespace atrous {

// The part of a chunk that a thread works on; its row r is at r * pitch in TileGradients.
struct Tile {
  int64_t at, channel, rows, length, stride, pitch;
};

// For each element of a tile: du, z - mean, and its contribution to the slope's gradient if the slope is a tensor. Rows
// are padded with zeros to a multiple of ROW_MULTIPLE.
template <class T>
struct TileGradients {
  static constexpr int64_t SIZE = 1024, ROW_MULTIPLE = 32;
  alignas(64) T du[SIZE + ROW_MULTIPLE], deviation[SIZE + ROW_MULTIPLE], slope[SIZE + ROW_MULTIPLE];
};

template <class S>
struct GradientInputs {
  using T = Wide<S>;
  const S *grad, *z, *residual;
  const Layout layout;
  Slope slope;
  Residual place;  // never after: such a residual does not enter the gradient
  bool dropout, batch_norm;
  Channels<T> vectors;
  std::vector<T> mean, factor;  // factor: 1 / sqrt(var + eps); both are 0 without BatchNorm

  GradientInputs(const Epilogue& arguments, const Tensor& grad, const S* z, const Layout& rows)
      : grad(static_cast<const S*>(grad.const_data_ptr())),
        z(z),
        residual(arguments.residual_data<S>()),
        layout(loop_rows(arguments, rows)),
        slope(arguments.slope_kind),
        place(arguments.place() == Residual::before ? Residual::before : Residual::none),
        dropout(arguments.dropout > 0),
        batch_norm(arguments.mean),
        vectors(arguments, layout),
        mean(layout.channels),
        factor(layout.channels) {
    if (!batch_norm) return;
    const ChannelVectors channels = vectors_of(arguments);
    for (int64_t i = 0; i < rows.channels; ++i) {
      mean[i] = channels.mean.read(i, T(0));
      factor[i] = channels.factor<T>(i);
    }
    for (T* values : {mean.data(), factor.data()}) repeat(values, rows.channels, layout.channels);
  }
};

// The sums that _epilogue_reduce returns: [3][channels].
template <class S>
std::vector<Wide<S>> gradient_sums(const GradientInputs<S>& inputs);

// Writes dz and du, each if its pointer is not null. means: [2][channels], the first two sums divided by the number of
// values if mean and var are the batch's; null if they are constants.
template <class S>
void write_gradients(const GradientInputs<S>& inputs, const Wide<S>* means, S* dz, S* du);

// Computes the gradients of a tile.
void differentiate(const GradientInputs<float>& inputs, const Tile& tile, TileGradients<float>& gradients);
void differentiate(const GradientInputs<double>& inputs, const Tile& tile, TileGradients<double>& gradients);
void differentiate(const GradientInputs<Half>& inputs, const Tile& tile, TileGradients<float>& gradients);
void differentiate(const GradientInputs<BFloat16>& inputs, const Tile& tile, TileGradients<float>& gradients);

// Calls function(tile) for the tiles of a chunk, in an order that depends on the chunk's shape alone.
template <class T, class Function>
void for_tiles(const Chunk& chunk, bool channels_last, Function&& function) {
  const int64_t width = std::min(chunk.length, TileGradients<T>::SIZE);
  const int64_t pitch =
      (width + TileGradients<T>::ROW_MULTIPLE - 1) / TileGradients<T>::ROW_MULTIPLE * TileGradients<T>::ROW_MULTIPLE;
  const int64_t height = TileGradients<T>::SIZE / pitch;
  for (int64_t row = 0; row < chunk.rows; row += height)
    for (int64_t column = 0; column < chunk.length; column += width)
      function(Tile{chunk.at + row * chunk.stride + column, chunk.channel + (channels_last ? column : row),
                    std::min(height, chunk.rows - row), std::min(width, chunk.length - column), chunk.stride, pitch});
}

}  // namespace atrous
