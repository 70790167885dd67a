#include "plan.h"

#include <torch/headeronly/util/Exception.h>

#include "../../convolution.h"

namespace atrous::winograd {

namespace {

constexpr int64_t INPUT_BYTES = 400 * 1024;       // transformed input of a block: a part of the L2 cache
constexpr int64_t OUTPUT_BYTES = 200 * 1024;      // outputs that wait for their last position: another part of L2
constexpr int64_t MIN_TILES = 48;                 // in a block, since each block reads the whole weight
constexpr int64_t MIN_MULTIPLICATIONS = 1 << 18;  // with fewer, a second thread costs more than it saves

// The first rows (columns) of the tiles that cover `size` outputs. A tile has two outputs, `dilation` apart; the tiles
// of each phase are listed in turn.
std::vector<int64_t> tile_starts(int64_t size, int64_t dilation) {
  std::vector<int64_t> starts;
  for (int64_t phase = 0; phase < std::min(dilation, size); ++phase)
    for (int64_t start = phase; start < size; start += 2 * dilation) starts.push_back(start);
  return starts;
}

}  // namespace

Geometry geometry(const Tensor& input, int64_t out_channels, const Sizes& padding, const Sizes& dilation) {
  check_floating("input", input);
  STD_TORCH_CHECK(input.scalar_type() != ScalarType::Double,
                  "input: expected dtype float32, float16 or bfloat16, got Double");
  const Sizes sizes = to_vector(input.sizes());
  STD_TORCH_CHECK(sizes.size() == 4 && sizes[1] > 0, "input: expected 4-D (N, C, H, W) with C > 0, got shape ",
                  to_string(sizes));
  STD_TORCH_CHECK(out_channels >= 0, "out_channels: expected at least 0, got ", out_channels);
  const auto pads = check_pair("padding", padding, 0), steps = check_pair("dilation", dilation, 1);
  const Sizes output = convolution_sizes(sizes, {out_channels, sizes[1], 3, 3}, {1, 1}, padding, dilation);
  return {sizes[0],
          sizes[1],
          sizes[2],
          sizes[3],
          out_channels,
          output[2],
          output[3],
          pads,
          steps,
          tile_starts(output[2], dilation[0]),
          tile_starts(output[3], dilation[1])};
}

void check_weight(const Tensor& transformed, const Geometry& shape) {
  check_floating("transformed", transformed);
  const Sizes expected{shape.panels(), POSITIONS, shape.in_channels, PANEL}, sizes = to_vector(transformed.sizes());
  STD_TORCH_CHECK(sizes == expected && transformed.scalar_type() == ScalarType::Float && transformed.is_contiguous(),
                  "transformed: expected what _winograd_weight returns for out_channels ", shape.out_channels,
                  " and the input's channels, contiguous float32 of shape ", to_string(expected), ", got ",
                  torch::headeronly::toString(transformed.scalar_type()), " of shape ", to_string(sizes), ", strides ",
                  to_string(to_vector(transformed.strides())));
}

Tile tile_at(const Geometry& shape, int64_t image, int64_t top, int64_t left) {
  Tile tile{image, {-1, -1, -1, -1}};
  for (int i = 0; i < 4; ++i) {
    const int64_t y = top + (i / 2) * shape.dilation[0], x = left + (i % 2) * shape.dilation[1];
    if (y < shape.out_height && x < shape.out_width)
      tile.pixels[i] = (image * shape.out_height + y) * shape.out_width + x;
  }
  return tile;
}

Blocking choose_blocking(const Geometry& shape, int64_t threads) {
  const int64_t tiles = shape.tiles(), bytes = POSITIONS * sizeof(float);
  if (tiles * POSITIONS * shape.in_channels * shape.out_channels < MIN_MULTIPLICATIONS) threads = 1;
  const int64_t fitting = std::max<int64_t>(MIN_TILES, INPUT_BYTES / (bytes * shape.tile_step()));
  int64_t blocks = ceil_div(tiles, fitting), splits = 1;
  if (4 * tiles < 3 * fitting * threads)
    splits = std::min(threads, shape.panels());
  else
    blocks = ceil_div(blocks, threads) * threads;
  const int64_t block_tiles = ceil_div(tiles, blocks);
  return {blocks, splits, std::max<int64_t>(2, OUTPUT_BYTES / (bytes * PANEL * block_tiles))};
}

}  // namespace atrous::winograd
