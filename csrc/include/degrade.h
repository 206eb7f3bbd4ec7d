// Stages of the degradations (finpercep/data/degradations.py): launch parameters. CPU only; the reference runs on GPUs.
// Batches are ragged: sample i of a canvas is its upper left height[i] x width[i].
#pragma once
#include "dispatch.h"

namespace finpercep {

// Each plane of (batch,channels,height+side-1,width+side-1) correlated with its sample's kernel (side,side).
struct FilterParams {
  const float *padded, *kernels;
  float* out;
  int64_t batch, channels, height, width, side;
};

enum class ResizeMode : int64_t { area, bilinear, bicubic };

// Sample i from height[i] x width[i] to new_height[i] x new_width[i], and `border` pixels around it.
struct ResizeParams {
  const float* images;
  float* out;
  const int64_t *height, *width, *new_height, *new_width, *mode;
  int64_t batch, channels, rows, columns, out_rows, out_columns, border;
  bool mirror;  // beyond a sample: reflected, else its last pixel
};

// images + noise, clamped to [0, 1]; three channels.
struct NoiseParams {
  const float* images;
  float* out;
  const int64_t *height, *width;
  const uint8_t *gaussian, *grey;  // 0: no; a bool read from a tensor may hold more than 0 and 1
  const double* strength;
  const int32_t* key;     // (batch,2)
  const float* quantile;  // (65536,), of the standard normal distribution
  const float* chance;    // (9,256,outcomes): Walker's tables of Poisson variables
  const int32_t* alias;
  int64_t batch, rows, columns, outcomes;
};

// JPEG round trips of (batch,3,rows,columns), `luma` and `chroma` (batch,8,8) being the quantization tables.
struct JpegParams {
  const float *images, *luma, *chroma;
  float* out;
  int64_t batch, rows, columns;
};

FINPERCEP_KERNEL(degrade_filter, FilterParams)
FINPERCEP_KERNEL(degrade_resize, ResizeParams)
FINPERCEP_KERNEL(degrade_noise, NoiseParams)
FINPERCEP_KERNEL(degrade_jpeg, JpegParams)

}  // namespace finpercep
