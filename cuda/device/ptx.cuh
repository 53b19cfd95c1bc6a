// The instructions that C++ has no name for, one function each. What they mean is in the PTX ISA; who may use
// them on secrets is in ct.cuh.

#pragma once

#include <cstddef>
#include <cstdint>

namespace dhp::ptx {

// All ones where the comparison holds, else 0. In asm, so that the front end cannot see that the word began
// as a bool.
__device__ inline uint32_t set_less(int32_t a, int32_t b) {
  uint32_t word;
  asm("set.lt.u32.s32 %0, %1, %2;" : "=r"(word) : "r"(a), "r"(b));
  return word;
}
__device__ inline uint32_t set_nonzero(uint32_t a) {
  uint32_t word;
  asm("set.ne.u32.u32 %0, %1, 0;" : "=r"(word) : "r"(a));
  return word;
}
// False for NaN.
__device__ inline uint32_t set_equal(float a, float b) {
  uint32_t word;
  asm("set.eq.ftz.u32.f32 %0, %1, %2;" : "=r"(word) : "f"(a), "f"(b));
  return word;
}

__device__ inline float ex2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline float lg2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline float rcp(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The value, in a way that the compiler cannot see through.
__device__ inline int32_t opaque(int32_t value) {
  asm volatile("" : "+r"(value));
  return value;
}
__device__ inline size_t opaque(size_t value) {
  asm volatile("" : "+l"(value));
  return value;
}

// A word whose lowest `count` bits are set: none where it is negative, all from 32 on.
__device__ inline uint32_t low_bits(int32_t count) {
  uint32_t bits;
  asm("bmsk.clamp.b32 %0, 0, %1;" : "=r"(bits) : "r"(max(count, 0)));
  return bits;
}

// The block's index along x. Volatile: a second call computes again what follows from it.
__device__ inline uint32_t block_index() {
  uint32_t index;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(index));
  return index;
}

// Of a grid with more than one axis.
__device__ inline uint32_t block_index_y() {
  uint32_t index;
  asm volatile("mov.u32 %0, %%ctaid.y;" : "=r"(index));
  return index;
}
__device__ inline uint32_t block_index_z() {
  uint32_t index;
  asm volatile("mov.u32 %0, %%ctaid.z;" : "=r"(index));
  return index;
}

// The number of blocks along x.
__device__ inline uint32_t grid_size() {
  uint32_t size;
  asm("mov.u32 %0, %%nctaid.x;" : "=r"(size));
  return size;
}

// Shared memory has addresses of 32 bits.
__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
__device__ inline void store_shared(uint32_t to, uint32_t word) {
  asm volatile("st.shared.b32 [%0], %1;" : : "r"(to), "r"(word) : "memory");
}
__device__ inline void store_shared_4(uint32_t to, const float (&values)[4]) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};"
               :
               : "r"(to), "f"(values[0]), "f"(values[1]), "f"(values[2]), "f"(values[3])
               : "memory");
}
__device__ inline void load_shared_4(float (&values)[4], uint32_t from) {
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(values[0]), "=f"(values[1]), "=f"(values[2]), "=f"(values[3])
               : "r"(from)
               : "memory");
}
__device__ inline void store_shared_2(uint32_t to, float2 pair) {
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" : : "r"(to), "f"(pair.x), "f"(pair.y) : "memory");
}
__device__ inline float2 load_shared_2(uint32_t from) {
  float2 pair;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(pair.x), "=f"(pair.y) : "r"(from) : "memory");
  return pair;
}
__device__ inline uint4 load_shared_4(uint32_t from) {
  uint4 words;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "r"(from)
               : "memory");
  return words;
}

// 16 bytes, or 4, from global to shared memory: the first `bytes` are read, the others are zeros. With 0
// nothing is read, and `from` may point anywhere.
__device__ inline void copy_16_async(uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(to), "l"(__cvta_generic_to_global(from)), "r"(bytes)
               : "memory");
}
__device__ inline void copy_4_async(uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
               :
               : "r"(to), "l"(__cvta_generic_to_global(from)), "r"(bytes)
               : "memory");
}
// Copies of this thread since the last call form a group.
__device__ inline void close_copy_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most this many groups of this thread are under way.
template <int kUnderWay>
__device__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" : : "n"(kUnderWay) : "memory");
}

// Four 8x8 matrices of 16-bit elements. Lane 8 i + r names row r, 16 bytes in shared memory, of matrix i.
// Lane 4 g + q gets columns 2q, 2q + 1 of row g of each.
__device__ inline void load_matrices(uint32_t (&to)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(row)
               : "memory");
}
// The same with each matrix transposed: lane 4 g + q gets rows 2q, 2q + 1 of column g.
__device__ inline void load_matrices_transposed(uint32_t (&to)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(row)
               : "memory");
}

// sums += left . right on the tensor cores of the warp; which lane holds what is said in mma.cuh.
#define DHP_MMA(name, shape, type)                                                             \
  __device__ inline void name(float (&sums)[4], const uint32_t (&left)[4], uint32_t right_0,   \
                              uint32_t right_1) {                                              \
    asm("mma.sync.aligned." shape ".row.col.f32." type "." type                                \
        ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                 \
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])                           \
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right_0), "r"(right_1)); \
  }
DHP_MMA(mma_bf16, "m16n8k16", "bf16")
DHP_MMA(mma_f16, "m16n8k16", "f16")
DHP_MMA(mma_tf32, "m16n8k8", "tf32")
#undef DHP_MMA

}  // namespace dhp::ptx
