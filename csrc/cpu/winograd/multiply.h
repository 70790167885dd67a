// The products of a Winograd convolution: the part that takes most of its time.
#pragma once

#include "transform.h"

namespace atrous::winograd {

// m[panel][tile][0..16] = sum over c of v[tile][c] * u[panel][c][0..16], for one position of a block of tiles.
struct Product {
  const float *v, *u;
  float* m;
  int64_t tiles, channels, panels;
  int64_t v_step, u_step;  // from tile to tile of v, from panel to panel of u

  int64_t m_step() const { return tiles * PANEL; }  // from panel to panel
};

void multiply(const Product& product);

}  // namespace atrous::winograd
