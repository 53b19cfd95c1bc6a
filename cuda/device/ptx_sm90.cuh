// The instructions of compute capability 9.0 that C++ has no name for: barriers in shared memory, tensor
// copies, products of a warpgroup (four warps, 128 threads). What they mean is in the PTX ISA.

#pragma once

#include <cstdint>

namespace dhp::ptx {

// A barrier in shared memory (mbarrier): `count` arrivals, and the bytes announced to it, end a phase.
__device__ inline void init_barrier(uint32_t barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" : : "r"(barrier), "r"(count) : "memory");
}
// After init_barrier, for the unit that copies; other threads see it after the next __syncthreads.
__device__ inline void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ inline void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" : : "r"(barrier) : "memory");
}
// Arrives, and announces bytes that copies will bring.
__device__ inline void arrive_expecting(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;"
               :
               : "r"(barrier), "r"(bytes)
               : "memory");
}
// Whether the phase of this parity is over; may wait a while for it. The first phase has parity 0.
__device__ inline bool is_over(uint32_t barrier, uint32_t parity) {
  uint32_t over;
  asm volatile(
      "{\n"
      ".reg .pred over;\n"
      "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 over, [%1], %2;\n"
      "selp.u32 %0, 1, 0, over;\n"
      "}"
      : "=r"(over)
      : "r"(barrier), "r"(parity)
      : "memory");
  return over != 0;
}

// Blocks of a cluster reach each other's shared memory. A block may be written to from where it has arrived,
// and the writer waited, on; what it has stored before it arrives is not made known to the others.
__device__ inline void arrive_at_cluster() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ inline void wait_for_cluster() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// The same place of shared memory in the block of this rank, for store_async.
__device__ inline uint32_t address_in_block(uint32_t address, uint32_t rank) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}
// Stores 16 bytes in a block, and tells a barrier of the same block that they have come.
__device__ inline void store_async(uint32_t to, const float (&values)[4], uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];"
      :
      : "r"(to), "f"(values[0]), "f"(values[1]), "f"(values[2]), "f"(values[3]), "r"(barrier)
      : "memory");
}

// True in one lane of the warp, which is together.
__device__ inline bool is_elected() {
  uint32_t elected;
  asm volatile(
      "{\n"
      ".reg .pred elected;\n"
      "elect.sync _|elected, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, elected;\n"
      "}"
      : "=r"(elected));
  return elected != 0;
}

// Waits for all threads that use the barrier of this number, 1 to 15.
template <int kThreads>
__device__ void meet(int number) {
  asm volatile("bar.sync %0, %1;" : : "r"(number), "n"(kThreads) : "memory");
}
// Is one of those threads, and does not wait for the others.
template <int kThreads>
__device__ void arrive_at_meeting(int number) {
  asm volatile("bar.arrive %0, %1;" : : "r"(number), "n"(kThreads) : "memory");
}

// What this thread has stored in shared memory can be seen by copies and products.
__device__ inline void fence_stores() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Tensor copies: a box of the tensor that `map` describes, from the coordinates (channel, row, head, b, v).
// What lies outside of the tensor is zero when loaded and not written when stored.
__device__ inline void load_box(uint32_t to, const void* map, uint32_t barrier, int channel, int row,
                                int head, int b, int v) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4, %5, %6, %7}], [%2];"
      :
      : "r"(to), "l"(map), "r"(barrier), "r"(channel), "r"(row), "r"(head), "r"(b), "r"(v)
      : "memory");
}
__device__ inline void store_box(uint32_t from, const void* map, int channel, int row, int head, int b,
                                 int v) {
  asm volatile("cp.async.bulk.tensor.5d.global.shared::cta.bulk_group [%1, {%2, %3, %4, %5, %6}], [%0];"
               :
               : "r"(from), "l"(map), "r"(channel), "r"(row), "r"(head), "r"(b), "r"(v)
               : "memory");
}
// Waits until this thread's stores of boxes have read shared memory.
__device__ inline void wait_for_stores() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}

// Between two launches of one stream, the second of which may start before the first has ended (Grid in
// launch/grid.h). Waits until all that is before this launch has ended; what it wrote is seen from then on.
__device__ inline void wait_for_launch_before() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
// The launch after this one may start once all blocks have said so.
__device__ inline void let_next_launch_start() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// The registers of each thread of the warpgroup, from now on; the block has what it was launched with.
template <int kRegisters>
__device__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" : : "n"(kRegisters));
}
template <int kRegisters>
__device__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" : : "n"(kRegisters));
}

// Products of a warpgroup run beside its other instructions. The registers that one reads or writes are
// touched neither between it and the wait for it nor, unless this stands between, before it.
__device__ inline void fence_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// The products since the last call form a group.
__device__ inline void close_product_group() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until at most this many groups are under way.
template <int kUnderWay>
__device__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" : : "n"(kUnderWay) : "memory");
}
// A use of the value that follows a wait is not moved before it.
__device__ inline void pin(float& value) { asm volatile("" : "+f"(value) : : "memory"); }

// sums (64 rows by 8 per tile) = [sums +] left . right, over 16 elements. Warp w of the group has rows 16 w
// to 16 w + 15, a lane what it has of mma.m16n8. Operands in shared memory are named by descriptors.
//   wgmma_*(sums, left, right, accumulates)  both in shared memory, by rows
//   wgmma_*(sums, left, right, accumulates)  left in registers; right as 16 rows, whose columns are the sums'
#define DHP_NAMES_0 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define DHP_NAMES_1 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define DHP_NAMES_2 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define DHP_NAMES_3 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define DHP_NAMES_4 "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define DHP_NAMES_5 "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define DHP_NAMES_6 \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define DHP_NAMES_7 \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define DHP_NAMES_16 DHP_NAMES_0 ", " DHP_NAMES_1 ", " DHP_NAMES_2 ", " DHP_NAMES_3
#define DHP_TILE(t) "+f"(sums[t][0]), "+f"(sums[t][1]), "+f"(sums[t][2]), "+f"(sums[t][3])
#define DHP_TILES(t) DHP_TILE(t), DHP_TILE(t + 1), DHP_TILE(t + 2), DHP_TILE(t + 3)
#define DHP_TILES_16(t) DHP_TILES(t), DHP_TILES(t + 4), DHP_TILES(t + 8), DHP_TILES(t + 12)
#define DHP_LIST(...) __VA_ARGS__

#define DHP_WGMMA_SHARED(name, type, tiles, columns, names, registers, left_name, right_name, flag_name) \
  __device__ inline void name(float (&sums)[tiles][4], uint64_t left, uint64_t right, int accumulates) { \
    asm volatile("{\n.reg .pred adds;\nsetp.ne.b32 adds, " flag_name                                     \
                 ", 0;\n"                                                                                \
                 "wgmma.mma_async.sync.aligned.m64n" columns "k16.f32." type "." type " {" names         \
                 "}, " left_name ", " right_name ", adds, 1, 1, 0, 0;\n}"                                \
                 : registers                                                                             \
                 : "l"(left), "l"(right), "r"(accumulates));                                             \
  }
#define DHP_WGMMA_REGISTERS(name, type, tiles, columns, names, registers, left_names, right_name, flag_name) \
  __device__ inline void name(float (&sums)[tiles][4], const uint32_t (&left)[4], uint64_t right,            \
                              int accumulates) {                                                             \
    asm volatile("{\n.reg .pred adds;\nsetp.ne.b32 adds, " flag_name                                         \
                 ", 0;\n"                                                                                    \
                 "wgmma.mma_async.sync.aligned.m64n" columns "k16.f32." type "." type " {" names             \
                 "}, {" left_names "}, " right_name ", adds, 1, 1, 1;\n}"                                    \
                 : registers                                                                                 \
                 : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "l"(right), "r"(accumulates));    \
  }
#define DHP_WGMMA(name, type)                                                                                \
  DHP_WGMMA_SHARED(name, type, 8, "64", DHP_NAMES_0 ", " DHP_NAMES_1, DHP_LIST(DHP_TILES(0), DHP_TILES(4)),  \
                   "%32", "%33", "%34")                                                                      \
  DHP_WGMMA_SHARED(name, type, 10, "80",                                                                     \
                   DHP_NAMES_0 ", " DHP_NAMES_1 ", %32, %33, %34, %35, %36, %37, %38, %39",                  \
                   DHP_LIST(DHP_TILES(0), DHP_TILES(4), DHP_TILE(8), DHP_TILE(9)), "%40", "%41", "%42")      \
  DHP_WGMMA_SHARED(name, type, 12, "96", DHP_NAMES_0 ", " DHP_NAMES_1 ", " DHP_NAMES_2,                      \
                   DHP_LIST(DHP_TILES(0), DHP_TILES(4), DHP_TILES(8)), "%48", "%49", "%50")                  \
  DHP_WGMMA_SHARED(name, type, 14, "112",                                                                    \
                   DHP_NAMES_0 ", " DHP_NAMES_1 ", " DHP_NAMES_2 ", %48, %49, %50, %51, %52, %53, %54, %55", \
                   DHP_LIST(DHP_TILES(0), DHP_TILES(4), DHP_TILES(8), DHP_TILE(12), DHP_TILE(13)), "%56",    \
                   "%57", "%58")                                                                             \
  DHP_WGMMA_SHARED(name, type, 16, "128", DHP_NAMES_16, DHP_LIST(DHP_TILES_16(0)), "%64", "%65", "%66")      \
  DHP_WGMMA_SHARED(                                                                                          \
      name, type, 22, "176", DHP_NAMES_16 ", " DHP_NAMES_4 ", %80, %81, %82, %83, %84, %85, %86, %87",       \
      DHP_LIST(DHP_TILES_16(0), DHP_TILES(16), DHP_TILE(20), DHP_TILE(21)), "%88", "%89", "%90")             \
  DHP_WGMMA_REGISTERS(name, type, 8, "64", DHP_NAMES_0 ", " DHP_NAMES_1,                                     \
                      DHP_LIST(DHP_TILES(0), DHP_TILES(4)), "%32, %33, %34, %35", "%36", "%37")              \
  DHP_WGMMA_REGISTERS(name, type, 9, "72", DHP_NAMES_0 ", " DHP_NAMES_1 ", %32, %33, %34, %35",              \
                      DHP_LIST(DHP_TILES(0), DHP_TILES(4), DHP_TILE(8)), "%36, %37, %38, %39", "%40", "%41") \
  DHP_WGMMA_REGISTERS(name, type, 12, "96", DHP_NAMES_0 ", " DHP_NAMES_1 ", " DHP_NAMES_2,                   \
                      DHP_LIST(DHP_TILES(0), DHP_TILES(4), DHP_TILES(8)), "%48, %49, %50, %51", "%52",       \
                      "%53")                                                                                 \
  DHP_WGMMA_REGISTERS(name, type, 16, "128", DHP_NAMES_16, DHP_LIST(DHP_TILES_16(0)), "%64, %65, %66, %67",  \
                      "%68", "%69")                                                                          \
  DHP_WGMMA_REGISTERS(name, type, 24, "192", DHP_NAMES_16 ", " DHP_NAMES_4 ", " DHP_NAMES_5,                 \
                      DHP_LIST(DHP_TILES_16(0), DHP_TILES(16), DHP_TILES(20)), "%96, %97, %98, %99", "%100", \
                      "%101")                                                                                \
  DHP_WGMMA_REGISTERS(name, type, 32, "256",                                                                 \
                      DHP_NAMES_16 ", " DHP_NAMES_4 ", " DHP_NAMES_5 ", " DHP_NAMES_6 ", " DHP_NAMES_7,      \
                      DHP_LIST(DHP_TILES_16(0), DHP_TILES_16(16)), "%128, %129, %130, %131", "%132", "%133")
DHP_WGMMA(wgmma_bf16, "bf16")
DHP_WGMMA(wgmma_f16, "f16")

}  // namespace dhp::ptx
