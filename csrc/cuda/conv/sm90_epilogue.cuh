// Our epilogue as a CUTLASS 3.x epilogue visitor: its channel parameters in shared memory, and its per-thread code.
#pragma once

#include "sm90_cutlass.h"

#include "epilogue.cuh"

namespace atrous::cuda::sm90 {

using cute::_0, cute::_1, cute::_64, cute::Int;

// The channel parameters, at the start of dynamic shared memory. The alignment is that of TMA's swizzle, for the
// buffers behind them.
template <int N>
struct alignas(1024) Values : TileChannels<N> {};
template <int N>
CUTLASS_DEVICE Values<N>& values() {
  extern __shared__ __align__(1024) char memory[];
  return reinterpret_cast<Values<N>&>(memory);
}

// A node of CUTLASS's epilogue visitor tree: maps a fragment's accumulators and residuals to its outputs.
template <class Element, int M, int N, Slope SLOPE, Residual RESIDUAL>
struct EpilogueNode : cutlass::epilogue::fusion::Sm90VisitorImpl<> {
  using Sm90VisitorImpl<>::Sm90VisitorImpl;
  static constexpr bool ADDS = RESIDUAL != Residual::none;
  CUTLASS_DEVICE bool is_producer_load_needed() const { return ADDS; }
  CUTLASS_DEVICE bool is_C_load_needed() const { return ADDS; }

  // Parameter: a thread's channel parameters, (elements, m, n, tile m, tile n). Added: its residuals, (elements, m, n).
  template <class Parameter, class Added>
  struct Store : cutlass::epilogue::fusion::EmptyConsumerStoreCallbacks {
    Parameter scale, shift, slope;
    const Added& added;
    CUTLASS_HOST_DEVICE Store(Parameter scale, Parameter shift, Parameter slope, const Added& added)
        : scale(scale), shift(shift), slope(slope), added(added) {}

    // A block with a single tile stores its output over the stages of x and the weight, so its consumers must have
    // finished reading them. In a persistent block all consumers must have written the channel parameters.
    CUTLASS_DEVICE bool begin_sync_needed() const { return true; }

    template <int COUNT>
    CUTLASS_HOST_DEVICE auto visit(const cutlass::Array<float, COUNT>& sums, int fragment, int tile_m, int tile_n) {
      using cute::_;
      EpilogueValues<Element, COUNT, SLOPE, RESIDUAL> values;
      typename decltype(values)::Outputs residual;
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < COUNT; ++i) {
        const int at = fragment * COUNT + i;
        values.scale[i] = scale(_, _, _, tile_m, tile_n)(at);
        values.shift[i] = shift(_, _, _, tile_m, tile_n)(at);
        if (SLOPE != Slope::relu) values.slope[i] = slope(_, _, _, tile_m, tile_n)(at);
        if (ADDS) residual[i] = added(at);
      }
      return values(sums, residual);
    }
  };

  template <bool SOURCE, class Arguments>
  CUTLASS_HOST_DEVICE static auto store(const Arguments& arguments, TileChannels<N>& channels) {
    const auto row = [&](float* values) {
      const auto tile = cute::make_tensor(cute::make_smem_ptr(values), cute::make_shape(Int<M>{}, Int<N>{}),
                                          cute::make_stride(_0{}, _1{}));
      return cutlass::epilogue::fusion::sm90_partition_for_epilogue<SOURCE>(tile, arguments.epi_tile,
                                                                            arguments.tiled_copy, arguments.thread_idx);
    };
    return Store(row(channels.scale), row(channels.shift), row(channels.slope), arguments.tCrC);
  }
  template <bool SOURCE, class... Types>
  CUTLASS_DEVICE auto get_consumer_store_callbacks(
      const cutlass::epilogue::fusion::ConsumerStoreArgs<Types...>& arguments) {
    return store<SOURCE>(arguments, values<N>());
  }
};

}  // namespace atrous::cuda::sm90
