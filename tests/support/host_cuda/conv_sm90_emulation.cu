// Emulates the sm_90 convolution on the host and compares it with a convolution in fp64. A stand-in for the driver
// records the TMA descriptors that CUTLASS encodes. The kernel's gathers, copies and stores by those descriptors are
// done element by element as the driver's manual specifies; the main loop is plain sums; our epilogue node runs for
// each of the 128 or 256 threads; the persistent kernel's blocks compute their tiles in its own order. It does not
// cover TMA itself, wgmma and barriers. test_cuda_conv_gate.py runs it.
#include <algorithm>
#include <cstdio>

#include "conv/sm90.cuh"
#include "conv_case.h"
#include "tma_driver.h"

namespace {

using cute::_, cute::_0;
using Half = cutlass::half_t;

// Loads a tile of x: a box of pixels by 64 channels at (c, (w, h), n, (s, r)).
template <class Coordinate>
std::vector<Half> load_x(const Descriptor& d, const Coordinate& at) {
  const auto [c, w, h, n, s, r] = cute::flatten(at);
  std::vector<Half> tile(d.box[1] * 64);
  const int64_t first = c, channels = d.sizes[0];
  gather(d, w, h, n, s, r, [&](int64_t pixel, const char* from) {
    for (int64_t i = 0; from && i < 64 && first + i < channels; ++i)
      tile[pixel * 64 + i] = reinterpret_cast<const Half*>(from)[first + i];
  });
  return tile;
}

// Loads a block's box of the weight at (c, k, s, r) into the rows of a tile of 64 input channels.
template <class Coordinate>
void load_weight(const Descriptor& d, const Coordinate& at, Half* rows) {
  const auto [c, k, s, r] = cute::flatten(at);
  for (int64_t i = 0; i < d.box[1] && k + i < d.sizes[1]; ++i)
    for (int64_t j = 0; j < d.box[0] && c + j < d.sizes[0]; ++j)
      rows[i * d.box[0] + j] = *reinterpret_cast<const Half*>(d.data + (c + j) * d.strides[0] + (k + i) * d.strides[1] +
                                                              s * d.strides[2] + r * d.strides[3]);
}

// Loads a step's N output channels by 64 input channels. Each block of the cluster copies its part to all of them.
template <class KernelTypes, int N, class Main, class Global>
std::vector<Half> load_weights(const Main& main, const Descriptor& d, const Global& step, bool& good) {
  using Shared = typename KernelTypes::Main::SmemLayoutB;
  static std::vector<Half> memory(cute::cosize_v<Shared>);
  const auto stages = cute::make_tensor(cute::make_smem_ptr(memory.data()), Shared{});
  std::vector<Half> tile(N * 64);
  for (int rank = 0; rank < KernelTypes::GROUPS; ++rank) {
    const int row = rank * (N / KernelTypes::GROUPS);
    const auto slice = main.tma_load_b.get_slice(rank);
    const auto to = slice.partition_D(stages);
    good &= cute::raw_pointer_cast(&to(_0{})) == cute::raw_pointer_cast(&stages(row, _0{}, _0{}));
    load_weight(d, slice.partition_S(step)(_0{}), tile.data() + row * 64);
  }
  return tile;
}

// The fields of CUTLASS's ConsumerStoreArgs that our epilogue node reads.
template <class EpilogueTile, class Copy, class Added>
struct StoreArgs {
  EpilogueTile epi_tile;
  Copy tiled_copy;
  int thread_idx;
  const Added& tCrC;
};

// Computes the outputs of a block from its accumulators and residuals, both M x N, by our epilogue node.
template <class KernelTypes, int M, int N>
void finish(const std::vector<float>& sums, const std::vector<Half>& residual_tile, TileChannels<N>& channels,
            std::vector<Half>& outputs) {
  using Epilogue = typename KernelTypes::Epilogue;
  const typename Epilogue::EpilogueTile tile;
  const auto atom =
      cute::make_tiled_copy_C_atom(typename Epilogue::CopyAtomC{}, typename KernelTypes::Main::TiledMma{});
  const auto copy = cute::make_tiled_copy_S(cute::Copy_Atom<typename Epilogue::CopyOpR2S, Half>{}, atom);
  const auto block = cute::make_identity_tensor(cute::make_shape(cute::Int<M>{}, cute::Int<N>{}));
  constexpr int COUNT = Epilogue::DispatchPolicy::FragmentSize;
  for (int thread = 0; thread < M; ++thread) {  // one consumer thread per pixel
    const auto at = copy.get_slice(thread).partition_S(cute::flat_divide(block, tile));  // (elements, m, n, tile m, n)
    for (int m = 0; m < cute::size<3>(at); ++m)
      for (int n = 0; n < cute::size<4>(at); ++n) {
        const auto mine = at(_, _, _, m, n);
        std::vector<Half> thread_residuals(cute::size(mine));
        for (int i = 0; i < cute::size(mine); ++i)
          thread_residuals[i] = residual_tile[cute::get<0>(mine(i)) * N + cute::get<1>(mine(i))];
        const auto view = cute::make_tensor(thread_residuals.data(), cute::make_layout(cute::size(mine)));
        auto store = Epilogue::FusionCallbacks::template store<true>(
            StoreArgs<decltype(tile), decltype(copy), decltype(view)>{tile, copy, thread, view}, channels);
        for (int fragment = 0; fragment < cute::size(mine) / COUNT; ++fragment) {
          cutlass::Array<float, COUNT> z;
          for (int i = 0; i < COUNT; ++i) {
            const auto where = mine(fragment * COUNT + i);
            z[i] = sums[cute::get<0>(where) * N + cute::get<1>(where)];
          }
          const auto y = store.visit(z, fragment, m, n);
          for (int i = 0; i < COUNT; ++i) {
            const auto where = mine(fragment * COUNT + i);
            outputs[cute::get<0>(where) * N + cute::get<1>(where)] = y[i];
          }
        }
      }
  }
}

// Calls move(index in the tile, address) for the elements of an M x N tile that the epilogue loads or stores by `map`.
template <class KernelTypes, int M, int N, class Map, class Sizes, class Move>
void each_box(const Map& map, const Sizes& sizes, int tile_m, int tile_n, Move move) {
  const typename KernelTypes::Epilogue::EpilogueTile box;
  const auto [pixels, k, ignored, images] = sizes;
  const auto whole = cute::coalesce(map.get_tma_tensor(cute::make_shape(pixels, k, images)),
                                    cute::Shape<cute::Int<M>, cute::Int<N>>{});
  const auto block =
      cute::local_tile(whole, cute::Shape<cute::Int<M>, cute::Int<N>>{}, cute::make_coord(tile_m, tile_n));
  const auto boxes = cute::flat_divide(block, box);
  const Descriptor& d = descriptor(map.get_tma_descriptor());
  constexpr int ROWS = cute::size<0>(box), COLUMNS = cute::size<1>(box);
  if (d.box[0] != COLUMNS || d.box[1] != ROWS) std::printf("WRONG box of the output\n");
  for (int m = 0; m < cute::size<2>(boxes); ++m)
    for (int n = 0; n < cute::size<3>(boxes); ++n) {
      const auto [c, w, h, image, s, r] = cute::flatten(boxes(_0{}, _0{}, m, n));
      const int64_t first = c, channels = d.sizes[0];
      gather(d, w, h, image, s, r, [&, m, n](int64_t pixel, char* at) {
        for (int64_t i = 0; at && i < COLUMNS && first + i < channels; ++i)
          move((m * ROWS + pixel) * N + n * COLUMNS + i, reinterpret_cast<Half*>(at) + first + i);
      });
    }
}

// Calls function(pixel tile, channel tile) for every tile, in the order of the kernel's blocks on a GPU of 6
// multiprocessors.
template <class KernelTypes, class Function>
bool for_each_tile(const typename KernelTypes::Params& params, Function function) {
  const dim3 grid = KernelTypes::grid(params, 6);
  bool good = grid.z == 1;
  if constexpr (KernelTypes::GROUPS == 1) {
    for (int m = 0; m < int(grid.x); ++m)
      for (int n = 0; n < int(grid.y); ++n) function(m, n);
  } else {
    const auto order = KernelTypes::Kernel::order(params);
    good &= grid.x % 2 == 0 && grid.x <= 6 && grid.y == 1 && int(grid.x) / 2 <= order.pairs();
    for (int block = 0; block < int(grid.x); ++block)
      for (int pair = block / 2; pair < order.pairs(); pair += grid.x / 2)
        function(order.pixel(pair, block % 2), order.channel(pair));
  }
  return good;
}

template <int M, int N, Slope SLOPE = Slope::tensor, Residual RESIDUAL = Residual::before>
int check(const char* name, const Case& c) {
  using KernelTypes = sm90::ImplicitGemm<Half, M, N, SLOPE, RESIDUAL>;
  constexpr bool ADDS = RESIDUAL != Residual::none;
  const TestConv<Half> conv(c, SLOPE, RESIDUAL);
  const ConvProblem p = conv.problem();
  const auto arguments = sm90::arguments<KernelTypes>(p);
  descriptors.clear();
  atrous::cuda::driver_error = CUDA_SUCCESS;
  const typename KernelTypes::Params params = KernelTypes::Kernel::to_underlying_arguments(arguments, nullptr);
  bool good = conv_reasons(p).empty() && KernelTypes::Kernel::can_implement(arguments) &&
              atrous::cuda::driver_error == CUDA_SUCCESS && descriptors.size() == 3 + ADDS;
  const auto sizes = params.problem_shape;
  good &= cute::get<0>(sizes) == p.pixels() && cute::get<1>(sizes) == p.k;

  const auto& main = params.mainloop;
  using Tile = typename KernelTypes::Tile;
  const auto x =
      cute::local_tile(main.tma_load_a.get_tma_tensor(cute::make_shape(cute::get<0>(sizes), cute::get<2>(sizes))),
                       Tile{}, cute::make_coord(_, _, _), cute::Step<cute::_1, cute::Underscore, cute::_1>{});
  const auto weight =
      cute::local_tile(main.tma_load_b.get_tma_tensor(cute::make_shape(cute::get<1>(sizes), cute::get<2>(sizes))),
                       Tile{}, cute::make_coord(_, _, _), cute::Step<cute::Underscore, cute::_1, cute::_1>{});
  const Descriptor &of_x = descriptor(main.tma_load_a.get_tma_descriptor()),
                   &of_weight = descriptor(main.tma_load_b.get_tma_descriptor());
  good &= of_x.im2col && of_x.box[0] == 64 && of_x.box[1] == M && !of_weight.im2col && of_weight.box[0] == 64 &&
          of_weight.box[1] == N / KernelTypes::GROUPS && of_weight.box[2] == 1 && of_weight.box[3] == 1;

  const auto steps = cute::shape<3>(x);  // which make_coord_iterator refers to
  std::vector<int> stored(p.pixels() * p.k);
  good &= for_each_tile<KernelTypes>(params, [&](int tile_m, int tile_n) {
    std::vector<float> sums(M * N);
    auto step = cute::make_coord_iterator(steps);
    for (int i = 0; i < cute::size(steps); ++i, ++step) {
      const auto a = load_x(of_x, x(_0{}, _0{}, tile_m, *step));
      const auto b = load_weights<KernelTypes, N>(main, of_weight, weight(_, _, tile_n, *step), good);
      for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n)
          for (int d = 0; d < 64; ++d) sums[m * N + n] += float(a[m * 64 + d]) * float(b[n * 64 + d]);
    }
    TileChannels<N> channels;
    for (int thread = 0; thread < 32; ++thread) channels.load(p.vectors, tile_n * N, p.k, thread, 32);
    std::vector<Half> residual_tile(M * N), outputs(M * N);
    if constexpr (ADDS)
      each_box<KernelTypes, M, N>(params.epilogue.tma_load_c, sizes, tile_m, tile_n,
                                  [&](int64_t at, Half* from) { residual_tile[at] = *from; });
    finish<KernelTypes, M, N>(sums, residual_tile, channels, outputs);
    each_box<KernelTypes, M, N>(params.epilogue.tma_store_d, sizes, tile_m, tile_n, [&](int64_t at, Half* to) {
      *to = outputs[at];
      ++stored.at(to - conv.y.data);
    });
  });
  double worst = 0;
  int64_t bad = 0;
  for (int64_t pixel = 0; pixel < p.pixels(); ++pixel)
    for (int64_t k = 0; k < p.k; ++k) {
      const double error = conv.error(double(float(conv.y.data[pixel * p.k + k])), pixel, k);
      bad += !(error <= 2) || stored[pixel * p.k + k] != 1;  // counts NaN too
      worst = std::fmax(worst, error);
    }
  std::printf("%s %s %dx%d: %zu elements, %lld of them wrong, worst %.2f\n", good && !bad ? "ok" : "WRONG", name, M, N,
              stored.size(), (long long)bad, worst);
  return !(good && !bad);
}

// Checks that conv_plan accepts a wgmma tile exactly if CUTLASS and the driver do, for corners and offsets around their
// limits.
int check_plans() {
  int wrong = 0, accepted = 0, tried = 0;
  using KernelTypes = sm90::ImplicitGemm<Half, 128, 64, Slope::tensor, Residual::before>;
  for (int64_t c : {8, 40, 48, 64, 72, 88, 96, 136, 144})
    for (int64_t kernel : {1, 2, 3, 32})
      for (int64_t padding : {0, 1, 127, 128, 129, 200})
        for (int64_t dilation : {1, 4, 8, 9, 64, 127, 128, 129, 254, 255, 300})
          for (int64_t stride : {1, 2, 8, 9}) {
            ConvProblem p{};
            p.type = ScalarType::BFloat16;
            p.n = 64, p.c = c, p.h = p.w = 1 + std::max<int64_t>((kernel - 1) * dilation - padding, 8), p.k = 64;
            p.r = kernel, p.s = 1, p.groups = 1;
            p.x_strides[0] = c, p.x_strides[1] = p.w * c, p.x_strides[2] = p.h * p.w * c;
            p.x = p.weight = p.residual = p.y = nullptr;
            p.stride[0] = stride, p.padding[0] = padding, p.dilation[0] = dilation;
            p.stride[1] = p.dilation[1] = 1;
            if (c == 72)
              std::swap(p.r, p.s), std::swap(p.stride[0], p.stride[1]), std::swap(p.padding[0], p.padding[1]),
                  std::swap(p.dilation[0], p.dilation[1]);
            for (int64_t* of : {&p.p, &p.q}) {
              const int i = of == &p.q;
              *of = ((i ? p.w : p.h) + 2 * p.padding[i] - p.dilation[i] * ((i ? p.s : p.r) - 1) - 1) / p.stride[i] + 1;
            }
            if (p.p < 1 || p.q < 1 || !conv_reasons(p).empty()) continue;
            const auto arguments = sm90::arguments<KernelTypes>(p);
            atrous::cuda::driver_error = CUDA_SUCCESS;
            bool supported = KernelTypes::Kernel::can_implement(arguments);
            if (supported) KernelTypes::Kernel::to_underlying_arguments(arguments, nullptr);
            supported &= atrous::cuda::driver_error == CUDA_SUCCESS;
            const bool planned = refusal(p, {90, 1, true, "wgmma-128x64"}).empty();
            ++tried, accepted += planned;
            wrong += conv_plan(p, {90, 1, true, ""}).tile == Tile::t256x128;  // not yet measured
            wrong += refusal(p, {90, 1, false, "wgmma-128x64"}).empty() ||
                     (!supported && conv_plan(p, {90, 1, true, ""}).tma);
            if (planned == supported) continue;
            ++wrong;
            std::printf("WRONG plan: %lld channels, kernel %lld, padding %lld, dilation %lld, stride %lld: %d\n",
                        (long long)c, (long long)kernel, (long long)padding, (long long)dilation, (long long)stride,
                        planned);
          }
  ConvProblem p{};
  p.n = 64, p.h = p.w = p.p = p.q = 56, p.c = p.k = 64, p.r = p.s = 3, p.groups = 1;
  for (int i = 0; i < 2; ++i) p.stride[i] = p.dilation[i] = p.padding[i] = 1;
  const auto tma = [&](ScalarType type, int64_t c, int64_t n) {
    p.type = type, p.c = p.x_strides[0] = c, p.n = n;
    p.x_strides[1] = p.w * c, p.x_strides[2] = p.h * p.w * c;
    return conv_plan(p, {90, 132, true, ""}).tma;
  };
  const auto named = [&](const char* name, Tile tile, bool tma) {
    const ConvPlan plan = conv_plan(p, {90, 132, true, name});
    return plan.tile == tile && plan.tma == tma && plan.multiprocessors == 132 && (plan.splits == 1 || !tma);
  };
  wrong += !tma(ScalarType::Half, 256, 64) || !named("wgmma-256x128", Tile::t256x128, true) ||
           !named("wgmma-128x128", Tile::t128x128, true) || !named("mma-128x128", Tile::t128x128, false);
  wrong += !tma(ScalarType::Half, 64, 64) || tma(ScalarType::Float, 64, 64) || tma(ScalarType::Half, 4, 64) ||
           tma(ScalarType::Half, 64, 1);  // fp32, a stem, too few blocks
  std::printf("%s plans: %d of %d by TMA\n", wrong ? "WRONG" : "ok", accepted, tried);
  return wrong;
}

// Checks that TMA is used for merged kernel rows exactly if they are adjacent, as in patches, for a named tile and for
// the predicted one.
int check_merged_rows() {
  int wrong = 0, accepted = 0;
  for (int64_t kernel = 1; kernel <= 16; ++kernel)
    for (int64_t stride = 1; stride <= 16; ++stride)
      for (int64_t padding : {int64_t(0), kernel / 2})
        for (int64_t rest : {0, 2}) {  // columns after the last patch
          const Case c{1, 16, 16 * kernel + rest, 4, 384, 1, kernel, {1, stride}, {0, padding}, {1, 1}, 0};
          const ConvProblem p = TestConv<Half>(c).problem();
          const bool adjacent = stride == kernel && kernel % 2 == 0 && c.width() == p.q * kernel;
          accepted += adjacent;
          for (const char* name : {"wgmma-256x128", "wgmma-128x128", "wgmma-128x64"})
            wrong += refusal(p, {90, 132, true, name}).empty() != adjacent;
          wrong += !adjacent && conv_plan(p, {90, 132, true, ""}).tma;
        }
  std::printf("%s rows: %d by TMA, %d wrong\n", wrong || !accepted ? "WRONG" : "ok", accepted, wrong);
  return wrong + !accepted;
}

// Checks that a descriptor refused by the driver is an error, and that nothing is launched.
int check_refusal() {
  const TestConv<Half> conv({1, 8, 8, 64, 64, 3, 3, {1, 1}, {1, 1}, {1, 1}, 0});
  answer = CUDA_ERROR_NOT_PERMITTED;
  const cudaError_t result = sm90::launch_tile<Half, 128, 64>(conv.problem(), 1, nullptr);
  answer = CUDA_SUCCESS;
  if (result != cudaErrorNotPermitted) std::printf("WRONG: a refused descriptor gives %s\n", cudaGetErrorName(result));
  return result != cudaErrorNotPermitted;
}

}  // namespace

int main() {
  //                n   h   w   c    k   r  s  stride  padding dilation
  const Case plain{2, 9, 11, 64, 136, 3, 3, {1, 1}, {1, 1}, {1, 1}, 0};
  const Case dilated{1, 17, 13, 104, 72, 3, 2, {2, 1}, {3, 2}, {2, 4}, 0};
  const Case pointwise{3, 7, 5, 64, 136, 1, 1, {2, 2}, {0, 0}, {1, 1}, 0};
  const Case strided{2, 20, 19, 48, 64, 7, 5, {3, 2}, {3, 0}, {1, 2}, 0};
  const Case poisoned{1, 21, 21, 56, 64, 3, 3, {1, 1}, {6, 6}, {6, 6}, INFINITY};
  const Case farthest{1, 3, 2, 56, 8, 3, 2, {8, 8}, {127, 127}, {127, 254}, 0};
  const Case patches{2, 8, 24, 4, 72, 4, 4, {4, 4}, {0, 0}, {1, 1}, 0};
  const Case many{5, 19,     17,     64,     264, 1,
                  3, {1, 1}, {0, 1}, {1, 1}, 0};  // 7 x 3 tiles: more than one per cluster, and odd
  int wrong = check_plans() + check_merged_rows() + check_refusal();
  wrong += check<128, 128>("plain", plain) + check<128, 64>("plain", plain) + check<256, 128>("plain", plain);
  wrong += check<128, 128, Slope::tensor, Residual::after>("dilated", dilated) + check<128, 64>("dilated", dilated);
  wrong += check<128, 64, Slope::relu, Residual::none>("without a residual", dilated);
  wrong += check<256, 128, Slope::relu, Residual::none>("without a residual", many);
  wrong += check<128, 128>("pointwise", pointwise) + check<128, 64>("strided", strided);
  wrong += check<128, 64>("poisoned", poisoned) + check<256, 128, Slope::tensor, Residual::after>("poisoned", poisoned);
  wrong += check<128, 64>("farthest", farthest) + check<128, 128>("patches", patches);
  return wrong;
}
