// The rectangles that the elements of a tensor are cut into. The cut depends on the tensor's shape alone: sums that are
// taken rectangle by rectangle have the same bits for any number of threads.
#pragma once

#include <algorithm>

#include "../layout.h"

namespace atrous {

constexpr int64_t GRAIN = 16384;  // elements: below this a second thread costs more than it brings

// A rectangle of memory: `rows` of `length` elements, `stride` apart, the first at `at`. Its channels, from `channel`
// on, run along a row (channels last) or from row to row.
struct Chunk {
  int64_t at, channel, rows, length, stride;
};

// Slot after slot, each of whose chunks have every channel once.
class Cut {
 public:
  explicit Cut(const Layout& layout);

  int64_t slots() const { return slots_; }
  int64_t size() const { return slots_ * blocks_; }
  int64_t slot(int64_t chunk) const { return chunk / blocks_; }
  int64_t grain() const;  // chunks that a thread should have at least
  Chunk operator[](int64_t chunk) const;
  // How many values of each channel a slot holds.
  int64_t count(int64_t slot) const;

 private:
  Layout layout_;
  int64_t pieces_;  // channels last: of all pixels; else of a plane
  int64_t blocks_;  // of channels
  int64_t slots_;
};

}  // namespace atrous
