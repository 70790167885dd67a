// The GEMMs of a Winograd convolution, which take most of its time.
#pragma once

#include "quantize.h"
#include "transform.h"

namespace atrous::winograd {

// m[panel][tile][0..16] = sum over c of v[tile][c] * u[panel][c][0..16], for one position of a block. Steps count
// floats.
struct PanelGemm {
  const float *v, *u;
  float* m;
  int64_t tiles, channels, panels;
  int64_t v_step, u_step;  // distance of tiles in v, of panels in u
  int64_t u_size;          // size for one panel
  const float* scales;     // for int16: [chunk][tile]
  int64_t v_stride = 1;    // distance of channels in v
  bool add = false;        // to what m holds

  int64_t m_step() const { return tiles * PANEL; }  // distance of panels in m
  float* total(int64_t panel, int64_t tile) const { return m + panel * m_step() + tile * PANEL; }
  // `count` panels from `panel` on.
  PanelGemm at(int64_t panel, int64_t count) const {
    return {
        v,  u + panel * u_step, m + panel * m_step(), tiles, channels, count, v_step, u_step, u_size, scales, v_stride,
        add};
  }
  // The weight that is read after the panels before `panel`: the next panels', or the first panels' of the next
  // position.
  const float* after(int64_t panel) const { return panel < panels ? u + panel * u_step : u + u_size; }
};

// Calls Kernel::multiply<V, PANELS, count>, which computes `count` tiles from `first` on of PANELS panels in registers,
// and prefetches the panels at `next`, one line in `next_step` floats. TILES: the most tiles.
template <class Kernel, class V, int PANELS, int TILES>
void multiply_tiles(const PanelGemm& gemm, int64_t first, int64_t count, const float* next, int64_t next_step) {
  if constexpr (TILES > 1)
    if (count < TILES) return multiply_tiles<Kernel, V, PANELS, TILES - 1>(gemm, first, count, next, next_step);
  Kernel::template multiply<V, PANELS, TILES>(gemm, first, next, next_step);
}

// All tiles, in groups of nearly equal size, each of which prefetches its part of the panels at `next`.
template <class Kernel, class V, int PANELS, int TILES>
void multiply_panels(const PanelGemm& gemm, const float* next) {
  const int64_t groups = (gemm.tiles + TILES - 1) / TILES, step = PANEL / groups;
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t first = gemm.tiles * group / groups, count = gemm.tiles * (group + 1) / groups - first;
    multiply_tiles<Kernel, V, PANELS, TILES>(gemm, first, count, next + gemm.u_size / PANEL * group / groups * PANEL,
                                             step);
  }
}

// In fp32.
void multiply(const PanelGemm& gemm);

// In int16: v holds int16 [tile][c], u int16 [panel][c / 2][0..16][c % 2] and then the 16 scales of the panel, float.
// `channels` is a multiple of CHUNK.
void multiply_int16(const PanelGemm& gemm);

}  // namespace atrous::winograd
