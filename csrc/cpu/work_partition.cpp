#include "work_partition.h"

namespace atrous {

namespace {

constexpr int64_t ELEMENTS = 8192;  // of a chunk: they stay in the nearest cache
constexpr int64_t CHANNELS = 128;   // of a chunk at most
constexpr int64_t ROWS = 256;       // channels last: a sum of more loses digits

int64_t parts(int64_t size, int64_t part) { return (size + part - 1) / part; }
int64_t bound(int64_t size, int64_t part, int64_t parts) { return size * part / parts; }

}  // namespace

Cut::Cut(const Layout& layout) : layout_(layout) {
  const int64_t channels = layout.channels;
  if (layout.channels_last) {
    blocks_ = parts(channels, CHANNELS);
    const int64_t rows = std::min(ROWS, ELEMENTS / parts(channels, blocks_));
    slots_ = pieces_ = parts(layout.images * layout.spatial, rows);
  } else {
    pieces_ = parts(layout.spatial, ELEMENTS);
    const int64_t together = std::clamp<int64_t>(ELEMENTS / parts(layout.spatial, pieces_), 1, CHANNELS);
    blocks_ = parts(channels, together);
    slots_ = layout.images * pieces_;
  }
}

int64_t Cut::grain() const { return std::max<int64_t>(1, size() * GRAIN / layout_.size()); }

Chunk Cut::operator[](int64_t chunk) const {
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

int64_t Cut::count(int64_t slot) const {
  const int64_t size = layout_.channels_last ? layout_.images * layout_.spatial : layout_.spatial;
  const int64_t piece = slot % pieces_;
  return bound(size, piece + 1, pieces_) - bound(size, piece, pieces_);
}

}  // namespace atrous
