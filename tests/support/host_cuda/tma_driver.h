// Stands in for the CUDA driver: records the TMA descriptors that are encoded, refuses what the driver's manual
// refuses, and emulates TMA's gather by a descriptor. For 4-D tensors of a 16-bit type. Source: CUDA driver API,
// cuTensorMapEncodeTiled and cuTensorMapEncodeIm2col.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

namespace {

// Sizes and strides of c, w, h, n (for a weight c, k, s, r, CUTLASS's order); strides are in bytes.
struct Descriptor {
  bool im2col;
  char* data;
  std::array<int64_t, 5> sizes, strides;
  std::array<int, 2> lower, upper;    // w, h
  std::array<int64_t, 5> box, steps;  // box of im2col: channels, pixels
  bool plain;                         // not interleaved, and filled with zeros
};
std::vector<Descriptor> descriptors;
CUresult answer = CUDA_SUCCESS;

Descriptor& descriptor(const CUtensorMap* map) {
  size_t index;
  std::memcpy(&index, map, sizeof index);
  return descriptors.at(index);
}

// Records a descriptor, and refuses what cuTensorMapEncodeTiled and cuTensorMapEncodeIm2col refuse.
CUresult record(CUtensorMap* map, CUtensorMapDataType type, unsigned rank, void* data, const cuuint64_t* sizes,
                const cuuint64_t* strides, Descriptor encoded) {
  bool good = type == CU_TENSOR_MAP_DATA_TYPE_UINT16 || type == CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  good &= rank == 4 && encoded.plain && reinterpret_cast<uintptr_t>(data) % 16 == 0;
  encoded.data = static_cast<char*>(data);
  for (unsigned i = 0; i < rank; ++i) {
    encoded.sizes[i] = int64_t(sizes[i]), encoded.strides[i] = i ? int64_t(strides[i - 1]) : 2;
    good &= sizes[i] >= 1 && sizes[i] <= uint64_t(1) << 32 && encoded.steps[i] >= 1 && encoded.steps[i] <= 8;
    good &= i == 0 || (encoded.strides[i] % 16 == 0 && encoded.strides[i] < int64_t(1) << 40);
  }
  const size_t index = descriptors.size();
  std::memcpy(map, &index, sizeof index);
  descriptors.push_back(encoded);
  return good ? answer : CUDA_ERROR_INVALID_VALUE;
}

CUresult encode_tiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* data, const cuuint64_t* sizes,
                      const cuuint64_t* strides, const cuuint32_t* box, const cuuint32_t* steps,
                      CUtensorMapInterleave interleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                      CUtensorMapFloatOOBfill fill) {
  Descriptor encoded{};
  encoded.plain = interleave == CU_TENSOR_MAP_INTERLEAVE_NONE && fill == CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE;
  for (unsigned i = 0; i < rank; ++i) {
    encoded.box[i] = box[i], encoded.steps[i] = steps[i];
    if (box[i] < 1 || box[i] > 256) return CUDA_ERROR_INVALID_VALUE;
  }
  return record(map, type, rank, data, sizes, strides, encoded);
}

CUresult encode_im2col(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* data, const cuuint64_t* sizes,
                       const cuuint64_t* strides, const int* lower, const int* upper, cuuint32_t channels,
                       cuuint32_t pixels, const cuuint32_t* steps, CUtensorMapInterleave interleave, CUtensorMapSwizzle,
                       CUtensorMapL2promotion, CUtensorMapFloatOOBfill fill) {
  Descriptor encoded{};
  encoded.im2col = true;
  encoded.plain = interleave == CU_TENSOR_MAP_INTERLEAVE_NONE && fill == CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE;
  encoded.box = {channels, pixels};
  if (channels < 1 || channels > 256 || pixels < 1 || pixels > 1024) return CUDA_ERROR_INVALID_VALUE;
  for (unsigned i = 0; i < rank; ++i) encoded.steps[i] = steps[i];
  for (int i = 0; i < 2; ++i) {
    encoded.lower[i] = lower[i], encoded.upper[i] = upper[i];
    if (std::min(lower[i], upper[i]) < -128 || std::max(lower[i], upper[i]) > 127) return CUDA_ERROR_INVALID_VALUE;
  }
  return record(map, type, rank, data, sizes, strides, encoded);
}

cudaError_t entry_point(const char* symbol, void** function, cudaDriverEntryPointQueryResult* status) {
  const bool im2col = !std::strcmp(symbol, "cuTensorMapEncodeIm2col");
  *function = im2col ? reinterpret_cast<void*>(encode_im2col) : reinterpret_cast<void*>(encode_tiled);
  *status = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

}  // namespace

// Replaces the runtime's function, which looks for a driver.
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

// Calls use(pixel of the box, address, or null for zeros) for the pixels from (w, h, n) on, each shifted by the kernel
// position (s, r). The pixels are those between the box's corners, row by row and image by image.
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
