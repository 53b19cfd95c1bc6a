#include "launch/tensor_map.h"

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "launch/config.h"

namespace dhp {
namespace {

constexpr int kBoxChannels = 64;
constexpr int kStrideUnit = 16;  // bytes

using Encode = decltype(&cuTensorMapEncodeTiled);

// The driver's function, asked for at run time: the library is also loaded where there is no driver.
Encode find_encode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result;
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                             cudaEnableDefault, &result);
  return error == cudaSuccess && result == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(function)
                                                                       : nullptr;
}

}  // namespace

std::string encode_tensor_map(TensorMap& map, const void* data, std::array<int64_t, 5> sizes,
                              const std::array<int64_t, 4>& strides, DType dtype, int box_rows, Fetch fetch) {
  static_assert(sizeof(TensorMap) == sizeof(CUtensorMap));
  static const Encode encode = find_encode();
  if (encode == nullptr) return "the driver has no cuTensorMapEncodeTiled; use one of CUDA 12.0 or newer.";
  cuuint64_t dims[5], bytes[4];
  for (int axis = 0; axis < 5; ++axis) {
    const bool repeats = axis > 0 && strides[axis - 1] == 0;
    dims[axis] = repeats ? 1 : sizes[axis];
    if (axis > 0) bytes[axis - 1] = repeats ? kStrideUnit : strides[axis - 1] * element_bytes(dtype);
  }
  const cuuint32_t box[5] = {kBoxChannels, static_cast<cuuint32_t>(box_rows), 1, 1, 1};
  const cuuint32_t element_strides[5] = {1, 1, 1, 1, 1};
  const CUtensorMapL2promotion promotion =
      fetch == Fetch::kTwoLines ? CU_TENSOR_MAP_L2_PROMOTION_L2_256B : CU_TENSOR_MAP_L2_PROMOTION_NONE;
  const CUresult result =
      encode(reinterpret_cast<CUtensorMap*>(map.bytes),
             dtype == DType::kBFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
             5, const_cast<void*>(data), dims, bytes, box, element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, promotion, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result == CUDA_SUCCESS) return {};
  return "the driver refused a tensor map (error " + std::to_string(result) + ").";
}

}  // namespace dhp
