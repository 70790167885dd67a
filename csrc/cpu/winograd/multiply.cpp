// Each sum is made of the same fused steps in the same order whatever the vectors and the groups are: the bits are the
// same on every machine that has fma.
#include "multiply.h"

// Multiply and add become fma in the function that is so marked: flags.txt forbids it elsewhere.
#if defined(__GNUC__) && !defined(__clang__)
#define ATROUS_CONTRACT __attribute__((optimize("fp-contract=fast")))
#else
#define ATROUS_CONTRACT
#endif

// GCC 12 is the first to know the level by name.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define ATROUS_AVX512 __attribute__((flatten, target("arch=x86-64-v4")))
#endif

namespace atrous::winograd {

namespace {

// TILES rows of PANELS panels, with sums of type V in registers; brings the panels at `next` nearer meanwhile.
template <class V, int PANELS, int TILES>
void multiply_tiles(const Product& product, int64_t first, const float* next, int64_t next_step) {
  constexpr int WIDTH = sizeof(V) / sizeof(float), PARTS = PANEL / WIDTH;
  const float* v = product.v + first * product.v_step;
  float* m = product.m + first * PANEL;
  V sums[TILES][PANELS][PARTS] = {};
  for (int64_t c = 0; c < product.channels; ++c) {
    V u[PANELS][PARTS];
    for (int panel = 0; panel < PANELS; ++panel) {
      __builtin_prefetch(next + panel * product.u_step + c * next_step, 0, 2);
      std::memcpy(u[panel], product.u + panel * product.u_step + c * PANEL, sizeof u[panel]);
    }
    for (int i = 0; i < TILES; ++i) {
      const float x = v[i * product.v_step + c];
      for (int panel = 0; panel < PANELS; ++panel)
        for (int part = 0; part < PARTS; ++part) sums[i][panel][part] += x * u[panel][part];
    }
  }
  for (int i = 0; i < TILES; ++i)
    for (int panel = 0; panel < PANELS; ++panel)
      std::memcpy(m + panel * product.m_step() + i * PANEL, sums[i][panel], sizeof sums[i][panel]);
}

// The same for a number of tiles that is known only now, TILES at most.
template <class V, int PANELS, int TILES>
void multiply_group(const Product& product, int64_t first, int64_t tiles, const float* next, int64_t next_step) {
  if constexpr (TILES > 1)
    if (tiles < TILES) return multiply_group<V, PANELS, TILES - 1>(product, first, tiles, next, next_step);
  multiply_tiles<V, PANELS, TILES>(product, first, next, next_step);
}

// All tiles, in groups of nearly equal size.
template <class V, int PANELS, int ROWS>
void multiply_panels(const Product& product, const float* next) {
  const int64_t tiles = product.tiles, groups = (tiles + ROWS - 1) / ROWS, step = PANEL / groups;
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t first = tiles * group / groups, count = tiles * (group + 1) / groups - first;
    multiply_group<V, PANELS, ROWS>(product, first, count, next + product.channels * group / groups * PANEL, step);
  }
}

// 12 of 16 vector registers hold sums.
ATROUS_CONTRACT ATROUS_CLONES void multiply_narrow(const Product& product, const float* next) {
  multiply_panels<Vector, 1, 6>(product, next);
}

#ifdef ATROUS_AVX512
// Two panels share each load of an input: 28 of 32 registers hold sums, two the weights, one the input.
ATROUS_CONTRACT ATROUS_AVX512 void multiply_wide(const Product& product, const float* next) {
  using Wide = float __attribute__((vector_size(64)));
  if (product.panels > 1)
    multiply_panels<Wide, 2, 14>(product, next);
  else
    multiply_panels<Wide, 1, 28>(product, next);
}

const bool wide = __builtin_cpu_supports("x86-64-v4");
#else
constexpr bool wide = false;
void multiply_wide(const Product&, const float*) {}
#endif

}  // namespace

void multiply(const Product& product) {
  for (int64_t panel = 0, count; panel < product.panels; panel += count) {
    count = wide ? std::min<int64_t>(2, product.panels - panel) : 1;
    Product part = product;
    part.panels = count;
    part.u += panel * product.u_step;
    part.m += panel * product.m_step();
    // What is read next: the next panels, or the first panels of the next position.
    const float* next =
        panel + count < product.panels ? part.u + count * product.u_step : product.u + product.channels * PANEL;
    if (wide)
      multiply_wide(part, next);
    else
      multiply_narrow(part, next);
  }
}

}  // namespace atrous::winograd
