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
  void* rows;      // A (B, H, 4) scratch: per-row results that are reduced in a fixed order
};

struct TargetBackwardParams {
  TargetParams forward;  // shapes, options, inputs and saved results
  const void* grad;      // A (B, H, W)
  void *grad_reference, *grad_distorted, *grad_reference_features, *grad_distorted_features;  // null: not wanted
  void* reduced;         // A (B, H, w) scratch, only with features wanted
  void* coefficients;    // A (B, 3, h, w) scratch, only with features wanted
};

FINPERCEP_KERNEL(target_forward, TargetParams)
FINPERCEP_KERNEL(target_backward, TargetBackwardParams)

}  // namespace finpercep
