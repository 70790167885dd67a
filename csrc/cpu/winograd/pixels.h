// The pixels of a tile, as pointers into a map.
#pragma once

#include "plan.h"
#include "transform.h"

namespace atrous::winograd {

// A channels_last map: pixels of `channels` values.
template <class S>
struct Map {
  const S* data;
  int64_t height, width, channels;
};

// The pixels of a window of ROWS x COLUMNS, `dilation` apart, of one image; those outside of the map are at `zeros`.
template <int ROWS, int COLUMNS, class S>
void find_pixels(const Map<S>& map, int64_t image, int64_t top, int64_t left, const std::array<int64_t, 2>& dilation,
                 const S* zeros, const S** pixels) {
  for (int i = 0; i < ROWS; ++i) {
    const int64_t y = top + i * dilation[0];
    for (int j = 0; j < COLUMNS; ++j) {
      const int64_t x = left + j * dilation[1];
      const bool inside = y >= 0 && y < map.height && x >= 0 && x < map.width;
      *pixels++ = inside ? map.data + ((image * map.height + y) * map.width + x) * map.channels : zeros;
    }
  }
}

// The last channels of `count` pixels, fewer than LANES, padded with zeros; pixels point to them then.
template <int LANES, class S>
void pad_channels(const S** pixels, int count, int64_t channel, int64_t channels, S (*rest)[LANES]) {
  for (int i = 0; i < count; ++i) {
    std::fill(rest[i], rest[i] + LANES, S{});
    std::copy(pixels[i] + channel, pixels[i] + channels, rest[i]);
    pixels[i] = rest[i];
  }
}

}  // namespace atrous::winograd
