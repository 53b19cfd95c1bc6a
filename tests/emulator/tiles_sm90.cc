// Prints the tiles of the Hopper kernel, one instance a line: channels, whether there is a band, whether
// there are few keys, query rows of a block, key rows of a tile, tiles in the ring.

#include <cstdio>

#include "kernels/attention_fwd_sm90.cuh"
#include "launch/config.h"

template <int channels, bool has_band, bool has_few_keys = false>
void print() {
  using Config =
      dhp::HopperConfig<dhp::DType::kBFloat16, channels, dhp::Scores::kPlain, has_band, has_few_keys>;
  using Tiles = dhp::HopperForwardTiles<Config>;
  std::printf("%d %d %d %d %d %d\n", channels, has_band, has_few_keys, Tiles::kQueryRows, Tiles::kKeyRows,
              Tiles::kKeyStages);
}

int main() {
  print<64, false>(), print<64, true>();
  print<128, false>(), print<128, false, true>(), print<128, true>();
  print<256, false>(), print<256, true>();
  print<96, false>(), print<96, false, true>(), print<96, true>();
  print<192, false>(), print<192, true>();
}
