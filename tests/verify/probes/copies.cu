// Every other way into and out of shared memory: cp.async with groups, bulk copies, tensor stores, ldmatrix,
// stmatrix, mma.sync, and programmatic dependent launch around them.

#include "hopper.cuh"

// expect: SAFE
__global__ void __launch_bounds__(128) copy_groups(const uint4* in, uint4* out, int rows) {
  __shared__ uint4 stages[2][128];
  grid_dependency_wait();
  copy_async16(shared_address(&stages[0][threadIdx.x]), in + threadIdx.x);
  copy_async_commit();
  uint4 sum = {};
  for (int row = 0; row < rows; ++row) {
    const int next = min(row + 1, rows - 1);
    copy_async16(shared_address(&stages[(row + 1) & 1][threadIdx.x]), in + next * 128 + threadIdx.x);
    copy_async_commit();
    copy_async_wait<1>();
    __syncthreads();
    const uint4 value = stages[row & 1][threadIdx.x ^ 1];
    sum = {sum.x + value.x, sum.y ^ value.y, max(sum.z, value.z), sum.w | value.w};
    __syncthreads();
  }
  grid_launch_dependents();
  out[threadIdx.x] = sum;
}

// expect: SAFE
__global__ void __launch_bounds__(128)
    bulk_copies(const float* in, float* out, const __grid_constant__ TensorMap map) {
  __shared__ alignas(128) float tile[1024];
  __shared__ uint64_t barrier;
  const uint32_t address = shared_address(&barrier);
  if (threadIdx.x == 0) {
    mbarrier_init(address, 1);
    fence_mbarrier_init();
    mbarrier_expect_tx(address, sizeof(tile));
    bulk_load(shared_address(tile), in + blockIdx.x * 1024, sizeof(tile), address);
  }
  __syncthreads();
  while (!mbarrier_test(address, 0)) {}
  for (int i = threadIdx.x; i < 1024; i += 128) tile[i] = fmaxf(tile[i], 0.0f);
  fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    bulk_store(out + blockIdx.x * 1024, shared_address(tile), sizeof(tile));
    tma_store_2d(&map, shared_address(tile), 0, blockIdx.x);
    bulk_commit();
    bulk_wait_read();
    bulk_wait();
  }
}

// expect: SAFE
__global__ void __launch_bounds__(32) matrix_moves(const uint4* in, float* out) {
  __shared__ uint4 tile[64];
  tile[threadIdx.x] = in[threadIdx.x];
  tile[32 + threadIdx.x] = in[32 + threadIdx.x];
  __syncwarp();
  uint32_t a[4], b[2];
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(shared_address(&tile[threadIdx.x])));
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(b[0]), "=r"(b[1])
               : "r"(shared_address(&tile[32 + threadIdx.x % 16])));
  float d[4] = {};
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  __syncwarp();
  asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};" ::"r"(
                   shared_address(&tile[threadIdx.x % 16])),
               "r"(__float_as_uint(d[0])), "r"(__float_as_uint(d[1]))
               : "memory");
  __syncwarp();
  out[threadIdx.x] = d[2] + d[3] + __uint_as_float(tile[threadIdx.x].x);
}
