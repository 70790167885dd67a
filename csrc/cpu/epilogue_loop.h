// The epilogue over a row of elements: the loop that every CPU kernel ends in, and the one switch over its variants.
#pragma once

#include "../epilogue.h"
#include "vector.h"

namespace atrous {

// `length` elements of storage type S; z may be y. Channel vectors advance with the elements, or stay where they are.
// The number of element i in the contiguous tensor, for what is drawn, is index + i * index_step.
template <class S, class Z = S>
struct Row {
  using T = Wide<S>;
  const Z* z;
  const S* residual;
  S* y;
  int64_t length;
  const T *scale, *shift, *slope;
  uint64_t index, index_step;
};

template <Slope SLOPE, Residual RESIDUAL, bool DROPOUT, bool CHANNELS_LAST, class S, class Z>
void run_row(const Row<S, Z>& row, Draw<Wide<S>> draw) {
  using T = Wide<S>;
  const T scale = row.scale[0], shift = row.shift[0], slope = row.slope[0];
  ATROUS_INDEPENDENT
  ATROUS_ROLLED
  for (int64_t i = 0; i < row.length; ++i) {
    const Affine<T> channel = CHANNELS_LAST ? Affine<T>{row.scale[i], row.shift[i]} : Affine<T>{scale, shift};
    T factor = CHANNELS_LAST ? row.slope[i] : slope, residual = 0, keep = 1;
    if constexpr (SLOPE == Slope::random || DROPOUT) {
      const Uniforms drawn = draw.at(row.index + uint64_t(i) * row.index_step);
      if (SLOPE == Slope::random) factor = draw.slope(drawn);
      keep = draw.keep(drawn);
    }
    if constexpr (RESIDUAL != Residual::none) residual = widen(row.residual[i]);
    row.y[i] = narrow<S>(epilogue<T, SLOPE, RESIDUAL, DROPOUT>(widen(row.z[i]), channel, factor, residual, keep));
  }
}

// run(slope, residual, dropout), all compile-time constants. A number is a tensor by now: the row reads its slopes.
template <class Run>
void select(Slope slope, Residual residual, bool dropout, Run&& run) {
  const auto drop = [&](auto kind, auto where) {
    return dropout ? run(kind, where, std::true_type{}) : run(kind, where, std::false_type{});
  };
  const auto place = [&](auto kind) {
    switch (residual) {
      case Residual::none:
        return drop(kind, std::integral_constant<Residual, Residual::none>{});
      case Residual::before:
        return drop(kind, std::integral_constant<Residual, Residual::before>{});
      case Residual::after:
        return drop(kind, std::integral_constant<Residual, Residual::after>{});
    }
  };
  switch (slope) {
    case Slope::relu:
      return place(std::integral_constant<Slope, Slope::relu>{});
    case Slope::number:
    case Slope::tensor:
      return place(std::integral_constant<Slope, Slope::tensor>{});
    case Slope::random:
      return place(std::integral_constant<Slope, Slope::random>{});
  }
}

}  // namespace atrous
