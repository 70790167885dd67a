// Emulates the sm_80 convolution on the host and compares it with a convolution in fp64: each block loads x and the
// weight through the kernels' own iterators, the main loop is plain sums, and the kernels' own functions compute the
// epilogue. It checks the alignment of each load, and does not cover the copies to shared memory, the tensor cores and
// the stores. test_cuda_conv_gate.py runs it.
#include <cmath>
#include <cstdio>
#include <vector>

#include "conv/sm80.cuh"
#include "conv_case.h"

namespace {

int64_t misaligned = 0;  // loads so far at addresses that are no multiple of their size, which a GPU refuses

// Loads what a block's threads load in one step of the reduction: rows of DEPTH elements.
template <class Iterator, class Element, int DEPTH>
void load_step(std::vector<Iterator>& threads, std::vector<Element>& tile) {
  using Map = typename Iterator::ThreadMap;
  constexpr int ACCESS = Iterator::AccessType::kElements;
  for (size_t thread = 0; thread < threads.size(); ++thread) {
    Iterator& iterator = threads[thread];
    const auto first = Map::initial_offset(int(thread));
    iterator.set_iteration_index(0);
    for (int strided = 0; strided < Map::Iterations::kStrided; ++strided)
      for (int access = 0; access < Iterator::kAccessesPerVector; ++access, ++iterator) {
        misaligned += iterator.valid() && reinterpret_cast<uintptr_t>(iterator.get()) % sizeof(*iterator.get());
        for (int i = 0; i < ACCESS; ++i) {
          const int row = first.strided() + strided * Map::Delta::kStrided;
          const Element* from = reinterpret_cast<const Element*>(iterator.get());
          tile[row * DEPTH + first.contiguous() + access * ACCESS + i] = iterator.valid() ? from[i] : Element(0);
        }
      }
    iterator.advance();
  }
}

// The accumulators of one block after the kernel's main loop.
template <class Shape, class KernelTypes>
std::vector<float> main_loop(const typename KernelTypes::Params& params, int tile_m, int tile_n, int tile_k) {
  using Element = typename Shape::Element;
  constexpr int M = Shape::Block::kM, N = Shape::Block::kN, DEPTH = Shape::Block::kK;
  std::vector<typename KernelTypes::Kernel::Mma::IteratorA> a;
  std::vector<typename KernelTypes::Kernel::Mma::IteratorB> b;
  for (int thread = 0; thread < KernelTypes::THREADS; ++thread) {
    a.emplace_back(params.iterator_A, params.problem_size, params.ptr_A, thread,
                   cutlass::MatrixCoord(tile_m * M, tile_k * DEPTH));
    b.emplace_back(params.iterator_B, params.problem_size, params.ptr_B, thread,
                   cutlass::MatrixCoord(tile_k * DEPTH, tile_n * N));
  }
  std::vector<Element> x(M * DEPTH), w(N * DEPTH);
  std::vector<float> sums(M * N);
  for (int i = 0; i < params.gemm_k_iterations; ++i) {
    load_step<typename KernelTypes::Kernel::Mma::IteratorA, Element, DEPTH>(a, x);
    load_step<typename KernelTypes::Kernel::Mma::IteratorB, Element, DEPTH>(b, w);
    for (int m = 0; m < M; ++m)
      for (int n = 0; n < N; ++n)
        for (int d = 0; d < DEPTH; ++d) sums[m * N + n] += float(x[m * DEPTH + d]) * float(w[n * DEPTH + d]);
  }
  return sums;
}

template <class Shape>
int check(const char* name, const Case& c, int splits) {
  using Element = typename Shape::Element;
  using KernelTypes = ImplicitGemm<Shape, EpilogueOutput<Shape, Slope::tensor, Residual::before>>;
  constexpr int M = Shape::Block::kM, N = Shape::Block::kN, COUNT = Shape::VECTOR;
  const TestConv<Element> conv(c);
  const ConvProblem p = conv.problem();
  if (const std::string reasons = conv_reasons(p); !reasons.empty()) {
    std::printf("%s: refused: %s\n", name, reasons.c_str());
    return 1;
  }
  const typename KernelTypes::Params params = parameters<KernelTypes>(p, splits, nullptr);
  const cutlass::gemm::GemmCoord tiles = params.grid_tiled_shape;
  double worst = 0;
  int64_t seen = 0, bad = 0;
  for (int tile_m = 0; tile_m < tiles.m(); ++tile_m)
    for (int tile_n = 0; tile_n < tiles.n(); ++tile_n) {
      std::vector<float> sums = main_loop<Shape, KernelTypes>(params, tile_m, tile_n, 0);
      for (int split = 1; split < tiles.k(); ++split) {
        const std::vector<float> slice = main_loop<Shape, KernelTypes>(params, tile_m, tile_n, split);
        for (size_t i = 0; i < sums.size(); ++i) sums[i] += slice[i];
      }
      for (int64_t m = 0; m < M && tile_m * M + m < p.pixels(); ++m)
        for (int64_t n = 0; n < N && tile_n * N + n < p.k; n += COUNT) {
          EpilogueValues<Element, COUNT, Slope::tensor, Residual::before> values;
          typename decltype(values)::Accumulators z;
          typename decltype(values)::Outputs residual;
          const int64_t pixel = tile_m * M + m, first = tile_n * N + n;
          for (int i = 0; i < COUNT; ++i) {
            const Channel<float> channel = p.vectors.at<float>(first + i);
            values.scale[i] = channel.affine.scale, values.shift[i] = channel.affine.shift;
            values.slope[i] = channel.slope;
            z[i] = sums[m * N + n + i];
            residual[i] = conv.residual.data[pixel * p.k + first + i];
          }
          const auto y = values(z, residual);
          for (int i = 0; i < COUNT; ++i, ++seen) {
            const double error = conv.error(double(float(y[i])), pixel, first + i);
            bad += !(error <= 2);  // counts NaN too
            worst = std::fmax(worst, error);
          }
        }
    }
  const bool good = bad == 0 && misaligned == 0 && seen == p.pixels() * p.k && tiles.k() == splits;
  std::printf("%s %s: %d splits, %lld elements, worst %.2f, %lld misaligned loads\n", good ? "ok" : "WRONG", name,
              splits, (long long)seen, worst, (long long)misaligned);
  misaligned = 0;
  return good ? 0 : 1;
}

// Checks the tile and the splits of a 3x3 convolution in fp16 on a GPU of 132 multiprocessors.
int check_plan(int64_t n, int64_t size, int64_t c, int64_t k, Tile tile, int splits) {
  ConvProblem p{};
  p.type = ScalarType::Half;
  p.n = n, p.h = p.w = p.p = p.q = size, p.c = p.x_strides[0] = c, p.k = k, p.r = p.s = 3;
  const ConvPlan plan = conv_plan(p, {90, 132, false, ""});
  const size_t bytes = splits > 1 ? size_t(splits) * p.pixels() * k * 4 : 0;
  const bool good = plan.tile == tile && plan.splits == splits && plan.workspace_bytes == bytes && !plan.tma;
  if (!good)
    std::printf("WRONG plan %lld x %lld: tile %d, %d splits\n", (long long)n, (long long)size, int(plan.tile),
                plan.splits);
  return !good;
}

// Checks whether a stem is computed by the tile that loads 8 bytes.
int check_stem_plan(const char* name, const Case& c, bool stem) {
  const ConvPlan plan = conv_plan(TestConv<cutlass::half_t>(c).problem(), {90, 132, true, ""});
  const bool good = (plan.tile == Tile::stem) == stem;
  if (!good) std::printf("WRONG plan of the stem %s: tile %d\n", name, int(plan.tile));
  return !good;
}

// Checks that a problem is refused with these words among the reasons.
int check_refused(const char* words, void (*change)(ConvProblem&)) {
  ConvProblem p{};
  p.type = ScalarType::BFloat16;
  p.n = 2, p.h = p.w = p.p = p.q = 8, p.c = p.k = 64, p.r = p.s = 3, p.groups = 1, p.x_strides[1] = 8 * 64;
  if (!conv_reasons(p).empty()) std::printf("WRONG: refused: %s\n", conv_reasons(p).c_str());
  change(p);
  const bool good = conv_reasons(p).find(words) != std::string::npos;
  if (!good) std::printf("WRONG: expected '%s' among the reasons, got '%s'\n", words, conv_reasons(p).c_str());
  return !good;
}

// Checks that a named tile is used, or refused with these words, and that no other is used.
int check_named_tile(const char* name, ScalarType type, int64_t c, Tile tile, const char* words) {
  ConvProblem p{};
  p.type = type;
  p.n = 8, p.h = p.w = p.p = p.q = 14, p.c = p.x_strides[0] = c, p.k = 64, p.r = p.s = 3;
  const Target target{90, 132, false, name};
  const std::string reason = refusal(p, target);
  const std::string expected = std::string(name) + " cannot compute this convolution: " + words;
  const bool good =
      *words ? reason.find(expected) != std::string::npos : reason.empty() && conv_plan(p, target).tile == tile;
  if (!good) std::printf("WRONG tile %s of %lld channels: '%s'\n", name, (long long)c, reason.c_str());
  return !good;
}

int check_named_tiles() {
  int wrong = 0;
  for (ScalarType type : {ScalarType::Half, ScalarType::BFloat16, ScalarType::Float}) {
    const char* const wide = type == ScalarType::Float ? "float32 has the tiles" : "";
    wrong += check_named_tile("mma-128x128", type, 64, Tile::t128x128, wide) +
             check_named_tile("mma-64x64", type, 64, Tile::t64x64, "") +
             check_named_tile("mma-128x64", type, 64, Tile::t128x64, "");
  }
  for (const char* name : {"wgmma-256x128", "wgmma-128x128", "wgmma-128x64"})
    wrong += check_named_tile(name, ScalarType::Half, 64, Tile::stem, "wgmma is in libraries built for 9.0a");
  wrong +=
      check_named_tile("wgmma-128x64", ScalarType::Float, 64, Tile::stem, "wgmma is used for float16 and bfloat16");
  wrong += check_named_tile("mma-128x64", ScalarType::Half, 28, Tile::stem, "its input is read by 4 channels");
  const char* const name = conv_tile_name("mma-64x64");
  wrong += !name || std::string(name) != "mma-64x64" || *conv_tile_name("") || conv_tile_name("64x64");
  return wrong;
}

int check_host() {
  int wrong = check_plan(256, 56, 64, 64, Tile::t128x64, 1) + check_plan(256, 14, 256, 256, Tile::t128x128, 1) +
              check_plan(1, 56, 64, 64, Tile::t64x64, 1) + check_plan(1, 14, 256, 256, Tile::t64x64, 8) +
              check_plan(1, 7, 512, 512, Tile::t64x64, 16) + check_plan(32, 7, 512, 512, Tile::t128x128, 4) +
              check_plan(16, 14, 256, 256, Tile::t128x128, 4) + check_plan(4, 14, 256, 256, Tile::t128x128, 8) +
              check_plan(32, 224, 28, 64, Tile::stem, 1);
  wrong += conv_channels(3, ScalarType::Half, 1) != 4 || conv_channels(5, ScalarType::BFloat16, 1) != 8 ||
           conv_channels(3, ScalarType::Half, 2) != 8 || conv_channels(5, ScalarType::Float, 1) != 8;
  wrong += check_refused("groups: expected 1, got 2", [](ConvProblem& p) { p.groups = 2; });
  wrong += check_refused("input: expected channels_last, got NCHW", [](ConvProblem& p) { p.channels_first = true; });
  wrong += check_refused("got float64", [](ConvProblem& p) { p.type = ScalarType::Double; });
  wrong += check_refused("multiple of 8 output channels, got 21", [](ConvProblem& p) { p.k = 21; });
  wrong += check_refused("32 x 32, got 33", [](ConvProblem& p) { p.r = 33; });
  wrong += check_refused("2 GiB, padding included", [](ConvProblem& p) { p.padding[0] = int64_t(1) << 30; });
  wrong += check_refused("2 GiB, padding included", [](ConvProblem& p) { p.padding[1] = int64_t(1) << 20; });
  wrong += check_refused("2 GiB, padding included", [](ConvProblem& p) { p.n = int64_t(1) << 18; });
  wrong += check_refused("output: expected less than 2 GiB, got 8 GiB",
                         [](ConvProblem& p) { p.n = int64_t(1) << 20, p.h = p.w = 1; });
  wrong += check_refused("weight: expected less than 2 GiB, got 9 GiB", [](ConvProblem& p) { p.k = int64_t(1) << 23; });
  return wrong;
}

}  // namespace

int main() {
  using Half = cutlass::half_t;
  const Case plain{2, 9, 11, 24, 40, 3, 3, {1, 1}, {1, 1}, {1, 1}, 0};
  const Case dilated{1, 17, 13, 104, 72, 3, 2, {2, 1}, {3, 2}, {2, 4}, 0};
  const Case pointwise{3, 7, 5, 64, 136, 1, 1, {2, 2}, {0, 0}, {1, 1}, 0};
  const Case stem{2, 20, 19, 4, 64, 7, 7, {2, 2}, {3, 3}, {1, 1}, 0};
  const Case far{1, 21, 21, 16, 64, 3, 3, {1, 1}, {6, 6}, {6, 6}, INFINITY};
  Case poisoned = stem, wide = stem;
  poisoned.poison = NAN;
  wide.dilation[0] = 2, wide.r = 3, wide.s = 5, wide.padding[1] = 4, wide.stride[1] = 3;
  int wrong = check_host() + check_named_tiles();
  using Small = Shape<Half, 64, 64, 32, 32, 32, 5>;
  for (const Case& c : {plain, dilated, pointwise, far}) {
    wrong += check<Shape<Half, 128, 128, 32, 64, 64, 4>>("fp16 128x128", c, 1);
    wrong += check<Shape<Half, 128, 64, 32, 64, 32, 4>>("fp16 128x64", c, 1);
    wrong += check<Shape<float, 128, 64, 16, 64, 32, 4>>("fp32 128x64", c, 1);
    for (int splits : {1, 2, 3}) wrong += check<Small>("fp16 64x64", c, splits);
    wrong += check<Shape<Half, 128, 128, 32, 64, 64, 4>>("fp16 128x128", c, 2);
    for (int splits : {1, 5}) wrong += check<Shape<float, 64, 64, 16, 32, 32, 5>>("fp32 64x64", c, splits);
  }
  Case patches{2, 33, 32, 4, 64, 4, 4, {4, 4}, {0, 0}, {1, 1}, 0};  // rows of the kernel that begin at 16 bytes
  Case odd = patches, padded = patches;                             // and at 8, in every other row
  odd.w = 33;
  padded.w = 31, padded.padding[0] = padded.padding[1] = 1, padded.stride[0] = padded.stride[1] = 2;
  wrong += check_stem_plan("of patches", patches, false) + check_stem_plan("of odd rows", odd, true) +
           check_stem_plan("of padded odd rows", padded, true);
  wrong += check<Shape<Half, 128, 64, 32, 64, 32, 4>>("fp16 patches", patches, 1);
  for (const Case& c : {stem, poisoned, wide, patches, odd, padded}) {
    wrong += check<Shape<Half, 128, 64, 32, 64, 32, 4, STEM_CHANNELS>>("fp16 stem", c, 1);
    wrong += check<Shape<float, 128, 64, 16, 64, 32, 4>>("fp32 stem", c, 1);
  }
  return wrong;
}
