// _winograd_weight: u[k / 16][position][c][k % 16] = (G g G')[position], output channels padded with zeros to 16.
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include "channels.h"
#include "primitives.h"
#include "winograd.h"

namespace atrous::cpu {

using namespace winograd;

Tensor winograd_weight(const Tensor& weight, bool turned) {
  check_floating("weight", weight);
  Sizes sizes = to_vector(weight.sizes()), strides = to_vector(weight.strides());
  STD_TORCH_CHECK(sizes.size() == 4 && sizes[2] == 3 && sizes[3] == 3, "weight: expected shape [K, C, 3, 3], got ",
                  to_string(sizes));
  int64_t first_tap = 0;
  if (turned) {
    std::swap(sizes[0], sizes[1]);
    std::swap(strides[0], strides[1]);
    first_tap = 2 * strides[2] + 2 * strides[3];
    strides[2] = -strides[2];
    strides[3] = -strides[3];
  }
  const int64_t channels = sizes[1], panels = (sizes[0] + PANEL - 1) / PANEL;
  Tensor transformed = torch::stable::new_empty(weight, Sizes{panels, POSITIONS, channels, PANEL}, ScalarType::Float);
  float* u = transformed.mutable_data_ptr<float>();
  with_storage(weight, [&](auto* data) {
    torch::stable::parallel_for(0, panels * channels, 64, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t panel = row / channels, c = row % channels;
        for (int64_t lane = 0; lane < PANEL; ++lane) {
          const int64_t k = panel * PANEL + lane;
          double taps[9] = {}, result[POSITIONS];
          for (int64_t i = 0; i < 9 && k < sizes[0]; ++i)
            taps[i] =
                widen(data[first_tap + k * strides[0] + c * strides[1] + i / 3 * strides[2] + i % 3 * strides[3]]);
          transform_weight(taps, result);
          for (int64_t position = 0; position < POSITIONS; ++position)
            u[((panel * POSITIONS + position) * channels + c) * PANEL + lane] = float(result[position]);
        }
      }
    });
  });
  return transformed;
}

}  // namespace atrous::cpu
