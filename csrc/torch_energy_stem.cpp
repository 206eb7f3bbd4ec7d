// The first layer of the small encoder: tensors in, launches out. CPU only. Views are made contiguous first.
#ifndef FINPERCEP_CUDA
#include "include/energy_stem.h"
#include "operators.h"

namespace finpercep {
namespace {

Tensor dense(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float, name, ": expected float32");
  return torch::stable::contiguous(tensor);
}

}  // namespace

Tensor energy_stem(Tensor images, Tensor weight, Tensor bias, double floor, double center) {
  const Tensor x = dense(images, "images"), w = dense(weight, "weight"), b = dense(bias, "bias");
  STD_TORCH_CHECK(x.dim() == 4 && x.size(1) == 3 && x.size(2) % 4 == 0 && x.size(3) % 4 == 0,
                  "images: expected (B,3,H,W), H and W multiples of 4");
  STD_TORCH_CHECK(w.dim() == 2 && w.size(1) == kStemInputs && w.size(0) > 0 && w.size(0) % kStemPanel == 0,
                  "weight: expected (K,", kStemInputs, "), K a multiple of ", kStemPanel);
  EnergyStemParams p{};
  p.batch = x.size(0), p.height = x.size(2), p.width = x.size(3), p.outputs = w.size(0);
  p.floor = float(floor), p.center = float(center);
  check_count(b, p.outputs, x, "bias");
  Tensor out = allocate({p.batch, p.height / 4, p.width / 4, p.outputs}, ScalarType::Float, x);
  if (out.numel() == 0) return out;
  Tensor half = allocate({p.batch, 3, p.height / 2, p.width / 2}, ScalarType::Float, x);
  Tensor quarter = allocate({p.batch, 3, p.height / 4, p.width / 4}, ScalarType::Float, x);
  p.images = static_cast<const float*>(x.const_data_ptr()), p.weight = static_cast<const float*>(w.const_data_ptr());
  p.bias = static_cast<const float*>(b.const_data_ptr()), p.out = static_cast<float*>(out.mutable_data_ptr());
  p.half = static_cast<float*>(half.mutable_data_ptr()), p.quarter = static_cast<float*>(quarter.mutable_data_ptr());
  energy_stem(p, on(x));
  return out;
}

}  // namespace finpercep
#endif
