#include "gradient.h"

#include "epilogue_loop.h"

namespace atrous {

namespace {

constexpr int64_t VECTOR = 16;  // elements: what the widest vectors hold

// One row of a tile. Channel vectors advance with the elements, or stay where they are.
template <class S>
struct GradientRow {
  using T = Wide<S>;
  const S *grad, *z, *residual;
  int64_t length;
  const T *scale, *shift, *slope, *mean;
  uint64_t index, index_step;
  Parts<T>& parts;
  int64_t at;  // in the parts
};

template <Slope SLOPE, Residual RESIDUAL, bool DROPOUT, bool CHANNELS_LAST, class S>
void differentiate_row(const GradientRow<S>& row, Draw<Wide<S>> draw) {
  using T = Wide<S>;
  Parts<T>& parts = row.parts;
  ATROUS_INDEPENDENT
  for (int64_t i = 0; i < row.length; ++i) {
    const int64_t channel = CHANNELS_LAST ? i : 0;
    T slope = row.slope[channel], residual = 0, dy = widen(row.grad[i]);
    if constexpr (SLOPE == Slope::random || DROPOUT) {
      const Uniforms drawn = draw.at(row.index + uint64_t(i) * row.index_step);
      if (SLOPE == Slope::random) slope = draw.slope(drawn);
      if (DROPOUT) dy = multiply(dy, draw.keep(drawn));
    }
    if constexpr (RESIDUAL == Residual::before) residual = widen(row.residual[i]);
    const T z = widen(row.z[i]), deviation = z - row.mean[channel];
    const T u = before_activation<T, RESIDUAL>(z, {row.scale[channel], row.shift[channel]}, residual);
    const T du = multiply(dy, derivative<T, SLOPE>(u, slope)), of_slope = slope_gradient(dy, u);
    parts.deviation[row.at + i] = deviation;
    parts.du[row.at + i] = du;
    if constexpr (SLOPE == Slope::tensor) parts.slope[row.at + i] = of_slope;
  }
}

template <Slope SLOPE, Residual RESIDUAL, bool DROPOUT, bool CHANNELS_LAST, class S>
void differentiate_rows(const Source<S>& source, const Tile& tile, Parts<Wide<S>>& parts) {
  using T = Wide<S>;
  const Channels<T>& vectors = source.vectors;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t at = tile.at + r * tile.stride, channel = tile.channel + (CHANNELS_LAST ? 0 : r);
    const int64_t end = r * tile.pitch + tile.length;
    // The few elements that fill no vector would take as long as many that do: a row that is not the tensor's last runs
    // on into what follows it, and zeros replace what it finds there.
    const int64_t whole = (tile.length + VECTOR - 1) / VECTOR * VECTOR;
    const bool runs_on = !CHANNELS_LAST && at + whole <= source.layout.size();
    differentiate_row<SLOPE, RESIDUAL, DROPOUT, CHANNELS_LAST>(
        GradientRow<S>{source.grad + at, source.z + at, source.residual + at, runs_on ? whole : tile.length,
                       &vectors.scale[channel], &vectors.shift[channel], &vectors.slope[channel], &source.mean[channel],
                       DROPOUT || SLOPE == Slope::random ? source.layout.index(at) : 0, source.layout.index_step(),
                       parts, r * tile.pitch},
        vectors.draw);
    if (tile.length == tile.pitch) continue;
    for (T* part : {parts.du, parts.deviation, parts.slope}) std::fill_n(part + end, Parts<T>::PAD, T(0));
  }
}

template <class S>
void differentiate_tile(const Source<S>& source, const Tile& tile, Parts<Wide<S>>& parts) {
  select(source.slope, source.place, source.dropout, [&](auto slope, auto place, auto dropout) {
    if constexpr (place.value != Residual::after) {
      if (source.layout.channels_last)
        differentiate_rows<slope.value, place.value, dropout.value, true>(source, tile, parts);
      else
        differentiate_rows<slope.value, place.value, dropout.value, false>(source, tile, parts);
    }
  });
}

}  // namespace

#define ATROUS_DIFFERENTIATE(S)                                                                        \
  ATROUS_CLONES void differentiate(const Source<S>& source, const Tile& tile, Parts<Wide<S>>& parts) { \
    differentiate_tile(source, tile, parts);                                                           \
  }
ATROUS_DIFFERENTIATE(float)
ATROUS_DIFFERENTIATE(double)
ATROUS_DIFFERENTIATE(Half)
ATROUS_DIFFERENTIATE(BFloat16)

}  // namespace atrous
