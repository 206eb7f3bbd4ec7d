// The first layer of the small encoder (EnergyStem in finpercep/models/conv_encoder.py): launch parameters. CPU only.
#pragma once
#include "dispatch.h"

namespace finpercep {

constexpr int64_t kEnergies = 45;          // five derivatives of three opponent colors at three scales
constexpr int64_t kStemInputs = kEnergies + 3;  // and the mean color
constexpr int64_t kStemPanel = 16;         // results are a multiple of it

// out (batch,height/4,width/4,outputs) = relu(weight · [log(energies + floor) - center, 4·color - 2] + bias).
struct EnergyStemParams {
  const float *images, *weight, *bias;  // (batch,3,height,width) in [0, 1], sides multiples of 4; (outputs,kStemInputs)
  float *half, *quarter, *out;          // scratch: opponent colors at half size, colors at a quarter (batch,3,·,·)
  int64_t batch, height, width, outputs;
  float floor, center;
};

// out (batch,3,height,width): the gradient to images, of that to the inputs of the 1x1 convolution, `grad`
// (batch,height/4,width/4,kStemInputs). Of `forward` weight, bias, out, outputs and center play no part.
struct EnergyStemBackwardParams {
  EnergyStemParams forward;
  const float* grad;
  float *full_grad, *half_grad, *quarter_grad;  // scratch: to opponent colors at each size (batch,3,·,·)
  float* out;
};

FINPERCEP_KERNEL(energy_stem, EnergyStemParams)
FINPERCEP_KERNEL(energy_stem_backward, EnergyStemBackwardParams)

}  // namespace finpercep
