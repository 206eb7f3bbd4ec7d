// The block of mobile networks (finpercep/models/inverted_residual.py): launch parameters. CPU only, no gradient.
#pragma once
#include "dispatch.h"

namespace finpercep {

// x (batch,height,width,inputs) -> expanded by a 1x1 convolution to `hidden` channels and clamped to [0, 6] -> each
// channel filtered, padded as TensorFlow does, and clamped -> out (batch,out_height,out_width,outputs) by another 1x1
// convolution, + x where `skip`. Without expand_weight, hidden = inputs and x itself is filtered.
struct InvertedResidualParams {
  const float* x;
  const float *expand_weight, *expand_bias;    // (hidden,inputs), (hidden,) or nullptr
  const float *filter_weight, *filter_bias;    // (hidden,kernel,kernel), (hidden,)
  const float *project_weight, *project_bias;  // (outputs,hidden), (outputs,)
  float* out;
  int64_t batch, height, width, inputs, hidden, outputs, out_height, out_width;
  int64_t kernel, stride;  // 3 or 5, 1 or 2
  bool skip;
};

FINPERCEP_KERNEL(inverted_residual, InvertedResidualParams)

}  // namespace finpercep
