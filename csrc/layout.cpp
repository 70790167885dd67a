#include "layout.h"

namespace atrous {

Layout::Layout(const Tensor& z, Order order)
    : images(z.size(0)), channels(z.size(1)), spatial(z.numel() / (images * channels)) {
  channels_last = channels > 1 && (order == Order::channels_last || spatial == 1);
  if (channels > 1) return;
  spatial *= images;
  images = 1;
}

}  // namespace atrous
