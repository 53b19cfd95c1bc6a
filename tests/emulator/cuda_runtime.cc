// The parts of CUDA's driver and runtime that the launchers call.

#include <cuda.h>

#include <cstdlib>
#include <string>

#include "state.h"

namespace {

// DHP_EMULATED_CAPABILITY is 8 or, where it is not set, 9.
int capability() {
  const char* const asked = std::getenv("DHP_EMULATED_CAPABILITY");
  return asked == nullptr ? 9 : std::atoi(asked);
}

// DHP_EMULATED_MULTIPROCESSORS or, where it is not set, so few that blocks that persist have more than one
// item.
int multiprocessors() {
  const char* const asked = std::getenv("DHP_EMULATED_MULTIPROCESSORS");
  return asked == nullptr ? 3 : std::atoi(asked);
}

// DHP_EMULATED_DRIVER is "old", "refusing" or not set.
bool driver_is(const std::string& sort) {
  const char* const asked = std::getenv("DHP_EMULATED_DRIVER");
  return asked != nullptr && asked == sort;
}

CUresult encode(CUtensorMap* to, CUtensorMapDataType type, cuuint32_t axes, void* data,
                const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box, const cuuint32_t*,
                CUtensorMapInterleave, CUtensorMapSwizzle swizzle, CUtensorMapL2promotion,
                CUtensorMapFloatOOBfill fill) {
  if (driver_is("refusing")) return CUDA_ERROR_INVALID_VALUE;
  const bool is_known =
      (type == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 || type == CU_TENSOR_MAP_DATA_TYPE_FLOAT16) && axes == 5 &&
      box[0] == emulator::kBoxChannels && box[2] * box[3] * box[4] == 1 &&
      swizzle == CU_TENSOR_MAP_SWIZZLE_128B && fill == CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE;
  if (!is_known || box[1] < 1 || box[1] > 256 || reinterpret_cast<uintptr_t>(data) % 16 != 0)
    return CUDA_ERROR_INVALID_VALUE;
  emulator::Map map{static_cast<unsigned char*>(data), {}, {}, static_cast<int>(box[1])};
  static_assert(sizeof map <= sizeof *to);
  std::copy_n(sizes, 5, map.sizes);
  std::copy_n(strides, 4, map.strides);
  for (const int64_t stride : map.strides) {
    if (stride % 16 != 0 || stride == 0) return CUDA_ERROR_INVALID_VALUE;
  }
  for (const int64_t size : map.sizes) {
    if (size == 0) return CUDA_ERROR_INVALID_VALUE;
  }
  std::memcpy(to, &map, sizeof map);
  return CUDA_SUCCESS;
}

}  // namespace

// The part of CUDA that the launchers call.
extern "C" {
cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  *function = reinterpret_cast<void*>(+encode);
  *result = driver_is("old") ? cudaDriverEntryPointSymbolNotFound : cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? capability()
           : attribute == cudaDevAttrMultiProcessorCount  ? multiprocessors()
                                                          : 0;
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int value) {
  return value <= static_cast<int>(sizeof dhp::sMemory) ? cudaSuccess : cudaErrorInvalidValue;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "the emulator refused it"; }
}
