// The gradient of the epilogue on the CPU.
#include "gradient.h"

#include "epilogue_loop.h"

namespace atrous {

namespace {

constexpr int64_t VECTOR = 16;  // elements of the widest vector

// One row of a tile. scale, shift, slope and mean have a value per element (CHANNELS_LAST) or one for the row.
template <class S>
struct GradientLoop {
  using T = Wide<S>;
  const S *grad, *z, *residual;
  int64_t length;
  const T *scale, *shift, *slope, *mean;
  uint64_t index, index_step;
  TileGradients<T>& gradients;
  int64_t at;  // the row's offset in `gradients`
};

template <Slope SLOPE, Residual RESIDUAL, bool DROPOUT, bool CHANNELS_LAST, class S>
void gradient_loop(const GradientLoop<S>& loop, Draw<Wide<S>> draw) {
  using T = Wide<S>;
  TileGradients<T>& gradients = loop.gradients;
  ATROUS_INDEPENDENT
  for (int64_t i = 0; i < loop.length; ++i) {
    const int64_t channel = CHANNELS_LAST ? i : 0;
    T slope = loop.slope[channel], residual = 0, dy = widen(loop.grad[i]);
    if constexpr (SLOPE == Slope::random || DROPOUT) {
      const Uniforms drawn = draw.at(loop.index + uint64_t(i) * loop.index_step);
      if (SLOPE == Slope::random) slope = draw.slope(drawn);
      if (DROPOUT) dy = multiply(dy, draw.keep(drawn));
    }
    if constexpr (RESIDUAL == Residual::before) residual = widen(loop.residual[i]);
    const T z = widen(loop.z[i]), deviation = z - loop.mean[channel];
    const T u = before_activation<T, RESIDUAL>(z, {loop.scale[channel], loop.shift[channel]}, residual);
    const T du = multiply(dy, derivative<T, SLOPE>(u, slope)), dslope = slope_gradient(dy, u);
    gradients.deviation[loop.at + i] = deviation;
    gradients.du[loop.at + i] = du;
    if constexpr (SLOPE == Slope::tensor) gradients.slope[loop.at + i] = dslope;
  }
}

template <Slope SLOPE, Residual RESIDUAL, bool DROPOUT, bool CHANNELS_LAST, class S>
void differentiate_rows(const GradientInputs<S>& inputs, const Tile& tile, TileGradients<Wide<S>>& gradients) {
  using T = Wide<S>;
  const Channels<T>& vectors = inputs.vectors;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t at = tile.at + r * tile.stride, channel = tile.channel + (CHANNELS_LAST ? 0 : r);
    const int64_t end = r * tile.pitch + tile.length;
    // The scalar remainder of a row would take as long as many full vectors. A row that is not the tensor's last is
    // therefore rounded up into the row behind it, and zeros replace those results.
    const int64_t rounded = ceil_div(tile.length, VECTOR) * VECTOR;
    const bool round_up = !CHANNELS_LAST && at + rounded <= inputs.layout.size();
    gradient_loop<SLOPE, RESIDUAL, DROPOUT, CHANNELS_LAST>(
        GradientLoop<S>{inputs.grad + at, inputs.z + at, inputs.residual + at, round_up ? rounded : tile.length,
                        &vectors.scale[channel], &vectors.shift[channel], &vectors.slope[channel],
                        &inputs.mean[channel], DROPOUT || SLOPE == Slope::random ? inputs.layout.index(at) : 0,
                        inputs.layout.index_step(), gradients, r * tile.pitch},
        vectors.draw);
    if (tile.length == tile.pitch) continue;
    for (T* values : {gradients.du, gradients.deviation, gradients.slope})
      std::fill_n(values + end, TileGradients<T>::ROW_MULTIPLE, T(0));
  }
}

template <class S>
void differentiate_tile(const GradientInputs<S>& inputs, const Tile& tile, TileGradients<Wide<S>>& gradients) {
  select(inputs.slope, inputs.place, inputs.dropout, [&](auto slope, auto place, auto dropout) {
    if constexpr (place.value != Residual::after) {
      if (inputs.layout.channels_last)
        differentiate_rows<slope.value, place.value, dropout.value, true>(inputs, tile, gradients);
      else
        differentiate_rows<slope.value, place.value, dropout.value, false>(inputs, tile, gradients);
    }
  });
}

}  // namespace

#define ATROUS_DIFFERENTIATE(S)                                                       \
  ATROUS_CLONES void differentiate(const GradientInputs<S>& inputs, const Tile& tile, \
                                   TileGradients<Wide<S>>& gradients) {               \
    differentiate_tile(inputs, tile, gradients);                                      \
  }
ATROUS_DIFFERENTIATE(float)
ATROUS_DIFFERENTIATE(double)
ATROUS_DIFFERENTIATE(Half)
ATROUS_DIFFERENTIATE(BFloat16)

}  // namespace atrous
