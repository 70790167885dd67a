// The persistent kernel of the 256-pixel tile on compute capability 9.0: two warp groups multiply, a third loads for
// them, and a block computes tile after tile. Main loop and epilogue are CUTLASS's collectives, as in conv/sm90.cuh;
// CUTLASS's own kernels of this kind do not support convolutions. After CUTLASS 4.2,
// sm90_gemm_tma_warpspecialized_cooperative.hpp.
//
// Barriers. A stage is full once TMA has written this block's x and both halves of the weight; each block of the
// cluster copies one half to both blocks. The consumers wait for that. A stage is empty once every consumer warp group
// of both blocks has arrived, since a copy of the weight writes to both blocks. Warp 0 waits for that, and so runs
// ahead of the consumers by the number of stages, into the next tile while they are in this tile's epilogue. Warp 1 and
// the block's 256 consumers have the same two barriers for residuals. The consumers synchronize at a named barrier
// before the epilogue and around each of its stores: the channel parameters of a tile are written before the main loop
// and read after the first of these barriers, and no thread writes the next tile's before all have passed the last. The
// cluster synchronizes once the barriers are initialized. No block exits while the other may still arrive at its
// barriers: warp 0 waits until its stages are empty.
#pragma once

#include "sm90_epilogue.cuh"

namespace atrous::cuda::sm90 {

// The order in which a block computes its tiles. The two blocks of a cluster take adjacent tiles of pixels and the same
// channels, whose weight they share. Channels vary fastest, so that clusters that run concurrently read the same x. If
// the number of pixel tiles is odd, one block computes a tile of zeros behind the last pixel, which TMA does not store.
struct TileOrder {
  int pixels, channels;  // in tiles

  ATROUS_HD int pairs() const { return (pixels + 1) / 2 * channels; }
  // The pixel tile of the cluster's block `rank`, and the channel tile of both blocks.
  ATROUS_HD int pixel(int pair, int rank) const { return pair / channels * 2 + rank; }
  ATROUS_HD int channel(int pair) const { return pair % channels; }
};

// Base: CUTLASS's kernel for these collectives. Its host functions are inherited.
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
  // Registers per thread. A block is launched with 168; the loading warp group releases most of them to the others.
  static constexpr int LOADING = 40, MULTIPLYING = 232;
  static_assert(128 * LOADING + CONSUMERS * MULTIPLYING <= 65536);

  struct Storage {
    typename Main::TensorStorage stages;  // 1024-byte aligned for TMA's swizzle
    typename Epilogue::TensorStorage outputs;
    alignas(16) typename Main::PipelineStorage stage_barriers;
    alignas(16) typename Epilogue::PipelineStorage residual_barriers;
  };
  static constexpr int SharedStorageSize = sizeof(Storage);

  const Params& params;
  const ChannelVectors& vectors;
  Storage& storage;
  const TileOrder tiles = order(params);
  const int group = cutlass::canonical_warp_group_idx(), warp = cutlass::canonical_warp_idx_sync() % 4;
  const bool loads_stages = group == 0 && warp == 0, loads_residuals = group == 0 && warp == 1;
  Stages stages = make_stages();
  Residuals residuals = make_residuals();
  Main main{};
  Epilogue epilogue{params.epilogue, storage.outputs};

  CUTLASS_DEVICE Persistent(const Params& params, const ChannelVectors& vectors, char* memory)
      : params(params), vectors(vectors), storage(reinterpret_cast<Storage&>(*memory)) {}

  ATROUS_HD static TileOrder order(const Params& params) {
    const auto tiles = [](int size, int tile) { return (size + tile - 1) / tile; };
    return {tiles(cute::get<0>(params.problem_shape), cute::size<0>(TileShape{})),
            tiles(cute::get<1>(params.problem_shape), N)};
  }
  // As many clusters as run concurrently, but no more than there are pairs of tiles.
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
    typename Stages::Params config;
    config.role = loads_stages ? Stages::ThreadCategory::Producer : Stages::ThreadCategory::Consumer;
    config.is_leader = threadIdx.x == 0;
    config.num_consumers = CONSUMERS;
    config.transaction_bytes = params.mainloop.tma_transaction_bytes;
    return Stages(storage.stage_barriers, config, ClusterShape{});
  }
  CUTLASS_DEVICE Residuals make_residuals() {
    typename Residuals::Params config;
    config.role = loads_residuals ? Residuals::ThreadCategory::Producer : Residuals::ThreadCategory::Consumer;
    config.dst_blockid = cute::block_rank_in_cluster();
    config.producer_arv_count = cutlass::NumThreadsPerWarp;
    config.consumer_arv_count = CONSUMERS;
    config.transaction_bytes = params.epilogue.tma_transaction_bytes;
    return Residuals(storage.residual_barriers, config);
  }

  // Calls function(tile) with the CUTLASS coordinates of each of this block's tiles.
  template <class Function>
  CUTLASS_DEVICE void for_each_tile(Function&& function) {
    for (int pair = blockIdx.x / 2; pair < tiles.pairs(); pair += gridDim.x / 2)
      function(cute::make_coord(tiles.pixel(pair, blockIdx.x % 2), tiles.channel(pair), cute::_, cute::Int<0>{}));
  }

  CUTLASS_DEVICE void load_stages() {
    const auto inputs = main.load_init(params.problem_shape, params.mainloop);
    const auto steps = cute::shape<3>(cute::get<0>(inputs));
    auto at = cutlass::make_producer_start_state<Stages>();
    for_each_tile([&](auto tile) {
      main.load(params.mainloop, stages, at, inputs, tile, cute::make_coord_iterator(steps), cute::size(steps),
                cutlass::canonical_lane_idx(), cute::block_rank_in_cluster(), storage.stages);
      at.advance(cute::size(steps));
    });
    main.load_tail(stages, at);
  }

  CUTLASS_DEVICE void load_residuals() {
    auto at = cutlass::make_producer_start_state<Residuals>();
    for_each_tile([&](auto tile) {
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
    for_each_tile([&](auto tile) {
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
