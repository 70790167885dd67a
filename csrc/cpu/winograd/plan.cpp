#include "plan.h"

#include <torch/headeronly/util/Exception.h>

#include "../../convolution.h"

namespace atrous::winograd {

namespace {

constexpr int64_t INPUT_BYTES = 330 * 1024;       // transformed input of a block: a part of the L2 cache
constexpr int64_t OUTPUT_BYTES = 300 * 1024;      // outputs that wait for their last position: another part of L2
constexpr int64_t MIN_TILES = 40;                 // in a block, since each block reads the whole weight
constexpr int64_t MIN_MULTIPLICATIONS = 1 << 18;  // with fewer, a second thread costs more than it saves

// The first rows (columns) of the tiles that cover `size` outputs. The `length` outputs of a tile lie `dilation` apart;
// the tiles of each phase are listed in turn.
std::vector<int64_t> tile_starts(int64_t size, int64_t length, int64_t dilation) {
  std::vector<int64_t> starts;
  for (int64_t phase = 0; phase < std::min(dilation, size); ++phase)
    for (int64_t start = phase; start < size; start += length * dilation) starts.push_back(start);
  return starts;
}

}  // namespace

TileShape check_tile(const Sizes& tile) {
  const bool known = tile == Sizes{2, 2} || tile == Sizes{4, 2} || tile == Sizes{4, 4};
  STD_TORCH_CHECK(known, "tile: expected (2, 2), (4, 2) or (4, 4), got ", to_string(tile));
  return {tile[0], tile[1]};
}

Geometry geometry(const Tensor& input, int64_t out_channels, TileShape tile, bool quantized, const Sizes& padding,
                  const Sizes& dilation) {
  check_floating("input", input);
  STD_TORCH_CHECK(input.scalar_type() != ScalarType::Double,
                  "input: expected dtype float32, float16 or bfloat16, got Double");
  const Sizes sizes = to_vector(input.sizes());
  STD_TORCH_CHECK(sizes.size() == 4 && sizes[1] > 0, "input: expected 4-D (N, C, H, W) with C > 0, got shape ",
                  to_string(sizes));
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
          tile,
          quantized,
          tile_starts(output[2], tile.rows, dilation[0]),
          tile_starts(output[3], tile.columns, dilation[1])};
}

Geometry geometry(const Tensor& input, const Tensor& weight, bool turned, TileShape tile, bool quantized,
                  const Sizes& padding, const Sizes& dilation) {
  const Sizes taps = to_vector(weight.sizes()), sizes = to_vector(input.sizes());
  const bool matches =
      sizes.size() != 4 || (taps.size() == 4 && taps[!turned] == sizes[1] && taps[2] == 3 && taps[3] == 3);
  STD_TORCH_CHECK(matches, "weight: expected shape [K, C, 3, 3] with ", turned ? "K" : "C", " = input's channels, ",
                  sizes.size() == 4 ? sizes[1] : 0, ", got ", to_string(taps));
  const Geometry shape = geometry(input, taps.size() == 4 ? taps[turned] : 0, tile, quantized, padding, dilation);
  STD_TORCH_CHECK(weight.scalar_type() == input.scalar_type(), "weight: expected dtype ",
                  torch::headeronly::toString(input.scalar_type()), " as input, got ",
                  torch::headeronly::toString(weight.scalar_type()));
  return shape;
}

void check_transformed(const Tensor& transformed, const Geometry& shape) {
  const ScalarType dtype = shape.quantized ? ScalarType::Short : ScalarType::Float;
  const Sizes expected =
      transformed_sizes(shape.out_channels, shape.in_channels, shape.tile.positions(), shape.quantized);
  const Sizes sizes = to_vector(transformed.sizes());
  STD_TORCH_CHECK(transformed.scalar_type() == dtype && sizes == expected && transformed.is_contiguous(),
                  "transformed: expected what _winograd_weight returns for the weight, tile and int16: contiguous ",
                  torch::headeronly::toString(dtype), " of shape ", to_string(expected), ", got ",
                  torch::headeronly::toString(transformed.scalar_type()), " of shape ", to_string(sizes), ", strides ",
                  to_string(to_vector(transformed.strides())));
}

Tile tile_at(const Geometry& shape, int64_t index) {
  const int64_t columns = shape.lefts.size(), rows = shape.tops.size();
  return {index / columns / rows, shape.tops[index / columns % rows], shape.lefts[index % columns]};
}

Blocking choose_blocking(const Geometry& shape, int64_t threads) {
  const int64_t tiles = shape.tiles(), positions = shape.tile.positions(), bytes = positions * sizeof(float);
  if (tiles * positions * shape.in_channels * shape.out_channels < MIN_MULTIPLICATIONS) threads = 1;
  const int64_t fitting = std::max<int64_t>(MIN_TILES, INPUT_BYTES / (bytes * shape.v_step()));
  int64_t blocks = ceil_div(tiles, fitting), splits = 1;
  if (4 * tiles < 3 * fitting * threads)
    splits = std::min(threads, shape.panels());
  else
    blocks = ceil_div(blocks, threads) * threads;
  const int64_t block_tiles = ceil_div(tiles, blocks);
  // an even number of panels, since the GEMM takes two at a time
  const int64_t pairs = OUTPUT_BYTES / (2 * bytes * PANEL * block_tiles);
  return {blocks, splits, 2 * std::max<int64_t>(1, pairs)};
}

}  // namespace atrous::winograd
