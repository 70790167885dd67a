// A driver that keeps what TMA's descriptors are asked for and refuses what the driver's manual refuses, in place of
// the one that the runtime looks for; and what TMA gathers by a descriptor. Of tensors of 16 bit and 4 dimensions.
// Source: CUDA driver API, cuTensorMapEncodeTiled and cuTensorMapEncodeIm2col.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

namespace {

// Channels last: sizes and strides of c, w, h, n (of a weight c, k, s, r in CUTLASS's order), strides in bytes.
struct Descriptor {
  bool gathers;
  char* data;
  std::array<int64_t, 5> sizes, strides;
  std::array<int, 2> lower, upper;    // of w, h
  std::array<int64_t, 5> box, steps;  // of a gather: channels, pixels
  bool plain;                         // neither interleaved nor filled with anything but zeros
};
std::vector<Descriptor> descriptors;
CUresult answer = CUDA_SUCCESS;

Descriptor& descriptor(const CUtensorMap* map) {
  size_t index;
  std::memcpy(&index, map, sizeof index);
  return descriptors.at(index);
}

// What cuTensorMapEncodeTiled and cuTensorMapEncodeIm2col refuse, for 16-bit types of 4 dimensions.
CUresult keep(CUtensorMap* map, CUtensorMapDataType type, unsigned rank, void* data, const cuuint64_t* sizes,
              const cuuint64_t* strides, Descriptor made) {
  bool good = type == CU_TENSOR_MAP_DATA_TYPE_UINT16 || type == CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  good &= rank == 4 && made.plain && reinterpret_cast<uintptr_t>(data) % 16 == 0;
  made.data = static_cast<char*>(data);
  for (unsigned i = 0; i < rank; ++i) {
    made.sizes[i] = int64_t(sizes[i]), made.strides[i] = i ? int64_t(strides[i - 1]) : 2;
    good &= sizes[i] >= 1 && sizes[i] <= uint64_t(1) << 32 && made.steps[i] >= 1 && made.steps[i] <= 8;
    good &= i == 0 || (made.strides[i] % 16 == 0 && made.strides[i] < int64_t(1) << 40);
  }
  const size_t index = descriptors.size();
  std::memcpy(map, &index, sizeof index);
  descriptors.push_back(made);
  return good ? answer : CUDA_ERROR_INVALID_VALUE;
}

CUresult encode_tiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* data, const cuuint64_t* sizes,
                      const cuuint64_t* strides, const cuuint32_t* box, const cuuint32_t* steps,
                      CUtensorMapInterleave interleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                      CUtensorMapFloatOOBfill fill) {
  Descriptor made{};
  made.plain = interleave == CU_TENSOR_MAP_INTERLEAVE_NONE && fill == CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE;
  for (unsigned i = 0; i < rank; ++i) {
    made.box[i] = box[i], made.steps[i] = steps[i];
    if (box[i] < 1 || box[i] > 256) return CUDA_ERROR_INVALID_VALUE;
  }
  return keep(map, type, rank, data, sizes, strides, made);
}

CUresult encode_im2col(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* data, const cuuint64_t* sizes,
                       const cuuint64_t* strides, const int* lower, const int* upper, cuuint32_t channels,
                       cuuint32_t pixels, const cuuint32_t* steps, CUtensorMapInterleave interleave, CUtensorMapSwizzle,
                       CUtensorMapL2promotion, CUtensorMapFloatOOBfill fill) {
  Descriptor made{};
  made.gathers = true;
  made.plain = interleave == CU_TENSOR_MAP_INTERLEAVE_NONE && fill == CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE;
  made.box = {channels, pixels};
  if (channels < 1 || channels > 256 || pixels < 1 || pixels > 1024) return CUDA_ERROR_INVALID_VALUE;
  for (unsigned i = 0; i < rank; ++i) made.steps[i] = steps[i];
  for (int i = 0; i < 2; ++i) {
    made.lower[i] = lower[i], made.upper[i] = upper[i];
    if (std::min(lower[i], upper[i]) < -128 || std::max(lower[i], upper[i]) > 127) return CUDA_ERROR_INVALID_VALUE;
  }
  return keep(map, type, rank, data, sizes, strides, made);
}

cudaError_t entry_point(const char* symbol, void** function, cudaDriverEntryPointQueryResult* status) {
  const bool im2col = !std::strcmp(symbol, "cuTensorMapEncodeIm2col");
  *function = im2col ? reinterpret_cast<void*>(encode_im2col) : reinterpret_cast<void*>(encode_tiled);
  *status = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

}  // namespace

// In place of the runtime's, which looks for a driver.
#if CUDART_VERSION >= 13000
extern "C" cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned,
                                                        unsigned long long, cudaDriverEntryPointQueryResult* status) {
  return entry_point(symbol, function, status);
}
#else
extern "C" cudaError_t cudaGetDriverEntryPoint(const char* symbol, void** function, unsigned long long,
                                               cudaDriverEntryPointQueryResult* status) {
  return entry_point(symbol, function, status);
}
#endif

namespace {

// Calls use(pixel of the box, address or null where there are zeros) for the pixels from (w, h, n) on, each moved by
// the kernel's position (s, r): over the box between the corners row by row, image by image.
template <class Use>
void gather(const Descriptor& d, int64_t w, int64_t h, int64_t n, int64_t s, int64_t r, Use use) {
  const int64_t last_w = d.sizes[1] - 1 + d.upper[0], last_h = d.sizes[2] - 1 + d.upper[1];
  for (int64_t pixel = 0; pixel < d.box[1]; ++pixel) {
    const bool inside = w + s >= 0 && w + s < d.sizes[1] && h + r >= 0 && h + r < d.sizes[2] && n < d.sizes[3];
    use(pixel, inside ? d.data + (w + s) * d.strides[1] + (h + r) * d.strides[2] + n * d.strides[3] : nullptr);
    if ((w += d.steps[1]) <= last_w) continue;
    w = d.lower[0];
    if ((h += d.steps[2]) <= last_h) continue;
    h = d.lower[1], ++n;
  }
}

}  // namespace
