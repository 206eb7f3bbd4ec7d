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
  // Scratch, only with features wanted: A (B, H, w), on CUDA per segment of a row; A (B, 3, h, w), on CUDA none
  void *reduced, *coefficients;
};

#ifdef FINPERCEP_CUDA
// A block takes a tile of an image: as many whole rows as fit or, of a longer row, a segment. Its pixels are contiguous.
constexpr int64_t kTargetTile = 4096;
constexpr int64_t target_segments(int64_t width) { return (width + kTargetTile - 1) / kTargetTile; }
constexpr int64_t target_tile_rows(int64_t width) {
  const int64_t rows = kTargetTile / width;
  if (width % 8 != 0 && rows > 8) return rows / 8 * 8;  // so that tiles begin with whole packs
  return rows > 1 ? rows : 1;
}
constexpr int64_t target_tiles(int64_t height, int64_t width) {
  const int64_t rows = target_tile_rows(width);
  return (height + rows - 1) / rows * target_segments(width);
}
// Selection of two ranks by eight bits of the key at a time: per pass a histogram and where each rank stands.
constexpr int64_t kTargetBins = 256, kTargetPasses = 8;
// In numbers of eight bytes, zero before a launch: the next tile, progress (B, 5), histograms (B, passes, 2, bins).
constexpr int64_t kTargetProgress = 5;
constexpr int64_t target_zeroed(const TargetParams& p) {
  const bool select = p.normalize == Normalize::percentile;
  return 1 + p.batch * (kTargetProgress + (select ? kTargetPasses * 2 * kTargetBins : 0));
}
// Then prefixes and ranks (B, passes, 2, 2), and results of images (B, 2) and of tiles (B, tiles, 2).
inline int64_t target_scratch_bytes(const TargetParams& p) {
  return 8 * (target_zeroed(p) + p.batch * (kTargetPasses * 4 + 2 + 2 * target_tiles(p.height, p.width)));
}
inline int64_t target_reduced_count(const TargetParams& p) {
  return p.batch * p.height * target_segments(p.width) * p.w;
}
inline int64_t target_coefficients_count(const TargetParams&) { return 0; }
#else
// A (B, H, 4): per-row results
inline int64_t target_scratch_bytes(const TargetParams& p) {
  return p.batch * p.height * 4 * (p.image_type == DType::f64 ? 8 : 4);
}
inline int64_t target_reduced_count(const TargetParams& p) { return p.batch * p.height * p.w; }
inline int64_t target_coefficients_count(const TargetParams& p) { return p.batch * 3 * p.h * p.w; }
#endif

FINPERCEP_KERNEL(target_forward, TargetParams)
FINPERCEP_KERNEL(target_backward, TargetBackwardParams)

}  // namespace finpercep
