// modulate (Eq. 7): launch parameters. Everything contiguous; B images, h*w tokens of C channels, map H x W.
#pragma once
#include "dispatch.h"

namespace finpercep {

enum class Gate : int32_t { degradation, quality, residual };  // f·d, f·(1-d), f·(1+d)
enum class Resample : int32_t { area, bilinear };

struct ModulateParams {
  int64_t batch, h, w, channels, height, width;
  Gate gate;
  Resample resample;
  bool pool;
  DType feature_type, map_type;  // accumulation and `d` are double when the features are, else float
  const void* features;          // (B, h*w, C)
  const void* map;               // (B, H, W)
  void* d;                       // (B, h*w) downsampled map: written by forward, read by backward
  void* out;                     // (B, h*w, C) or (B, C)
  void* partial;                 // pool: (B, modulate_splits(h, w), C) sums, accumulation type
};

struct ModulateBackwardParams {
  ModulateParams forward;  // shapes, options, features and d
  const void* grad;        // like out
  void* grad_features;     // or null: not wanted
  void* grad_map;          // or null: not wanted
  void* grad_d;            // (B, h*w) scratch, accumulation type; null with grad_map
};

// Into how many partial results the tokens are summed: by the shape alone, so that a result does not depend on threads.
#ifdef FINPERCEP_CUDA
constexpr int64_t modulate_splits(int64_t, int64_t) { return 0; }  // a block sums all tokens
#else
constexpr int64_t kModulateSplit = 128;
constexpr int64_t modulate_splits(int64_t h, int64_t w) { return (h * w + kModulateSplit - 1) / kModulateSplit; }
#endif

FINPERCEP_KERNEL(modulate_forward, ModulateParams)
FINPERCEP_KERNEL(modulate_backward, ModulateBackwardParams)

}  // namespace finpercep
