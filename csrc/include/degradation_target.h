// degradation_target: launch parameters. Everything contiguous. Accumulation type A: double if the images are, else float.
#pragma once
#include "dispatch.h"

namespace finpercep {

enum class Normalize : int32_t { none, minmax, percentile, scale };

struct TargetParams {
  int64_t batch, height, width;  // images (B, 3, H, W)
  int64_t channels, h, w;        // features (B, C, h, w); channels = 0: none
  DType image_type, feature_type;
  const void *reference, *distorted, *reference_features, *distorted_features;
  double alpha, floor, scale;
  int64_t rank_low, rank_high;  // percentile: zero-based ranks of the bounds
  Normalize normalize;
  void* out;       // A (B, H, W)
  void* bounds;    // A (B, 4): low, high, pixels equal to low, pixels equal to high
  void* moments;   // A (B, 3, h, w): f·g, f·f, g·g
  void* raw;       // A (B, H, W) before normalisation; only percentile, else null
  void* distance;  // A (B, h, w) scratch
  void* scratch;   // target_scratch_bytes: partial results that are reduced in a fixed order
};

struct TargetBackwardParams {
  TargetParams forward;  // shapes, options, inputs and saved results
  const void* grad;      // A (B, H, W)
  void *grad_reference, *grad_distorted, *grad_reference_features, *grad_distorted_features;  // null: not wanted
  void* reduced;         // A (B, H, w) scratch, only with features wanted
  void* coefficients;    // A (B, 3, h, w) scratch, only with features wanted
};

#ifdef FINPERCEP_CUDA
// A block takes one chunk of an image's pixels; few enough chunks that every block can reduce the results of all of them.
constexpr int64_t kTargetChunk = 4096, kTargetMostChunks = 512;
constexpr int64_t target_chunk(int64_t pixels) {
  const int64_t units = (pixels + kTargetChunk - 1) / kTargetChunk;
  return (units + kTargetMostChunks - 1) / kTargetMostChunks * kTargetChunk;
}
constexpr int64_t target_chunks(int64_t pixels) {
  return pixels > 0 ? (pixels + target_chunk(pixels) - 1) / target_chunk(pixels) : 0;
}
// Selection of two ranks by eight bits of the key at a time: per pass a histogram and where each rank stands.
constexpr int64_t kTargetBins = 256, kTargetPasses = 8;
// In numbers of eight bytes: partial sums or bounds (B, chunks, 2), ties (B, chunks, 2), histograms (B, passes, 2, bins),
// prefixes and ranks (B, passes, 2, 2).
inline int64_t target_scratch_bytes(const TargetParams& p) {
  const int64_t chunks = target_chunks(p.height * p.width);
  const bool select = p.normalize == Normalize::percentile;
  return 8 * p.batch * (4 * chunks + (select ? kTargetPasses * 2 * (kTargetBins + 2) : 0));
}
#else
// A (B, H, 4): per-row results
inline int64_t target_scratch_bytes(const TargetParams& p) {
  return p.batch * p.height * 4 * (p.image_type == DType::f64 ? 8 : 4);
}
#endif

FINPERCEP_KERNEL(target_forward, TargetParams)
FINPERCEP_KERNEL(target_backward, TargetBackwardParams)

}  // namespace finpercep
