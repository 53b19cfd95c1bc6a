// Prints the tiles of the kernel for few rows and keys, one instance a line: channels, query rows of a
// cluster, keys of a chunk, keys at most.

#include <cstdio>

#include "kernels/attention_fwd_small_sm90.cuh"
#include "launch/config.h"

template <int channels>
void print() {
  using Config = dhp::HopperConfig<dhp::DType::kBFloat16, channels, dhp::Scores::kPlain, false>;
  using Tiles = dhp::SmallForwardTiles<Config>;
  std::printf("%d %d %d %d\n", channels, Tiles::kQueryRows, Tiles::kChunkKeys, Tiles::kKeys);
}

int main() { print<64>(), print<128>(); }
