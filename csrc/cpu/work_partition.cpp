#include "work_partition.h"

namespace atrous {

namespace {

constexpr int64_t MAX_ELEMENTS = 8192;        // a chunk stays in the L1 cache
constexpr int64_t MAX_ELEMENTS_LAST = 32768;  // channels last, in the L2 cache: each chunk has sums of each channel
constexpr int64_t ENOUGH = 64;                // chunks for all threads; only with more do they become larger
constexpr int64_t MAX_ROWS = 256;             // most rows of a channels-last chunk: a sum over more rows loses digits

// The beginning of part `part`, if `size` is divided into `parts` nearly equal parts.
int64_t bound(int64_t size, int64_t part, int64_t parts) { return size * part / parts; }

}  // namespace

WorkPartition::WorkPartition(const Layout& layout) : layout_(layout) {
  const int64_t channels = layout.channels;
  if (layout.channels_last) {
    blocks_ = ceil_div(channels, MAX_CHANNELS);
    const int64_t pixels = layout.images * layout.spatial, width = ceil_div(channels, blocks_);
    const int64_t rows = std::clamp(pixels / ENOUGH, MAX_ELEMENTS / width, MAX_ELEMENTS_LAST / width);
    slots_ = pieces_ = ceil_div(pixels, std::min(MAX_ROWS, rows));
  } else {
    pieces_ = ceil_div(layout.spatial, MAX_ELEMENTS);
    const int64_t together = std::clamp<int64_t>(MAX_ELEMENTS / ceil_div(layout.spatial, pieces_), 1, MAX_CHANNELS);
    blocks_ = ceil_div(channels, together);
    slots_ = layout.images * pieces_;
  }
}

int64_t WorkPartition::grain() const { return std::max<int64_t>(1, size() * GRAIN / layout_.size()); }

Chunk WorkPartition::operator[](int64_t chunk) const {
  const int64_t slot = chunk / blocks_, block = chunk % blocks_;
  const int64_t channel = bound(layout_.channels, block, blocks_);
  const int64_t channels = bound(layout_.channels, block + 1, blocks_) - channel;
  if (layout_.channels_last) {
    const int64_t first = bound(layout_.images * layout_.spatial, slot, slots_);
    return {first * layout_.channels + channel, channel, count(slot), channels, layout_.channels};
  }
  const int64_t first = bound(layout_.spatial, slot % pieces_, pieces_), plane = slot / pieces_ * layout_.channels;
  return {(plane + channel) * layout_.spatial + first, channel, channels, count(slot), layout_.spatial};
}

int64_t WorkPartition::count(int64_t slot) const {
  const int64_t size = layout_.channels_last ? layout_.images * layout_.spatial : layout_.spatial;
  const int64_t piece = slot % pieces_;
  return bound(size, piece + 1, pieces_) - bound(size, piece, pieces_);
}

}  // namespace atrous
