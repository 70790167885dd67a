// Per-channel reductions over whole tensors, always in the same order, without atomics.
//
// A block reduces some channels over one part of the tensor's items. Channels last: its lanes are side by side over
// vectors of channels, and an item is a pixel. Channels first: it has one channel, and an item is a vector of one of
// its planes. The block reduces its accumulators in shared memory and writes them to a workspace, (parts, channels); a
// second kernel, finish_kernel, combines the parts.
//
// Accumulator: a struct with `combine(other)`.
#pragma once

#include "elementwise.cuh"

namespace atrous::cuda {

constexpr int MAX_LANES = 32;           // threads of a block side by side over a pixel's channels
constexpr int64_t MIN_ITEMS = 4;        // fewest items of a thread
constexpr int64_t TARGET_BLOCKS = 528;  // four for each of 132 multiprocessors; fixed, so that sums are reproducible

// A vector of the tensor: its offset, and how many of its elements exist.
struct Access {
  int64_t at;
  int count;
};

struct Reduction {
  Layout layout;
  int64_t items, plane_vectors;  // plane_vectors: vectors per plane
  int lanes, parts;              // parts: into which the items are divided
  bool aligned;

  Reduction(const Layout& layout, int size, bool aligned) : layout(layout) {
    const int64_t across = ceil_div(layout.channels, size), row = channels_last() ? layout.channels : layout.spatial;
    plane_vectors = ceil_div(layout.spatial, size);
    items = layout.images * (channels_last() ? layout.spatial : plane_vectors);
    lanes = channels_last() ? lanes_for(across, MAX_LANES) : 1;
    this->aligned = aligned && row % size == 0;
    const int64_t limit = ceil_div(items, members() * MIN_ITEMS);
    parts = int(std::min({limit, ceil_div(TARGET_BLOCKS, blocks_x(size)), MAX_GRID_Y}));
  }

  __host__ __device__ bool channels_last() const { return layout.channels_last; }
  // Threads of a block with the same channels.
  __host__ __device__ int members() const { return THREADS / lanes; }
  int64_t blocks_x(int size) const {
    return channels_last() ? ceil_div(ceil_div(layout.channels, size), lanes) : layout.channels;
  }
  dim3 blocks(int size) const { return dim3(unsigned(blocks_x(size)), unsigned(parts)); }

  // This thread's first channel.
  __device__ int64_t channel(int size) const {
    return channels_last() ? (int64_t(blockIdx.x) * lanes + int(threadIdx.x) % lanes) * size : blockIdx.x;
  }

  // Reads read(channel) for each of this thread's channels into `own`; a block computes every channel once.
  template <int SIZE, class Value, class Read>
  __device__ void read_channels(Value (&table)[MAX_LANES * SIZE], Value (&own)[SIZE], Read&& read) const {
    const int64_t first = channels_last() ? int64_t(blockIdx.x) * lanes * SIZE : blockIdx.x;
    const int number = channels_last() ? int(min(layout.channels - first, int64_t(lanes) * SIZE)) : 1;
    static_assert(MAX_LANES * SIZE <= THREADS);
    if (int(threadIdx.x) < number) table[threadIdx.x] = read(first + threadIdx.x);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < SIZE; ++i) own[i] = table[min(int(threadIdx.x) % lanes * SIZE + i, number - 1)];
  }

  // The first item of this block and of this thread. Either may lie beyond the block's last item.
  __device__ int64_t block_item() const { return blockIdx.y * ceil_div(items, parts); }
  __device__ int64_t item() const { return block_item() + int(threadIdx.x) / lanes; }

  // The vector of an item in this thread's channels.
  template <int SIZE>
  __device__ Access access(int64_t item) const {
    if (!channels_last()) return access<SIZE>(item / plane_vectors, item % plane_vectors);
    const int64_t channel = this->channel(SIZE);
    return {item * layout.channels + channel, int(min(layout.channels - channel, int64_t(SIZE)))};
  }
  template <int SIZE>
  __device__ Access access(int64_t image, int64_t vector) const {
    const int64_t pixel = vector * SIZE;
    return {(image * layout.channels + blockIdx.x) * layout.spatial + pixel,
            int(min(layout.spatial - pixel, int64_t(SIZE)))};
  }

  // Calls use(load(access, unmasked), access, unmasked) for this thread's vectors in order; unmasked: Unmasked or
  // Masked. IN_FLIGHT vectors are loaded before the first of them is used.
  template <int SIZE, int IN_FLIGHT, class Load, class Use>
  __device__ void for_each_vector(Load&& load, Use&& use) const {
    if (channel(SIZE) >= layout.channels) return;
    if (aligned)
      for_each_vector<SIZE, IN_FLIGHT>(load, use, Unmasked{});
    else
      for_each_vector<SIZE, IN_FLIGHT>(load, use, Masked{});
  }

 private:
  template <int SIZE, int IN_FLIGHT, class Load, class Use, class Mask>
  __device__ void for_each_vector(Load& load, Use& use, Mask unmasked) const {
    int64_t at = item();
    if (channels_last())
      return load_ahead<IN_FLIGHT>(load, use, unmasked, [&] {
        const Access access = this->access<SIZE>(at);
        at += members();
        return access;
      });
    // advances an item's image and vector without dividing again
    const int64_t image_step = THREADS / plane_vectors, vector_step = THREADS % plane_vectors;
    int64_t image = at / plane_vectors, vector = at % plane_vectors;
    load_ahead<IN_FLIGHT>(load, use, unmasked, [&] {
      const Access access = this->access<SIZE>(image, vector);
      image += image_step, vector += vector_step;
      if (vector >= plane_vectors) vector -= plane_vectors, ++image;
      return access;
    });
  }

  // Loads IN_FLIGHT vectors, then uses them. next(): the next Access.
  template <int IN_FLIGHT, class Load, class Use, class Mask, class Next>
  __device__ void load_ahead(Load& load, Use& use, Mask unmasked, Next&& next) const {
    const int64_t end = min(block_item() + ceil_div(items, parts), items);
    int64_t left = item() < end ? ceil_div(end - item(), members()) : 0;
    for (; left >= IN_FLIGHT; left -= IN_FLIGHT) {
      Access accesses[IN_FLIGHT];
      decltype(load(Access(), unmasked)) values[IN_FLIGHT];
#pragma unroll
      for (int i = 0; i < IN_FLIGHT; ++i) values[i] = load(accesses[i] = next(), unmasked);
#pragma unroll
      for (int i = 0; i < IN_FLIGHT; ++i) use(values[i], accesses[i], unmasked);
    }
    for (; left > 0; --left) {
      const Access access = next();
      use(load(access, unmasked), access, unmasked);
    }
  }
};

// Combines the accumulators of each lane's threads into those of its first thread: a tree reduction in shared memory.
template <int WIDTH, class Accumulator>
__device__ void tree_reduce(Accumulator (&own)[WIDTH], Accumulator* table, int lanes, int members) {
  const int thread = threadIdx.x, member = thread / lanes;
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) table[i * THREADS + thread] = own[i];  // consecutive threads: no bank conflicts
  for (int half = members / 2; half; half /= 2) {
    __syncthreads();
    if (member >= half) continue;
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) {
      own[i].combine(table[i * THREADS + thread + half * lanes]);
      table[i * THREADS + thread] = own[i];
    }
  }
}

// Reduces the block's accumulators and writes them to partial[part][channel].
template <int SIZE, class Accumulator>
__device__ void store_partial(const Reduction& reduction, Accumulator (&own)[SIZE], Accumulator* table,
                              Accumulator* partial) {
  const int64_t channel = reduction.channel(SIZE), channels = reduction.layout.channels;
  Accumulator* to = partial + blockIdx.y * channels + channel;
  if (!reduction.channels_last()) {
    Accumulator total[1] = {own[0]};
#pragma unroll
    for (int i = 1; i < SIZE; ++i) total[0].combine(own[i]);
    tree_reduce(total, table, 1, THREADS);
    if (threadIdx.x == 0) *to = total[0];
    return;
  }
  tree_reduce(own, table, reduction.lanes, reduction.members());
  if (int(threadIdx.x) >= reduction.lanes) return;
#pragma unroll
  for (int i = 0; i < SIZE; ++i)
    if (channel + i < channels) to[i] = own[i];
}

constexpr int FINISH_THREADS = THREADS;  // a block finishes one channel

// Combines the parts of each channel and calls finish(channel, total).
template <class Accumulator, class Finish>
__global__ void __launch_bounds__(FINISH_THREADS)
    finish_kernel(const Accumulator* __restrict__ partial, int parts, Finish finish) {
  __shared__ Accumulator table[FINISH_THREADS];
  Accumulator own[1] = {};
  for (int part = threadIdx.x; part < parts; part += FINISH_THREADS)
    own[0].combine(partial[int64_t(part) * gridDim.x + blockIdx.x]);
  tree_reduce(own, table, 1, FINISH_THREADS);
  if (threadIdx.x == 0) finish(blockIdx.x, own[0]);
}

}  // namespace atrous::cuda
