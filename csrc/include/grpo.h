// grpo_loss (Eq. 6): launch parameters. Everything contiguous; `count` log-probabilities.
//
// Bytes that must move, in numbers per element: forward reads log_prob, old_log_prob, advantages and kl if given (3 or 4);
// backward reads the first three and writes the gradient (4).
#pragma once
#include "dispatch.h"

namespace finpercep {

struct GrpoParams {
  int64_t count;            // N·T
  int64_t steps;            // consecutive elements that share an advantage: T, or 1
  bool wide;                // compute in double, else in float
  double clip_low, clip_high, beta;
  DType log_prob_type, old_type, advantage_type, kl_type;
  const void* log_prob;     // (count)
  const void* old_log_prob;
  const void* advantages;   // (count / steps)
  const void* kl;           // (count), or null
  void* loss;               // (1)
  void* stats;              // (kGrpoStats): policy_loss, kl_loss, ratio mean, min, max, clip low, high, approx_kl
  double* partial;          // (grpo_chunks(count), kGrpoStats)
};

struct GrpoBackwardParams {
  GrpoParams forward;
  const void* grad_loss;    // (1)
  void* grad_log_prob;      // like log_prob
};

constexpr int64_t kGrpoStats = 8;
// Elements summed into one partial result: by the count alone, so that results do not depend on the number of threads.
#ifdef FINPERCEP_CUDA
constexpr int64_t kGrpoChunk = 4096;
// Chunks of many elements where they would be more than a block merges at once; 256 a thread at most, summed in float.
constexpr int64_t kGrpoMostChunks = 1024, kGrpoLongest = 16 * kGrpoChunk;
constexpr int64_t grpo_chunk(int64_t count) {
  const int64_t units = (count + kGrpoChunk - 1) / kGrpoChunk, wanted = (units + kGrpoMostChunks - 1) / kGrpoMostChunks;
  return wanted * kGrpoChunk < kGrpoLongest ? wanted * kGrpoChunk : kGrpoLongest;
}
#else
constexpr int64_t kGrpoChunk = 16384;
constexpr int64_t grpo_chunk(int64_t) { return kGrpoChunk; }
#endif
constexpr int64_t grpo_chunks(int64_t count) { return (count + grpo_chunk(count) - 1) / grpo_chunk(count); }

FINPERCEP_KERNEL(grpo_loss_forward, GrpoParams)
FINPERCEP_KERNEL(grpo_loss_backward, GrpoBackwardParams)

}  // namespace finpercep
