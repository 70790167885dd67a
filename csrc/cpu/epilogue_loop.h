// The epilogue over a row of elements, the loop at the end of every CPU kernel, and the one switch over its variants.
#pragma once

#include "../epilogue.h"
#include "vector.h"

namespace atrous {

// A row of `length` elements of storage type S; z may be y. scale, shift and slope have a value per element
// (CHANNELS_LAST) or one for the row. index + i * index_step is element i's index in the contiguous tensor, the counter
// of its random numbers.
template <class S, class Z = S>
struct EpilogueLoop {
  using T = Wide<S>;
  const Z* z;
  const S* residual;
  S* y;
  int64_t length;
  const T *scale, *shift, *slope;
  uint64_t index, index_step;
};

template <Slope SLOPE, Residual RESIDUAL, bool DROPOUT, bool CHANNELS_LAST, class S, class Z>
void epilogue_loop(const EpilogueLoop<S, Z>& loop, Draw<Wide<S>> draw) {
  using T = Wide<S>;
  const T scale = loop.scale[0], shift = loop.shift[0], slope = loop.slope[0];
  ATROUS_INDEPENDENT
  ATROUS_ROLLED
  for (int64_t i = 0; i < loop.length; ++i) {
    const Affine<T> channel = CHANNELS_LAST ? Affine<T>{loop.scale[i], loop.shift[i]} : Affine<T>{scale, shift};
    T factor = CHANNELS_LAST ? loop.slope[i] : slope, residual = 0, keep = 1;
    if constexpr (SLOPE == Slope::random || DROPOUT) {
      const Uniforms drawn = draw.at(loop.index + uint64_t(i) * loop.index_step);
      if (SLOPE == Slope::random) factor = draw.slope(drawn);
      keep = draw.keep(drawn);
    }
    if constexpr (RESIDUAL != Residual::none) residual = widen(loop.residual[i]);
    loop.y[i] = narrow<S>(epilogue<T, SLOPE, RESIDUAL, DROPOUT>(widen(loop.z[i]), channel, factor, residual, keep));
  }
}

// Calls function(slope, residual, dropout) with compile-time constants. A number becomes a tensor: Channels holds it
// per channel.
template <class Function>
void select(Slope slope, Residual residual, bool dropout, Function&& function) {
  const auto with_dropout = [&](auto kind, auto place) {
    return dropout ? function(kind, place, std::true_type{}) : function(kind, place, std::false_type{});
  };
  const auto with_place = [&](auto kind) {
    switch (residual) {
      case Residual::none:
        return with_dropout(kind, std::integral_constant<Residual, Residual::none>{});
      case Residual::before:
        return with_dropout(kind, std::integral_constant<Residual, Residual::before>{});
      case Residual::after:
        return with_dropout(kind, std::integral_constant<Residual, Residual::after>{});
    }
    __builtin_unreachable();
  };
  switch (slope) {
    case Slope::relu:
      return with_place(std::integral_constant<Slope, Slope::relu>{});
    case Slope::number:
    case Slope::tensor:
      return with_place(std::integral_constant<Slope, Slope::tensor>{});
    case Slope::random:
      return with_place(std::integral_constant<Slope, Slope::random>{});
  }
  __builtin_unreachable();
}

}  // namespace atrous
