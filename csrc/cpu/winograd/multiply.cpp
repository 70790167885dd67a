// The GEMM of one Winograd position, for AVX-512 and for narrower vectors. Each sum consists of the same fused steps in
// the same order for every vector width and group size, so the bits are the same on every machine that has fma.
#include "multiply.h"

#include "instruction_sets.h"

namespace atrous::winograd {

namespace {

// A sum is a sum of sums of CHAIN products: its rounding error is that of CHAIN and channels / CHAIN additions, a
// fraction of a direct convolution's.
constexpr int64_t CHAIN = 16;

// Computes TILES rows of PANELS panels with sums of type V in registers, and prefetches the panels at `next`.
template <class V, int PANELS, int TILES>
void multiply_tiles(const PanelGemm& gemm, int64_t first, const float* next, int64_t next_step) {
  constexpr int WIDTH = sizeof(V) / sizeof(float), PARTS = PANEL / WIDTH;
  const float* v = gemm.v + first * gemm.v_step;
  float* m = gemm.m + first * PANEL;
  for (int64_t begin = 0; begin < gemm.channels; begin += CHAIN) {
    V sums[TILES][PANELS][PARTS] = {};
    const int64_t end = std::min(begin + CHAIN, gemm.channels);
    for (int64_t c = begin; c < end; ++c) {
      V u[PANELS][PARTS];
      for (int panel = 0; panel < PANELS; ++panel) {
        __builtin_prefetch(next + panel * gemm.u_step + c * next_step, 0, 3);
        std::memcpy(u[panel], gemm.u + panel * gemm.u_step + c * PANEL, sizeof u[panel]);
      }
      for (int i = 0; i < TILES; ++i) {
        const float x = v[i * gemm.v_step + c * gemm.v_stride];
        for (int panel = 0; panel < PANELS; ++panel)
          for (int part = 0; part < PARTS; ++part) sums[i][panel][part] += x * u[panel][part];
      }
    }
    for (int i = 0; i < TILES; ++i)
      for (int panel = 0; panel < PANELS; ++panel)
        for (int part = 0; part < PARTS; ++part) {
          float* total = m + panel * gemm.m_step() + i * PANEL + part * WIDTH;
          V before{};
          if (begin || gemm.add) load(total, before);
          store<V>(total, before + sums[i][panel][part]);
        }
  }
}

// multiply_tiles for a run-time number of tiles, at most TILES.
template <class V, int PANELS, int TILES>
void multiply_group(const PanelGemm& gemm, int64_t first, int64_t tiles, const float* next, int64_t next_step) {
  if constexpr (TILES > 1)
    if (tiles < TILES) return multiply_group<V, PANELS, TILES - 1>(gemm, first, tiles, next, next_step);
  multiply_tiles<V, PANELS, TILES>(gemm, first, next, next_step);
}

// multiply_tiles for all tiles, in groups of nearly equal size.
template <class V, int PANELS, int ROWS>
void multiply_panels(const PanelGemm& gemm, const float* next) {
  const int64_t tiles = gemm.tiles, groups = (tiles + ROWS - 1) / ROWS, step = PANEL / groups;
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t first = tiles * group / groups, count = tiles * (group + 1) / groups - first;
    multiply_group<V, PANELS, ROWS>(gemm, first, count, next + gemm.channels * group / groups * PANEL, step);
  }
}

// 12 of 16 vector registers hold sums.
ATROUS_CONTRACT ATROUS_NARROW void multiply_narrow(const PanelGemm& gemm, const float* next) {
  multiply_panels<Vector<8>, 1, 6>(gemm, next);
}

// Two panels share each load of an input: 28 of 32 registers hold sums, two the weights, one the input.
ATROUS_CONTRACT ATROUS_AVX512 void multiply_wide(const PanelGemm& gemm, const float* next) {
  if (gemm.panels > 1)
    multiply_panels<Vector<16>, 2, 14>(gemm, next);
  else
    multiply_panels<Vector<16>, 1, 28>(gemm, next);
}

}  // namespace

void multiply(const PanelGemm& gemm) {
  for (int64_t panel = 0, count; panel < gemm.panels; panel += count) {
    count = wide_vectors ? std::min<int64_t>(2, gemm.panels - panel) : 1;
    const PanelGemm part = gemm.at(panel, count);
    wide_vectors ? multiply_wide(part, gemm.after(panel + count)) : multiply_narrow(part, gemm.after(panel + count));
  }
}

}  // namespace atrous::winograd
