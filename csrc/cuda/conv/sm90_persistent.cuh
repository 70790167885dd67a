// The kernel layer of the 256-pixel tile on compute capability 9.0: two warp groups multiply, a third loads for them,
// and a block takes tile after tile. Main loop and epilogue are CUTLASS's collectives, as in conv/sm90.cuh; its own
// layers of this kind refuse convolutions. After CUTLASS 4.2, sm90_gemm_tma_warpspecialized_cooperative.hpp.
//
// The barriers. A stage is full when TMA has written this block's x and both halves of the weight, one of which each
// block of the cluster copies to both; the consumers wait for that. It is empty when each consumer warp group of both
// blocks has arrived, since a copy of the weight writes to both; warp 0 waits for that, and so runs ahead of the
// consumers by as many stages as there are, into the next tile while they are in this one's epilogue. Warp 1 and the
// 256 consumers of a block have the same two barriers for residuals. A named barrier of the consumers is before the
// epilogue and around each of its stores: the values of a tile's channels are written before the main loop and read
// behind the first, and nobody writes the next tile's before all have passed the last. The cluster meets once the
// barriers are initialized; no block leaves while the other may still arrive at its own: warp 0 waits until its stages
// are empty.
#pragma once

#include "sm90_epilogue.cuh"

namespace atrous::cuda::sm90 {

// The tiles of a block in their order. The two blocks of a cluster take neighbouring pixels and the same channels,
// whose weight they share. Channels vary fastest, so that clusters that run at once read the same x. Where the tiles of
// pixels are odd in number one block computes a tile of zeros behind the last pixel, which TMA does not store.
struct TileOrder {
  int pixels, channels;  // in tiles

  ATROUS_HD int pairs() const { return (pixels + 1) / 2 * channels; }
  // A cluster's pair of tiles: that of pixels for one of its blocks, and that of channels.
  ATROUS_HD int pixel(int pair, int rank) const { return pair / channels * 2 + rank; }
  ATROUS_HD int channel(int pair) const { return pair % channels; }
};

// Base: CUTLASS's layer of these collectives, of which the host's part stays.
template <class Base, int N>
struct Persistent : Base {
  using Main = typename Base::CollectiveMainloop;
  using Epilogue = typename Base::CollectiveEpilogue;
  using typename Base::Params, typename Base::TileShape, typename Base::ClusterShape, typename Base::TiledMma;
  using Stages = typename Main::MainloopPipeline;
  using Residuals = typename Epilogue::LoadPipeline;
  using Stores = typename Epilogue::StorePipeline;

  static constexpr int CONSUMERS = cute::size(TiledMma{});
  static_assert(CONSUMERS == 256 && cute::size(ClusterShape{}) == 2);
  // Registers of a thread: launched with 168, of which the loading warp group leaves most to the others.
  static constexpr int LOADING = 40, MULTIPLYING = 232;
  static_assert(128 * LOADING + CONSUMERS * MULTIPLYING <= 65536);

  struct Storage {
    typename Main::TensorStorage stages;  // at a multiple of 1024, as TMA's swizzle wants
    typename Epilogue::TensorStorage outputs;
    alignas(16) typename Main::PipelineStorage stage_barriers;
    alignas(16) typename Epilogue::PipelineStorage residual_barriers;
  };
  static constexpr int SharedStorageSize = sizeof(Storage);

  const Params& params;
  const Vectors& vectors;
  Storage& storage;
  const TileOrder tiles = order(params);
  const int group = cutlass::canonical_warp_group_idx(), warp = cutlass::canonical_warp_idx_sync() % 4;
  const bool loads_stages = group == 0 && warp == 0, loads_residuals = group == 0 && warp == 1;
  Stages stages = make_stages();
  Residuals residuals = make_residuals();
  Main main{};
  Epilogue epilogue{params.epilogue, storage.outputs};

  CUTLASS_DEVICE Persistent(const Params& params, const Vectors& vectors, char* memory)
      : params(params), vectors(vectors), storage(reinterpret_cast<Storage&>(*memory)) {}

  ATROUS_HD static TileOrder order(const Params& params) {
    const auto tiles = [](int size, int tile) { return (size + tile - 1) / tile; };
    return {tiles(cute::get<0>(params.problem_shape), cute::size<0>(TileShape{})),
            tiles(cute::get<1>(params.problem_shape), N)};
  }
  // Whole clusters, no more of them than run at once.
  static dim3 grid(const Params& params, int multiprocessors) {
    return dim3(2 * std::max(1, std::min(order(params).pairs(), multiprocessors / 2)));
  }

  CUTLASS_DEVICE void operator()() {
    if (threadIdx.x == 0) {
      Main::prefetch_tma_descriptors(params.mainloop);
      Epilogue::prefetch_tma_descriptors(params.epilogue);
    }
    cute::cluster_arrive_relaxed();
    cute::cluster_wait();
    if (group == 0) {
      cutlass::arch::warpgroup_reg_dealloc<LOADING>();
      if (loads_stages) load_stages();
      if (loads_residuals && epilogue.is_producer_load_needed()) load_residuals();
    } else {
      cutlass::arch::warpgroup_reg_alloc<MULTIPLYING>();
      multiply();
    }
  }

 private:
  CUTLASS_DEVICE Stages make_stages() {
    typename Stages::Params of;
    of.role = loads_stages ? Stages::ThreadCategory::Producer : Stages::ThreadCategory::Consumer;
    of.is_leader = threadIdx.x == 0;
    of.num_consumers = CONSUMERS;
    of.transaction_bytes = params.mainloop.tma_transaction_bytes;
    return Stages(storage.stage_barriers, of, ClusterShape{});
  }
  CUTLASS_DEVICE Residuals make_residuals() {
    typename Residuals::Params of;
    of.role = loads_residuals ? Residuals::ThreadCategory::Producer : Residuals::ThreadCategory::Consumer;
    of.dst_blockid = cute::block_rank_in_cluster();
    of.producer_arv_count = cutlass::NumThreadsPerWarp;
    of.consumer_arv_count = CONSUMERS;
    of.transaction_bytes = params.epilogue.tma_transaction_bytes;
    return Residuals(storage.residual_barriers, of);
  }

  // run(tile) for each of this block's, as CUTLASS writes a tile's coordinates.
  template <class Run>
  CUTLASS_DEVICE void each(Run&& run) {
    for (int pair = blockIdx.x / 2; pair < tiles.pairs(); pair += gridDim.x / 2)
      run(cute::make_coord(tiles.pixel(pair, blockIdx.x % 2), tiles.channel(pair), cute::_, cute::Int<0>{}));
  }

  CUTLASS_DEVICE void load_stages() {
    const auto inputs = main.load_init(params.problem_shape, params.mainloop);
    const auto steps = cute::shape<3>(cute::get<0>(inputs));
    auto at = cutlass::make_producer_start_state<Stages>();
    each([&](auto tile) {
      main.load(params.mainloop, stages, at, inputs, tile, cute::make_coord_iterator(steps), cute::size(steps),
                cutlass::canonical_lane_idx(), cute::block_rank_in_cluster(), storage.stages);
      at.advance(cute::size(steps));
    });
    main.load_tail(stages, at);
  }

  CUTLASS_DEVICE void load_residuals() {
    auto at = cutlass::make_producer_start_state<Residuals>();
    each([&](auto tile) {
      at = epilogue.load(residuals, at, params.problem_shape, TileShape{}, tile, TiledMma{},
                         cutlass::canonical_lane_idx(), storage.outputs);
    });
    epilogue.load_tail(residuals, at);
  }

  CUTLASS_DEVICE void multiply() {
    const int thread = threadIdx.x - cutlass::NumThreadsPerWarpGroup;
    const int steps = cute::size<3>(cute::get<0>(main.load_init(params.problem_shape, params.mainloop)));
    typename Main::PipelineState stage;
    typename Epilogue::LoadPipelineState residual;
    Stores stores{typename Stores::Params{true}};
    auto store = cutlass::make_producer_start_state<Stores>();
    int channels = -1;
    each([&](auto tile) {
      if (cute::get<1>(tile) != channels) {
        channels = cute::get<1>(tile);
        values<N>().load(vectors, channels * N, cute::get<1>(params.problem_shape), thread, CONSUMERS);
      }
      TiledMma mma;
      auto sums = cute::partition_fragment_C(mma, cute::take<0, 2>(TileShape{}));
      main.mma(stages, stage, sums, steps, thread, storage.stages, params.mainloop);
      main.mma_tail(stages, stage, steps);
      stage.advance(steps);
      const auto next = epilogue.store(residuals, residual, stores, store, params.problem_shape, TileShape{}, tile,
                                       sums, mma, thread, storage.outputs);
      residual = cute::get<0>(next), store = cute::get<1>(next);
    });
    epilogue.store_tail(residuals, residual, stores, store);
  }
};

}  // namespace atrous::cuda::sm90
