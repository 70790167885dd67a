// _winograd_weight_gradient: dW of a 3x3 convolution of stride 1 on channels_last tensors, dW = G' [sum over tiles of
// (A dY A') * (B' d B)] G: for each position one GEMM with a sum over tiles, as many fewer products as in the forward.
//
// A block of tiles is transformed by all threads, and then each thread multiplies some positions and output channels,
// whose sums over blocks it alone adds up: the bits do not depend on the number of threads.
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <atomic>
#include <cmath>

#include "../../convolution.h"
#include "../../op_adapter.h"
#include "../channels.h"
#include "instruction_sets.h"
#include "multiply.h"
#include "pixels.h"

namespace atrous::cpu {

namespace {

using namespace winograd;

constexpr int64_t TRANSFORMED_BYTES = 3 << 19;  // a block of tiles takes: a part of the L3 cache
constexpr int64_t SUM_BYTES = 10 << 20;         // the sums of some panels take: another part

template <class S>
struct Job {
  const Geometry& shape;
  Map<S> input, grad;
  const S* zeros;
  int64_t panel, panels;  // the first output panel and their number
  int64_t first, tiles;   // the block
  float *v, *u, *sums;    // v[position][tile][c], u[panel][position][tile][16], sums[position][panel][c][16]

  int64_t v_size() const { return odd_lines(tiles * shape.v_step()); }
  int64_t u_size() const { return tiles * PANEL; }
};

// Transforms one tile of the input (once for all panels) and of the gradient.
template <int M, int N, class V, class S>
void transform_tile(const Job<S>& job, int64_t tile, bool inputs) {
  constexpr int LANES = sizeof(V) / sizeof(float), POSITIONS = (M + 2) * (N + 2);
  const Geometry& shape = job.shape;
  const Tile at = tile_at(shape, job.first + tile);
  const S* pixels[POSITIONS];
  S rest[POSITIONS][LANES];
  if (inputs) {
    find_pixels<M + 2, N + 2>(job.input, at.image, at.top - shape.padding[0], at.left - shape.padding[1],
                              shape.dilation, job.zeros, pixels);
    float* v = job.v + tile * shape.v_step();
    int64_t channel = 0;
    for (; channel + LANES <= shape.in_channels; channel += LANES)
      transform_input<M, N, V>(pixels, channel, v + channel, job.v_size());
    if (channel < shape.in_channels) {
      pad_channels<LANES>(pixels, POSITIONS, channel, shape.in_channels, rest);
      transform_input<M, N, V>(pixels, 0, v + channel, job.v_size());
    }
  }
  find_pixels<M, N>(job.grad, at.image, at.top, at.left, shape.dilation, job.zeros, pixels);
  for (int64_t channel = job.panel * PANEL; channel < (job.panel + job.panels) * PANEL; channel += LANES) {
    const int64_t own = channel - job.panel * PANEL;
    float* u = job.u + own / PANEL * POSITIONS * job.u_size() + tile * PANEL + own % PANEL;
    if (channel >= shape.out_channels) {
      for (int i = 0; i < POSITIONS; ++i) store(u + i * job.u_size(), V{});
    } else if (channel + LANES <= shape.out_channels) {
      transform_output_gradient<M, N, V>(pixels, channel, u, job.u_size());
    } else {
      pad_channels<LANES>(pixels, M * N, channel, shape.out_channels, rest);
      transform_output_gradient<M, N, V>(pixels, 0, u, job.u_size());
    }
  }
}

template <class V, class S>
void transform_tiles(const Job<S>& job, int64_t begin, int64_t end, bool inputs) {
  with_tile(job.shape.tile.positions(), [&](auto rows, auto columns) {
    for (int64_t tile = begin; tile < end; ++tile) transform_tile<rows.value, columns.value, V>(job, tile, inputs);
  });
}

// Adds the block to the sums of one position and two panels.
template <class S>
void multiply_block(const Job<S>& job, int64_t position, int64_t pair) {
  const Geometry& shape = job.shape;
  const int64_t positions = shape.tile.positions(), size = shape.in_channels * PANEL, u_step = positions * job.u_size();
  multiply({job.v + position * job.v_size(), job.u + 2 * pair * u_step + position * job.u_size(),
            job.sums + (position * job.panels + 2 * pair) * size, shape.in_channels, job.tiles,
            std::min<int64_t>(2, job.panels - 2 * pair), 1, u_step, job.u_size(), nullptr, shape.v_step(),
            job.first > 0});
}

// Writes dW of 16 output channels and up to 16 input channels from `channel` on; returns false if one is not finite.
template <int M, int N, class V, class S>
bool finish_channels(const Job<S>& job, int64_t panel, int64_t channel, S* weight) {
  constexpr int LANES = sizeof(V) / sizeof(float);
  const Geometry& shape = job.shape;
  const int64_t step = job.panels * shape.in_channels * PANEL, count = std::min(PANEL, shape.in_channels - channel);
  float taps[9][PANEL][PANEL];
  V special{};
  for (int64_t c = 0; c < count; ++c)
    for (int64_t part = 0; part < PANEL; part += LANES) {
      V g[9];
      const float* sums = job.sums + (panel * shape.in_channels + channel + c) * PANEL + part;
      transform_weight_gradient<M, N>(sums, step, g);
      for (int i = 0; i < 9; ++i) {
        special += g[i] - g[i];
        for (int k = 0; k < LANES; ++k) taps[i][part + k][c] = g[i][k];
      }
    }
  const int64_t first = (job.panel + panel) * PANEL, outputs = std::min(PANEL, shape.out_channels - first);
  for (int64_t k = 0; k < outputs; ++k)
    for (int i = 0; i < 9; ++i)
      for (int64_t c = 0; c < count; ++c)
        weight[((first + k) * 9 + i) * shape.in_channels + channel + c] = narrow<S>(taps[i][k][c]);
  bool finite = true;
  for (int i = 0; i < LANES; ++i) finite &= special[i] == 0;
  return finite;
}

template <class V, class S>
bool finish_panel(const Job<S>& job, int64_t panel, S* weight) {
  bool finite = true;
  with_tile(job.shape.tile.positions(), [&](auto rows, auto columns) {
    for (int64_t channel = 0; channel < job.shape.in_channels; channel += PANEL)
      finite &= finish_channels<rows.value, columns.value, V>(job, panel, channel, weight);
  });
  return finite;
}

// The transforms, compiled for each instruction set and storage type.
#define ATROUS_TRANSFORMS(S)                                                                                        \
  ATROUS_CONTRACT ATROUS_AVX512 void wide_transform(const Job<S>& job, int64_t begin, int64_t end, bool inputs) {   \
    transform_tiles<Vector<16>>(job, begin, end, inputs);                                                           \
  }                                                                                                                 \
  ATROUS_CONTRACT ATROUS_NARROW void narrow_transform(const Job<S>& job, int64_t begin, int64_t end, bool inputs) { \
    transform_tiles<Vector<8>>(job, begin, end, inputs);                                                            \
  }                                                                                                                 \
  ATROUS_CONTRACT ATROUS_AVX512 bool wide_finish(const Job<S>& job, int64_t panel, S* weight) {                     \
    return finish_panel<Vector<16>>(job, panel, weight);                                                            \
  }                                                                                                                 \
  ATROUS_CONTRACT ATROUS_NARROW bool narrow_finish(const Job<S>& job, int64_t panel, S* weight) {                   \
    return finish_panel<Vector<8>>(job, panel, weight);                                                             \
  }
ATROUS_TRANSFORMS(float)
ATROUS_TRANSFORMS(Half)
ATROUS_TRANSFORMS(BFloat16)

template <class Function>
void each(int64_t count, Function&& function) {
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) { function(begin, end); });
}

// Computes the panels of `job`, block by block. Returns false if a gradient is not finite.
template <class S>
bool compute(Job<S> job, int64_t block, S* weight) {
  const int64_t tiles = job.shape.tiles(), pairs = (job.panels + 1) / 2, positions = job.shape.tile.positions();
  for (job.first = 0; job.first < tiles; job.first += block) {
    job.tiles = std::min(block, tiles - job.first);
    const bool inputs = job.panel == 0 || block < tiles;
    each(job.tiles, [&](int64_t begin, int64_t end) {
      wide_vectors ? wide_transform(job, begin, end, inputs) : narrow_transform(job, begin, end, inputs);
    });
    each(positions * pairs, [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item) multiply_block(job, item / pairs, item % pairs);
    });
  }
  std::atomic<bool> finite = true;
  each(job.panels, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel)
      if (!(wide_vectors ? wide_finish(job, panel, weight) : narrow_finish(job, panel, weight))) finite = false;
  });
  return finite;
}

template <class S>
bool compute_all(const Geometry& shape, const S* input, const S* grad, S* weight) {
  const int64_t bytes = shape.tile.positions() * sizeof(float), panels = shape.panels();
  const int64_t together = std::clamp<int64_t>(SUM_BYTES / (bytes * shape.in_channels * PANEL) / 2 * 2, 2, panels + 1);
  const int64_t channels = shape.v_step() + std::min(together, panels) * PANEL;
  const int64_t block = std::min(std::max<int64_t>(64, TRANSFORMED_BYTES / (bytes * channels)), shape.tiles());
  static thread_local std::vector<float> v, u, sums;
  reserve(v, shape.tile.positions() * odd_lines(block * shape.v_step()));
  reserve(u, (together + 1) * shape.tile.positions() * block * PANEL);
  reserve(sums, (together + 1) * shape.tile.positions() * shape.in_channels * PANEL);
  const std::vector<S> zeros(std::max(shape.in_channels, shape.out_channels) + PANEL);
  bool finite = true;
  for (int64_t panel = 0; panel < panels; panel += together) {
    const Job<S> job{shape,
                     {input, shape.height, shape.width, shape.in_channels},
                     {grad, shape.out_height, shape.out_width, shape.out_channels},
                     zeros.data(),
                     panel,
                     std::min(together, panels - panel),
                     0,
                     0,
                     v.data(),
                     u.data(),
                     sums.data()};
    finite &= compute(job, block, weight);
  }
  return finite;
}

// torch's own. dW is passed as the weight: only its shape matters.
Tensor direct(const Tensor& grad, const Tensor& input, const Tensor& weight, const Sizes& padding,
              const Sizes& dilation) {
  AtenTensorHandle results[3] = {};
  const int64_t ones[2] = {1, 1}, zeros[2] = {0, 0};
  const int32_t mask[3] = {0, 1, 0};
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_convolution_backward(grad.get(), input.get(), weight.get(), nullptr, 0, ones, 2,
                                                             padding.data(), 2, dilation.data(), 2, 0, zeros, 2, 1,
                                                             mask, 3, &results[0], &results[1], &results[2]));
  return Tensor(results[1]);
}

}  // namespace

// grad: of the convolution's output. dW has the dtype of the input and is channels_last.
Tensor winograd_weight_gradient(const Tensor& grad, const Tensor& input, const Sizes& padding, const Sizes& dilation,
                                const Sizes& tile) {
  const int64_t out_channels = grad.dim() == 4 ? grad.size(1) : 0;
  const Geometry shape = geometry(input, out_channels, check_tile(tile), false, padding, dilation);
  const Sizes expected{shape.images, out_channels, shape.out_height, shape.out_width};
  STD_TORCH_CHECK(to_vector(grad.sizes()) == expected && grad.scalar_type() == input.scalar_type(),
                  "grad: expected shape ", to_string(expected), " and dtype ",
                  torch::headeronly::toString(input.scalar_type()), ", got ", to_string(to_vector(grad.sizes())),
                  " and ", torch::headeronly::toString(grad.scalar_type()));
  const auto nhwc = memory_format(Order::channels_last);
  const Tensor x = torch::stable::contiguous(input, nhwc), dy = torch::stable::contiguous(grad, nhwc);
  Tensor weight = empty_tensor(input, {out_channels, shape.in_channels, 3, 3}, Order::channels_last);
  bool finite = shape.tiles() > 0;
  with_storage(x, [&](auto* data) {
    using S = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
    if constexpr (!std::is_same_v<S, double>)
      if (finite && out_channels)
        finite =
            compute_all(shape, data, static_cast<const S*>(dy.data_ptr()), static_cast<S*>(weight.mutable_data_ptr()));
  });
  return finite ? weight : direct(dy, x, weight, padding, dilation);
}

STABLE_TORCH_LIBRARY_IMPL(atrous, CPU, m) { m.impl("_winograd_weight_gradient", TORCH_BOX(&winograd_weight_gradient)); }

}  // namespace atrous::cpu
