#include "layout.h"

namespace atrous {

Layout::Layout(const Tensor& z, Order order)
    : images(z.size(0)), channels(z.size(1)), spatial(z.numel() / (images * channels)) {
  channels_last = channels > 1 && (order == Order::channels_last || spatial == 1);
  if (channels > 1) return;
  spatial *= images;
  images = 1;
}

Layout Layout::with_long_rows() const {
  constexpr int64_t LENGTH = 256;  // a WorkPartition divides longer ones
  Layout longer = *this;
  if (!channels_last) return longer;
  int64_t pixels = images * spatial;
  for (; pixels % 2 == 0 && pixels >= 64 && 2 * longer.channels <= LENGTH; pixels /= 2)
    longer.channels *= 2, longer.repeats *= 2;
  longer.images = 1, longer.spatial = pixels;
  return longer;
}

}  // namespace atrous
