// A block of rows sees a block of keys if and only if the keys are seen by it. Backward tasks count on that:
// one of them waits at a key block for as many others as see it (host/turns.h). Exit status 1 where the two
// disagree.

#define DHP_ISA test
#include <cstdio>
#include <set>
#include <utility>

#include "host/tile.h"

using namespace dhp;
using namespace dhp::test;

using Pairs = std::set<std::pair<int64_t, int64_t>>;  // (block of rows, block of keys)

Pairs seen_by_rows(const Problem& problem) {
  const int64_t group = problem.shape.group(), num_rows = problem.shape.T * group;
  Pairs pairs;
  for (int64_t row = 0; row < num_row_blocks(problem.shape); ++row) {
    const int64_t first = row * kBlockRows;
    const BlockRange keys =
        visible_key_blocks(problem, {0, 0, 0, group, first, min(kBlockRows, num_rows - first)});
    for (int64_t key = keys.first; key < keys.last; ++key) pairs.insert({row, key});
  }
  return pairs;
}

Pairs seeing_keys(const Problem& problem) {
  Pairs pairs;
  for (int64_t key = 0; key < num_key_blocks(problem.shape); ++key) {
    const int64_t first = key * kBlockKeys;
    const BlockRange rows =
        visible_row_blocks(problem, {0, 0, 0, first, min(kBlockKeys, problem.shape.S - first)});
    for (int64_t row = rows.first; row < rows.last; ++row) pairs.insert({row, key});
  }
  return pairs;
}

int main() {
  int disagreements = 0, problems = 0;
  for (int64_t T : {1, 2, 5, 43, 64, 127, 128, 129, 300})
    for (int64_t S : {1, 3, 63, 64, 65, 130, 300})
      for (int64_t group : {1, 2, 3, 5})
        for (int64_t left : {-300, -65, -2, 0, 1, 40, 64, 129, 400})
          for (int64_t right : {-300, -65, -2, 0, 1, 40, 64, 129, 400}) {
            Problem problem{};
            problem.shape = {1, 1, T, S, group, 1, 8};
            problem.band = {min(left, T), min(right, S)};
            ++problems;
            if (seen_by_rows(problem) == seeing_keys(problem)) continue;
            std::printf("T %d S %d group %d left %d right %d\n", int(T), int(S), int(group), int(left),
                        int(right));
            ++disagreements;
          }
  std::printf("%d of %d disagree\n", disagreements, problems);
  return disagreements != 0;
}
