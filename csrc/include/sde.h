// sde_step (Eq. 4): launch parameters. Everything contiguous; `batch` samples of `size` numbers each.
//
// Bytes that must move, in numbers per element: drawing reads velocity, sample, noise and writes next_sample (4);
// re-scoring reads velocity, sample, next_sample (3); a KL reads reference_velocity (+1), a mean is written (+1).
// Backward reads velocity, sample, next_sample and writes the gradient (4; KL +1), recomputing the mean.
// With positions, a sample is (channels, positions), and log_prob has one number per position: a channel-th of an image.
#pragma once
#include "dispatch.h"

namespace finpercep {

enum class SdeKind : int32_t { flow, cps, dance };

struct Image {
  const void* data;  // (batch, size), or null: absent
  DType type;
};

// Noise levels: of sample i the number at data[i·stride], f32 or f64; without data, `value` for all.
struct Levels {
  const void* data;
  DType type;
  int64_t stride;  // 0 or 1
  double value;
};

struct SdeParams {
  int64_t batch, size;
  int64_t positions;     // a divisor of size: log_prob is of each of them, over the channels; or 0: of whole samples
  SdeKind kind;
  bool exact_kl;         // KL over the variance of the transition, else over std² (flow_grpo)
  bool wide;             // accumulate in double, else in float: the type of log_prob, std and kl
  double noise_level;
  double sigma_max;      // 1 - sigma_max replaces 1 - sigma at sigma = 1; negative: sigma_next does
  Levels sigma, sigma_next;
  Image velocity, sample, noise, next_sample, reference;  // exactly one of noise and next_sample
  void* drawn;           // like sample: written when noise is given
  void* mean;            // like sample, or null: not wanted
  void* log_prob;        // (batch), or (batch, positions)
  void* std;             // (batch)
  void* kl;              // (batch), or null without reference
  double* partial;       // (batch, sde_parts(size, positions), 2) sums of squares; with positions the second is used alone
};

struct SdeBackwardParams {
  SdeParams forward;             // shapes, options, velocity, sample, next_sample, reference
  Image grad_drawn, grad_mean;   // (batch, size), or null
  const void* grad_log_prob;     // like log_prob, or null
  const void* grad_kl;           // (batch), or null
  void* grad_velocity;           // like velocity
};

// Numbers summed into one partial result: a constant, so that a sample's log-probability depends neither on the number
// of threads nor on its batch.
#ifdef FINPERCEP_CUDA
constexpr int64_t kSdeChunk = 4096;
#else
constexpr int64_t kSdeChunk = 16384;
#endif
// Positions that are summed side by side, channel by channel.
#ifdef FINPERCEP_CUDA
constexpr int64_t kSdePositions = 512;
#else
constexpr int64_t kSdePositions = 1024;
#endif
// Parts of a sample, each with a partial result.
constexpr int64_t sde_parts(int64_t size, int64_t positions) {
  return positions > 0 ? (positions + kSdePositions - 1) / kSdePositions : (size + kSdeChunk - 1) / kSdeChunk;
}

FINPERCEP_KERNEL(sde_step_forward, SdeParams)
FINPERCEP_KERNEL(sde_step_backward, SdeBackwardParams)

}  // namespace finpercep
