// 3 x 3 convolutions: tensors in, launches out. CPU only. Views are made contiguous first.
#ifndef FINPERCEP_CUDA
#include "include/conv3x3.h"
#include "operators.h"

namespace finpercep {

Tensor conv3x3_weight(Tensor weight) {
  const Tensor w = dense_float(weight, "weight");
  STD_TORCH_CHECK(w.dim() == 4 && w.size(2) == 3 && w.size(3) == 3, "weight: expected (K,C,3,3)");
  Conv3x3WeightParams p{};
  p.outputs = w.size(0), p.inputs = w.size(1), p.weight = static_cast<const float*>(w.const_data_ptr());
  STD_TORCH_CHECK(p.outputs > 0 && p.outputs % kConvPanel == 0 && p.inputs > 0 && p.inputs % kConvPanel == 0,
                  "weight: expected multiples of ", kConvPanel, " channels, got ", p.outputs, " and ", p.inputs);
  Tensor out = allocate({p.outputs / kConvPanel, kConvPoints, p.inputs, kConvPanel}, ScalarType::Float, w);
  p.out = static_cast<float*>(out.mutable_data_ptr());
  conv3x3_weight(p, on(w));
  return out;
}

Tensor conv3x3(Tensor images, Tensor weight, Tensor bias, std::optional<Tensor> residual, bool relu) {
  const Tensor x = dense_float(images, "images"), w = dense_float(weight, "weight"), b = dense_float(bias, "bias");
  STD_TORCH_CHECK(x.dim() == 4 && x.size(3) > 0 && x.size(3) % kConvPanel == 0,
                  "images: expected (B,H,W,C), C a multiple of ", kConvPanel);
  Conv3x3Params p{};
  p.batch = x.size(0), p.height = x.size(1), p.width = x.size(2), p.inputs = x.size(3), p.relu = relu;
  STD_TORCH_CHECK(w.dim() == 4 && w.size(0) > 0 && w.size(1) == kConvPoints && w.size(2) == p.inputs &&
                      w.size(3) == kConvPanel,
                  "weight: expected what conv3x3_weight gives for ", p.inputs, " channels");
  p.outputs = w.size(0) * kConvPanel;
  check_count(b, p.outputs, x, "bias");
  Tensor out = allocate({p.batch, p.height, p.width, p.outputs}, ScalarType::Float, x);
  if (out.numel() == 0) return out;
  Tensor added;
  if (residual.has_value()) {
    added = dense_float(*residual, "residual");
    STD_TORCH_CHECK(added.dim() == 4, "residual: expected the shape of the result");
    for (int64_t i = 0; i < 4; ++i)
      STD_TORCH_CHECK(added.size(i) == out.size(i), "residual: expected the shape of the result");
    p.residual = static_cast<const float*>(added.const_data_ptr());
  }
  p.images = static_cast<const float*>(x.const_data_ptr()), p.weight = static_cast<const float*>(w.const_data_ptr());
  p.bias = static_cast<const float*>(b.const_data_ptr()), p.out = static_cast<float*>(out.mutable_data_ptr());
  conv3x3(p, on(x));
  return out;
}

}  // namespace finpercep
#endif
