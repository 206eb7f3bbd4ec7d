// group_advantage (Eq. 5): launch parameters. `count` rewards, in blocks of `group_size` or named by `ids`.
#pragma once
#include "dispatch.h"

namespace finpercep {

enum class AdvantageScale : int32_t { group, batch, none };

struct AdvantageParams {
  int64_t count, group_size;
  const int64_t* ids;     // (count), or null: blocks
  DType reward_type;
  double eps;
  int64_t correction;     // 0 or 1
  AdvantageScale scale;
  double clip;            // 0: none
  double resolution;      // in [0, 1): rewards whose range is at most this times their largest magnitude are equal
  const void* rewards;    // (count)
  void* advantages;       // (count) float, double for double rewards
  int64_t* counts;        // (4) groups, zero_variance, single, non_finite
  void* moments;          // (2) reward_mean, reward_std, like advantages
#ifdef FINPERCEP_CUDA
  const int64_t* order;   // too many ids for advantage_is_small: `ids` are sorted, and this is where each comes from; else null
  void* scratch;          // advantage_scratch_bytes
#endif
};

#ifdef FINPERCEP_CUDA
constexpr int64_t kAdvantageSmall = 4096;     // up to here one block does everything in one launch; of double half as many
constexpr int64_t kAdvantageBlocks = 2048;    // else at most so many blocks, each with one partial result
constexpr bool advantage_is_small(int64_t count, DType type) {
  return count <= (type == DType::f64 ? kAdvantageSmall / 2 : kAdvantageSmall);
}
constexpr int64_t advantage_scratch_bytes() { return 64 * (kAdvantageBlocks + 1); }
#endif

FINPERCEP_KERNEL(group_advantage, AdvantageParams)

}  // namespace finpercep
