// Forward attention on the tensor cores of Hopper (wgmma), with tensor copies.
//
// A block owns kQueryRows query rows of one head, each warpgroup 64 of them. Key and value tiles come through
// two rings, from the last tile that is seen to the first. Blocks stay: each takes item after item of such
// rows, and what the next item needs is on its way before this one is done. For each tile a warpgroup does
//
//   1  scores = query . key                              wgmma
//   2  running maximum; P = exp2(c score - reference), rounded to the operands' dtype; out *= rescale
//   3  out += P . value                                  wgmma
//
// either one after the other, so that the products of one warpgroup run beside the softmax of the others, or
// (kOverlaps) with the scores of the next tile started before P . value of this one, and those of the next
// item before the rows of this one are stored. With 64 channels P is also multiplied by a column of ones: the
// product then has the sum of a row too.
//
// Who waits for whom: a copy announces its bytes to the barrier of its place, at which all threads wait
// before they read; one thread of each warpgroup arrives at another when its warpgroup has read, and the
// copying warp waits there before it fills the place again. One warp copies keys and one values: of a
// warpgroup of their own or, where four warpgroups leave no registers for that, of the last, which sees most
// keys; what they do there is kept short, since all others wait for it in the end. Query rows are loaded by
// the warpgroup itself: into a second place, an item ahead, or into the only one when its last product of
// them is over. Rows that leave by a copy lie where the item's query rows were, until that copy has read
// them.
//
// Constant time: tiles are chosen by the band alone, and the rescale runs on every tile.

#pragma once

#include "kernels/attention_fwd_sm90_store.cuh"
#include "kernels/attention_fwd_sm90_weights.cuh"
#include "kernels/attention_fwd_sm90_work.cuh"

namespace dhp {

template <typename Tiles>
__device__ void fill_summands(uint32_t ones) {
  const uint32_t one = pack<Tiles::kDType>(1.0f, 1.0f);
  for (int i = threadIdx.x; i < Tiles::kOnesBytes / 4; i += Tiles::kThreads) {
    ptx::store_shared(ones + 4 * i, one);
    if constexpr (Tiles::kSumsOnlyTile) ptx::store_shared(ones + Tiles::kOnesBytes + 4 * i, 0);
  }
  ptx::fence_stores();
}

// Grid: at most one block for each kQueryRows query rows of a head, or two that share their keys.
template <typename Config>
__global__ void __launch_bounds__(HopperForwardTiles<Config>::kThreads, 1)
    attention_fwd_sm90(const __grid_constant__ HopperForwardParams params) {
  using Tiles = HopperForwardTiles<Config>;
  extern __shared__ __align__(kBoxAlignment) unsigned char sMemory[];
  const uint32_t sBegin = ptx::shared_address(sMemory);
  const int warp = warp_of_block();

  Item<Tiles> item = item_of_block<Tiles>(params, 0, 0);
  const Supply<Tiles> supply(params, sBegin);
  if constexpr (Tiles::kHasOnes) fill_summands<Tiles>(sBegin + Tiles::kOnes);
  if (warp == Tiles::kKeyWarp) {
    if (ptx::is_elected()) supply.init();
    __syncwarp();
  }
  ptx::wait_for_launch_before();
  ptx::let_next_launch_start();
  if (warp == Tiles::kKeyWarp) {
    // Every group waits for the first keys, and each for its own query rows alone.
    supply.load(warp, item, 0);
    if constexpr (!Tiles::kCopiesQueryByThreads) {
      for (int group = 0; group < Tiles::kGroups; ++group) supply.load_query(item, group);
    }
  }
  if constexpr (Tiles::kCopiesQueryByThreads) supply.copy_query(item, warp / kGroupWarps);
  if constexpr (Tiles::kIsSplit) supply.block_merge(warp).begin();
  __syncthreads();
  for (int n = warp == Tiles::kKeyWarp ? 1 : 0; n < Tiles::kAhead; ++n) supply.load(warp, item, n);

  if (Tiles::kHasProducer && warp >= Tiles::kKeyWarp) {
    ptx::give_registers<Tiles::kProducerRegisters>();
    for (int n = Tiles::kAhead; item.exists(params);
         item = item_of_block<Tiles>(params, item.round + 1, item.end)) {
      for (; n < item.end; ++n) supply.load(warp, item, n);
    }
  } else {
    if constexpr (Tiles::kHasProducer) ptx::take_registers<Tiles::kConsumerRegisters>();
    // Without overlap nvcc would take the copying warps' parameters to lie anywhere in memory.
    const Supply<Tiles> own(params, sBegin);
    GroupAttention<Config>(params, Tiles::kOverlaps ? supply : own, item, warp).run();
  }
}

}  // namespace dhp
