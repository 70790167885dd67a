// Partitions a tensor into chunks for threads. The partition depends on the tensor's shape alone, so sums that are
// taken chunk by chunk have the same bits for any number of threads.
#pragma once

#include <algorithm>

#include "../layout.h"

namespace atrous {

constexpr int64_t GRAIN = 16384;       // elements per thread: with fewer, a second thread costs more than it saves
constexpr int64_t MAX_CHANNELS = 256;  // most channels of a chunk

// A rectangle of memory: `rows` rows of `length` elements, `stride` apart, the first at `at`. Its channels start at
// `channel` and run along a row (channels last) or from row to row (channels first).
struct Chunk {
  int64_t at, channel, rows, length, stride;
};

// The chunks, ordered by slot. The chunks of one slot cover every channel exactly once.
class WorkPartition {
 public:
  explicit WorkPartition(const Layout& layout);

  int64_t slots() const { return slots_; }
  int64_t size() const { return slots_ * blocks_; }
  int64_t slot(int64_t chunk) const { return chunk / blocks_; }
  int64_t grain() const;  // the fewest chunks that are worth a thread
  Chunk operator[](int64_t chunk) const;
  // The number of values per channel in a slot.
  int64_t count(int64_t slot) const;

 private:
  Layout layout_;
  int64_t pieces_;  // into which all pixels (channels last) or each plane (channels first) are divided
  int64_t blocks_;  // into which the channels are divided
  int64_t slots_;
};

}  // namespace atrous
