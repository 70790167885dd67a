// Numbers a channel out of whole tensors, always in the same order: nothing is added atomically.
//
// A block has a few channels and every item of a part of the tensor: channels last, lanes side by side over packs of
// channels, items are pixels; channels first, one channel, items are packs of its planes. The lanes' numbers are folded
// in shared memory and left in a workspace, (parts, channels); a second kernel puts the parts together.
//
// Numbers: a struct with `combine(other)`.
#pragma once

#include "elementwise.cuh"

namespace atrous::cuda {

constexpr int COLUMNS = 32;          // lanes of a block that lie side by side, at most
constexpr int64_t FEWEST_ITEMS = 4;  // of a thread: parts are not cut smaller
constexpr int64_t REDUCERS = 528;    // blocks: four for each of 132 multiprocessors; the same everywhere, as sums are

// A pack of the tensor: where it begins, and how many of its elements exist.
struct Place {
  int64_t at;
  int count;
};

struct Reduction {
  Layout layout;
  int64_t items, packs;  // packs: of a plane
  int lanes, parts;      // parts: of the items
  bool aligned;

  Reduction(const Layout& layout, int size, bool aligned) : layout(layout) {
    const int64_t across = cuda::parts(layout.channels, size), row = last() ? layout.channels : layout.spatial;
    packs = cuda::parts(layout.spatial, size);
    items = layout.images * (last() ? layout.spatial : packs);
    lanes = last() ? lanes_for(across, COLUMNS) : 1;
    this->aligned = aligned && row % size == 0;
    const int64_t most = cuda::parts(items, members() * FEWEST_ITEMS), wanted = cuda::parts(REDUCERS, blocks_x(size));
    parts = int(std::min({most, wanted, MOST_Y}));
  }

  __host__ __device__ bool last() const { return layout.channels_last; }
  __host__ __device__ int members() const { return THREADS / lanes; }
  int64_t blocks_x(int size) const {
    return last() ? cuda::parts(cuda::parts(layout.channels, size), lanes) : layout.channels;
  }
  dim3 blocks(int size) const { return dim3(unsigned(blocks_x(size)), unsigned(parts)); }

  // This thread's first channel.
  __device__ int64_t channel(int size) const {
    return last() ? (int64_t(blockIdx.x) * lanes + int(threadIdx.x) % lanes) * size : blockIdx.x;
  }

  // read(channel) for each of this thread's, which a block reads once.
  template <int SIZE, class Value, class Read>
  __device__ void read_channels(Value (&table)[COLUMNS * SIZE], Value (&own)[SIZE], Read&& read) const {
    const int64_t first = last() ? int64_t(blockIdx.x) * lanes * SIZE : blockIdx.x;
    const int number = last() ? int(min(layout.channels - first, int64_t(lanes) * SIZE)) : 1;
    static_assert(COLUMNS * SIZE <= THREADS);
    if (int(threadIdx.x) < number) table[threadIdx.x] = read(first + threadIdx.x);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < SIZE; ++i) own[i] = table[min(int(threadIdx.x) % lanes * SIZE + i, number - 1)];
  }

  // The first item of this block and of this thread; it may be none of theirs.
  __device__ int64_t block_item() const { return blockIdx.y * cuda::parts(items, parts); }
  __device__ int64_t item() const { return block_item() + int(threadIdx.x) / lanes; }

  // Where an item's pack of this thread's channels lies. Channels first, an item is a pack of an image's plane.
  template <int SIZE>
  __device__ Place place(int64_t item) const {
    if (!last()) return place<SIZE>(item / packs, item % packs);
    const int64_t channel = this->channel(SIZE);
    return {item * layout.channels + channel, int(min(layout.channels - channel, int64_t(SIZE)))};
  }
  template <int SIZE>
  __device__ Place place(int64_t image, int64_t pack) const {
    const int64_t pixel = pack * SIZE;
    return {(image * layout.channels + blockIdx.x) * layout.spatial + pixel,
            int(min(layout.spatial - pixel, int64_t(SIZE)))};
  }

  // use(load(place, whole), place, whole) for this thread's packs in their order; whole: Whole if all of them are, or
  // Parted. TOGETHER of them are loaded before the first is used: so many loads of a thread are in flight.
  template <int SIZE, int TOGETHER, class Load, class Use>
  __device__ void walk(Load&& load, Use&& use) const {
    if (channel(SIZE) >= layout.channels) return;
    if (aligned)
      walk<SIZE, TOGETHER>(load, use, Whole{});
    else
      walk<SIZE, TOGETHER>(load, use, Parted{});
  }

 private:
  template <int SIZE, int TOGETHER, class Load, class Use, class Kind>
  __device__ void walk(Load& load, Use& use, Kind whole) const {
    int64_t at = item();
    if (last())
      return in_turns<TOGETHER>(load, use, whole, [&] {
        const Place place = this->place<SIZE>(at);
        at += members();
        return place;
      });
    // an item's image and pack, without dividing again
    const int64_t images_on = THREADS / packs, packs_on = THREADS % packs;
    int64_t image = at / packs, pack = at % packs;
    in_turns<TOGETHER>(load, use, whole, [&] {
      const Place place = this->place<SIZE>(image, pack);
      image += images_on, pack += packs_on;
      if (pack >= packs) pack -= packs, ++image;
      return place;
    });
  }

  template <int TOGETHER, class Load, class Use, class Kind, class Next>
  __device__ void in_turns(Load& load, Use& use, Kind whole, Next&& next) const {
    const int64_t end = min(block_item() + cuda::parts(items, parts), items);
    int64_t left = item() < end ? cuda::parts(end - item(), members()) : 0;
    for (; left >= TOGETHER; left -= TOGETHER) {
      Place places[TOGETHER];
      decltype(load(Place(), whole)) values[TOGETHER];
#pragma unroll
      for (int i = 0; i < TOGETHER; ++i) values[i] = load(places[i] = next(), whole);
#pragma unroll
      for (int i = 0; i < TOGETHER; ++i) use(values[i], places[i], whole);
    }
    for (; left > 0; --left) {
      const Place place = next();
      use(load(place, whole), place, whole);
    }
  }
};

// All members' numbers of each lane's packs in the first member's; the sums of a tree, level by level.
template <int WIDTH, class Numbers>
__device__ void fold(Numbers (&own)[WIDTH], Numbers* table, int lanes, int members) {
  const int thread = threadIdx.x, member = thread / lanes;
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) table[i * THREADS + thread] = own[i];  // threads side by side: no bank twice
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

// Leaves what this block has of its channels in partial[part][channel].
template <int SIZE, class Numbers>
__device__ void leave(const Reduction& reduction, Numbers (&own)[SIZE], Numbers* table, Numbers* partial) {
  const int64_t channel = reduction.channel(SIZE), channels = reduction.layout.channels;
  Numbers* to = partial + blockIdx.y * channels + channel;
  if (!reduction.last()) {
    Numbers whole[1] = {own[0]};
#pragma unroll
    for (int i = 1; i < SIZE; ++i) whole[0].combine(own[i]);
    fold(whole, table, 1, THREADS);
    if (threadIdx.x == 0) *to = whole[0];
    return;
  }
  fold(own, table, reduction.lanes, reduction.members());
  if (int(threadIdx.x) >= reduction.lanes) return;
#pragma unroll
  for (int i = 0; i < SIZE; ++i)
    if (channel + i < channels) to[i] = own[i];
}

constexpr int FINISHERS = THREADS;  // of a channel's block

// finish(channel, numbers) with those of all parts.
template <class Numbers, class Finish>
__global__ void __launch_bounds__(FINISHERS)
    finish_kernel(const Numbers* __restrict__ partial, int parts, Finish finish) {
  __shared__ Numbers table[FINISHERS];
  Numbers own[1] = {};
  for (int part = threadIdx.x; part < parts; part += FINISHERS)
    own[0].combine(partial[int64_t(part) * gridDim.x + blockIdx.x]);
  fold(own, table, 1, FINISHERS);
  if (threadIdx.x == 0) finish(blockIdx.x, own[0]);
}

}  // namespace atrous::cuda
