// The GEMM of one Winograd position, for AVX-512 and for narrower vectors. Each sum consists of the same fused steps in
// the same order for every vector width and group size, so the bits are the same on every machine that has fma.
#include "multiply.h"

// Allows a multiply and an add to become fma in the marked function; flags.txt forbids it elsewhere.
#if defined(__GNUC__) && !defined(__clang__)
#define ATROUS_CONTRACT __attribute__((optimize("fp-contract=fast")))
#else
#define ATROUS_CONTRACT
#endif

// GCC 12 is the first to know this level by name.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define ATROUS_AVX512 __attribute__((flatten, target("arch=x86-64-v4")))
#endif

namespace atrous::winograd {

namespace {

// Computes TILES rows of PANELS panels with sums of type V in registers, and prefetches the panels at `next`.
template <class V, int PANELS, int TILES>
void multiply_tiles(const PanelGemm& gemm, int64_t first, const float* next, int64_t next_step) {
  constexpr int WIDTH = sizeof(V) / sizeof(float), PARTS = PANEL / WIDTH;
  const float* v = gemm.v + first * gemm.v_step;
  float* m = gemm.m + first * PANEL;
  V sums[TILES][PANELS][PARTS] = {};
  for (int64_t c = 0; c < gemm.channels; ++c) {
    V u[PANELS][PARTS];
    for (int panel = 0; panel < PANELS; ++panel) {
      __builtin_prefetch(next + panel * gemm.u_step + c * next_step, 0, 2);
      std::memcpy(u[panel], gemm.u + panel * gemm.u_step + c * PANEL, sizeof u[panel]);
    }
    for (int i = 0; i < TILES; ++i) {
      const float x = v[i * gemm.v_step + c];
      for (int panel = 0; panel < PANELS; ++panel)
        for (int part = 0; part < PARTS; ++part) sums[i][panel][part] += x * u[panel][part];
    }
  }
  for (int i = 0; i < TILES; ++i)
    for (int panel = 0; panel < PANELS; ++panel)
      std::memcpy(m + panel * gemm.m_step() + i * PANEL, sums[i][panel], sizeof sums[i][panel]);
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
ATROUS_CONTRACT ATROUS_CLONES void multiply_narrow(const PanelGemm& gemm, const float* next) {
  multiply_panels<Vector, 1, 6>(gemm, next);
}

#ifdef ATROUS_AVX512
// Two panels share each load of an input: 28 of 32 registers hold sums, two the weights, one the input.
ATROUS_CONTRACT ATROUS_AVX512 void multiply_wide(const PanelGemm& gemm, const float* next) {
  using Wide = float __attribute__((vector_size(64)));
  if (gemm.panels > 1)
    multiply_panels<Wide, 2, 14>(gemm, next);
  else
    multiply_panels<Wide, 1, 28>(gemm, next);
}

const bool wide = __builtin_cpu_supports("x86-64-v4");
#else
constexpr bool wide = false;
void multiply_wide(const PanelGemm&, const float*) {}
#endif

}  // namespace

void multiply(const PanelGemm& gemm) {
  for (int64_t panel = 0, count; panel < gemm.panels; panel += count) {
    count = wide ? std::min<int64_t>(2, gemm.panels - panel) : 1;
    PanelGemm part = gemm;
    part.panels = count;
    part.u += panel * gemm.u_step;
    part.m += panel * gemm.m_step();
    // Read next: the next panels, or the first panels of the next position.
    const float* next = panel + count < gemm.panels ? part.u + count * gemm.u_step : gemm.u + gemm.channels * PANEL;
    if (wide)
      multiply_wide(part, next);
    else
      multiply_narrow(part, next);
  }
}

}  // namespace atrous::winograd
