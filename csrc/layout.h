// Memory layout of a dense (N, C, ...) tensor.
#pragma once

#include "arguments.h"

namespace atrous {

struct Layout {
  int64_t images, channels, spatial;
  bool channels_last;
  int64_t repeats = 1;  // pixels in a row: `channels` is then their product with the channels of one

  // Chooses the order with the longer rows if both apply. z must have at least one element.
  Layout(const Tensor& z, Order order);

  // The same memory with several pixels to a row if the channels are few and last: rows that fill a vector and are
  // worth a loop. Per-channel vectors are repeated to match, and index() does not hold.
  Layout with_long_rows() const;

  int64_t own_channels() const { return channels / repeats; }
  int64_t size() const { return images * channels * spatial; }
  // The index in a contiguous tensor of this shape of the element at memory offset `at`.
  ATROUS_HD uint64_t index(int64_t at) const {
    if (!channels_last) return at;
    const int64_t pixel = at / channels, channel = at % channels, image = pixel / spatial;
    return (image * channels + channel) * spatial + (pixel - image * spatial);
  }
  // The step of index() along a row: a row is one pixel (channels last) or one channel of one image.
  ATROUS_HD uint64_t index_step() const { return channels_last ? spatial : 1; }
};

}  // namespace atrous
