// 3 x 3 convolutions of stride 1, zeros around the image (finpercep/models/conv3x3.py): launch parameters. CPU only; GPUs
// have cuDNN's.
#pragma once
#include "dispatch.h"

namespace finpercep {

constexpr int64_t kConvPanel = 16;   // both channel counts are multiples of it
constexpr int64_t kConvPoints = 36;  // products in the place of 4 x 4 results' 144

// weight (outputs,inputs,3,3) -> out (outputs/kConvPanel, kConvPoints, inputs, kConvPanel): what conv3x3 multiplies by.
struct Conv3x3WeightParams {
  const float* weight;
  float* out;
  int64_t inputs, outputs;
};

// out = conv(images, weight) + bias (+ residual), then max(0, ·) with relu. All (batch,height,width,channels), dense.
struct Conv3x3Params {
  const float *images, *weight, *bias, *residual;  // weight as conv3x3_weight gives it; residual like out, or null
  float* out;
  int64_t batch, height, width, inputs, outputs;
  bool relu;
};

FINPERCEP_KERNEL(conv3x3_weight, Conv3x3WeightParams)
FINPERCEP_KERNEL(conv3x3, Conv3x3Params)

}  // namespace finpercep
