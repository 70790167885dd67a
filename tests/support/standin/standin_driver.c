// A libcuda.so.1 for machines without a GPU, with the functions that Triton's driver module and launchers call. It
// loads and runs nothing; it refuses what the CUDA driver refuses, with the reason in cuGetErrorString.
// Source: CUDA driver API; the rules for descriptors are those of cuTensorMapEncodeTiled.
#include <cuda.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

typedef struct {
  int dynamic_shared;
} Function;

static struct {
  int capability, multiprocessors, shared;
} chip = {90, 132, 232448};
static Function functions[1 << 16];
static int loaded, launched, encoded;
static char error[512];

static CUresult refuse(CUresult code, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(error, sizeof error, format, arguments);
  va_end(arguments);
  return code;
}
#define REQUIRE(condition, ...) \
  if (!(condition)) return refuse(CUDA_ERROR_INVALID_VALUE, __VA_ARGS__)

// Tensors of the stand-in have addresses from 1 << 44 on, where a process has no memory.
static int any_memory;
static int on_gpu(uintptr_t address) { return any_memory || address >> 44 == 1; }

// For Python: sets the chip; the counts of calls so far are below.
EXPORT void standin_chip(int capability, int multiprocessors, int shared) {
  chip.capability = capability, chip.multiprocessors = multiprocessors, chip.shared = shared;
}
// Accepts memory of this process as GPU memory, for benchmarks on tensors that plain torch computes too.
EXPORT void standin_any_memory(int any) { any_memory = any; }
EXPORT int standin_loaded(void) { return loaded; }
EXPORT int standin_launched(void) { return launched; }
EXPORT int standin_encoded(void) { return encoded; }

EXPORT CUresult cuGetErrorString(CUresult code, const char** text) { return *text = error, CUDA_SUCCESS; }
EXPORT CUresult cuDriverGetVersion(int* version) { return *version = CUDA_VERSION, CUDA_SUCCESS; }
EXPORT CUresult cuDeviceGet(CUdevice* device, int ordinal) { return *device = ordinal, CUDA_SUCCESS; }
EXPORT CUresult cuCtxGetCurrent(CUcontext* context) { return *context = (CUcontext)1, CUDA_SUCCESS; }
EXPORT CUresult cuCtxSetCurrent(CUcontext context) { return CUDA_SUCCESS; }
EXPORT CUresult cuCtxGetLimit(size_t* value, CUlimit limit) { return *value = 0, CUDA_SUCCESS; }
EXPORT CUresult cuCtxSetLimit(CUlimit limit, size_t value) { return CUDA_SUCCESS; }
EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) { return cuCtxGetCurrent(context); }

EXPORT CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
      return *value = chip.shared, CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK:
      return *value = 65536, CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
      return *value = chip.multiprocessors, CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE:
      return *value = 32, CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
      return *value = chip.capability / 10, CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
      return *value = chip.capability % 10, CUDA_SUCCESS;
    default:
      return *value = 1, CUDA_SUCCESS;  // clocks and bus width: nothing here depends on them
  }
}

// Expects an ELF file for this chip, whose number is in the low byte of e_flags, in newer files in the second byte.
EXPORT CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  const unsigned char* elf = image;
  uint32_t flags;
  REQUIRE(!memcmp(elf, "\177ELF", 4), "cuModuleLoadData: expected a cubin");
  memcpy(&flags, elf + 48, sizeof flags);
  const int capability = elf[8] < 8 ? flags & 0xff : flags >> 8 & 0xff;
  if (capability != chip.capability)
    return refuse(CUDA_ERROR_NO_BINARY_FOR_GPU, "cuModuleLoadData: expected code for sm_%d, got sm_%d", chip.capability,
                  capability);
  REQUIRE(loaded + 1 < 1 << 16, "cuModuleLoadData: more kernels than the stand-in has room for");
  functions[++loaded].dynamic_shared = 48 << 10;
  return *module = (CUmodule)&functions[loaded], CUDA_SUCCESS;
}

EXPORT CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  return *function = (CUfunction)module, CUDA_SUCCESS;
}

EXPORT CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction function) {
  return *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0, CUDA_SUCCESS;
}

EXPORT CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
  if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_SUCCESS;
  REQUIRE(value <= chip.shared, "shared memory: expected at most %d bytes on sm_%d, got %d", chip.shared,
          chip.capability, value);
  return ((Function*)function)->dynamic_shared = value, CUDA_SUCCESS;
}
EXPORT CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) { return CUDA_SUCCESS; }

EXPORT CUresult cuPointerGetAttribute(void* value, CUpointer_attribute attribute, CUdeviceptr pointer) {
  REQUIRE(on_gpu(pointer), "pointer: expected one into GPU memory, got %#llx", (unsigned long long)pointer);
  memcpy(value, &pointer, sizeof pointer);
  return CUDA_SUCCESS;
}

EXPORT CUresult cuOccupancyMaxActiveClusters(int* clusters, CUfunction function, const CUlaunchConfig* config) {
  return *clusters = 1, CUDA_SUCCESS;
}

EXPORT CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction f, void** parameters, void** extra) {
  const Function* function = (const Function*)f;
  const unsigned threads = config->blockDimX * config->blockDimY * config->blockDimZ;
  REQUIRE(function > functions && function <= functions + loaded, "launch: expected a function that was loaded");
  REQUIRE(config->gridDimX >= 1 && config->gridDimX < 1u << 31, "grid: expected 1 to 2**31 - 1, got %u",
          config->gridDimX);
  REQUIRE(config->gridDimY == 1 && config->gridDimZ == 1, "grid: expected one dimension");
  REQUIRE(threads >= 32 && threads <= 1024, "block: expected 32 to 1024 threads, got %u", threads);
  REQUIRE((int)config->sharedMemBytes <= function->dynamic_shared, "shared memory: expected at most %d bytes, got %u",
          function->dynamic_shared, config->sharedMemBytes);
  REQUIRE(parameters, "launch: expected parameters");
  return ++launched, CUDA_SUCCESS;
}

static int bytes_of(CUtensorMapDataType type) {
  switch (type) {
    case CU_TENSOR_MAP_DATA_TYPE_UINT8:
      return 1;
    case CU_TENSOR_MAP_DATA_TYPE_UINT16:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
    case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16:
      return 2;
    case CU_TENSOR_MAP_DATA_TYPE_UINT64:
    case CU_TENSOR_MAP_DATA_TYPE_INT64:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT64:
      return 8;
    default:
      return 4;
  }
}

EXPORT CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* data,
                                       const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box,
                                       const cuuint32_t* steps, CUtensorMapInterleave interleave,
                                       CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,
                                       CUtensorMapFloatOOBfill fill) {
  const unsigned inner = box[0] * bytes_of(type);
  const unsigned widest = swizzle == CU_TENSOR_MAP_SWIZZLE_NONE ? ~0u : 16u << swizzle;  // 32, 64, 128 bytes
  REQUIRE((uintptr_t)map % 64 == 0, "descriptor: expected it at a multiple of 64 bytes");
  REQUIRE(chip.capability >= 90, "descriptor: expected sm_90 or newer, got sm_%d", chip.capability);
  REQUIRE(rank >= 1 && rank <= 5, "descriptor: expected 1 to 5 dimensions, got %u", rank);
  REQUIRE((uintptr_t)data % 16 == 0 && on_gpu((uintptr_t)data),
          "descriptor: expected GPU memory at a multiple of "
          "16 bytes, got %p",
          data);
  REQUIRE(interleave == CU_TENSOR_MAP_INTERLEAVE_NONE, "descriptor: expected no interleave, got %d", interleave);
  REQUIRE(inner % 16 == 0 && inner <= widest,
          "descriptor: expected an inner box of a multiple of 16 bytes, at most %u "
          "with this swizzle, got %u",
          widest, inner);
  for (unsigned i = 0; i < rank; ++i) {
    REQUIRE(sizes[i] >= 1 && sizes[i] <= 1ull << 32,
            "descriptor: expected sizes from 1 to 2**32, got %llu in "
            "dimension %u",
            (unsigned long long)sizes[i], i);
    REQUIRE(box[i] >= 1 && box[i] <= 256, "descriptor: expected a box of 1 to 256, got %u in dimension %u", box[i], i);
    REQUIRE(steps[i] >= 1 && steps[i] <= 8, "descriptor: expected steps of 1 to 8, got %u", steps[i]);
    REQUIRE(i + 1 == rank || (strides[i] % 16 == 0 && strides[i] < 1ull << 40),
            "descriptor: expected strides of "
            "multiples of 16 bytes below 2**40, got %llu in dimension %u",
            (unsigned long long)strides[i], i + 1);
  }
  return ++encoded, CUDA_SUCCESS;
}
