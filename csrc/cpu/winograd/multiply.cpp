// The GEMM of one Winograd position, for AVX-512 and for narrower vectors. Each sum consists of the same fused steps in
// the same order for every vector width and group size, so the bits are the same on every machine that has fma.
#include "multiply.h"

#include "instruction_sets.h"

namespace atrous::winograd {

namespace {

// A sum is a sum of sums of CHAIN products: its rounding error is that of CHAIN and channels / CHAIN additions, a
// fraction of a direct convolution's.
constexpr int64_t CHAIN = 16;

struct Fp32 {
  template <class V, int PANELS, int TILES>
  static void multiply(const PanelGemm& gemm, int64_t first, const float* next, int64_t next_step) {
    constexpr int WIDTH = sizeof(V) / sizeof(float), PARTS = PANEL / WIDTH;
    const float* v = gemm.v + first * gemm.v_step;
    V totals[TILES][PANELS][PARTS] = {};
    if (gemm.add)
      for (int i = 0; i < TILES; ++i)
        for (int panel = 0; panel < PANELS; ++panel)
          for (int part = 0; part < PARTS; ++part)
            load(gemm.total(panel, first + i) + part * WIDTH, totals[i][panel][part]);
    for (int64_t begin = 0; begin < gemm.channels; begin += CHAIN) {
      V sums[TILES][PANELS][PARTS] = {};
      const int64_t end = std::min(begin + CHAIN, gemm.channels);
      for (int64_t c = begin; c < end; ++c) {
        V u[PANELS][PARTS];
        for (int panel = 0; panel < PANELS; ++panel) {
          __builtin_prefetch(next + panel * gemm.u_step + c * next_step, 0, 3);
          for (int part = 0; part < PARTS; ++part)
            load(gemm.u + panel * gemm.u_step + c * PANEL + part * WIDTH, u[panel][part]);
        }
        for (int i = 0; i < TILES; ++i) {
          const float x = v[i * gemm.v_step + c * gemm.v_stride];
          for (int panel = 0; panel < PANELS; ++panel)
            for (int part = 0; part < PARTS; ++part) sums[i][panel][part] += x * u[panel][part];
        }
      }
      for (int i = 0; i < TILES; ++i)
        for (int panel = 0; panel < PANELS; ++panel)
          for (int part = 0; part < PARTS; ++part) totals[i][panel][part] += sums[i][panel][part];
    }
    for (int i = 0; i < TILES; ++i)
      for (int panel = 0; panel < PANELS; ++panel)
        for (int part = 0; part < PARTS; ++part)
          store<V>(gemm.total(panel, first + i) + part * WIDTH, totals[i][panel][part]);
  }
};

// 12 of 16 vector registers hold sums; the totals are in memory.
ATROUS_CONTRACT ATROUS_NARROW void multiply_narrow(const PanelGemm& gemm, const float* next) {
  multiply_panels<Fp32, Vector<8>, 1, 6>(gemm, next);
}

// 28 of 32 registers hold sums and totals. Two panels share each load of an input.
ATROUS_CONTRACT ATROUS_AVX512 void multiply_wide(const PanelGemm& gemm, const float* next) {
  if (gemm.panels > 1)
    multiply_panels<Fp32, Vector<16>, 2, 7>(gemm, next);
  else
    multiply_panels<Fp32, Vector<16>, 1, 14>(gemm, next);
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
