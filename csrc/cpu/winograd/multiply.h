// The GEMMs of a Winograd convolution, which take most of its time.
#pragma once

#include "transform.h"

namespace atrous::winograd {

// m[panel][tile][0..16] = sum over c of v[tile][c] * u[panel][c][0..16], for one of the 16 positions of a block.
struct PanelGemm {
  const float *v, *u;
  float* m;
  int64_t tiles, channels, panels;
  int64_t v_step, u_step;  // distance of tiles in v, of panels in u

  int64_t m_step() const { return tiles * PANEL; }  // distance of panels in m
};

void multiply(const PanelGemm& gemm);

}  // namespace atrous::winograd
