// How the elements of a dense (N, C, ...) tensor lie.
#pragma once

#include "arguments.h"

namespace atrous {

struct Layout {
  int64_t images, channels, spatial;
  bool channels_last;

  // The longer rows where both orders are true. Needs at least one element.
  Layout(const Tensor& z, Order order);

  int64_t size() const { return images * channels * spatial; }
  // The number, in a contiguous tensor of this shape, of the element at this place in memory.
  ATROUS_HD uint64_t index(int64_t at) const {
    if (!channels_last) return at;
    const int64_t pixel = at / channels, channel = at % channels, image = pixel / spatial;
    return (image * channels + channel) * spatial + (pixel - image * spatial);
  }
  // From one element of a row to the next: a row is all of a pixel (channels last) or one channel of an image.
  ATROUS_HD uint64_t index_step() const { return channels_last ? spatial : 1; }
};

}  // namespace atrous
