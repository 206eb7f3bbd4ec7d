// The first layer of the small encoder: tensors in, launches out. CPU only. Views are made contiguous first.
#ifndef FINPERCEP_CUDA
#include "include/energy_stem.h"
#include "operators.h"

namespace finpercep {
namespace {

const float* data(const Tensor& tensor) { return static_cast<const float*>(tensor.const_data_ptr()); }
float* room(Tensor& tensor) { return static_cast<float*>(tensor.mutable_data_ptr()); }

EnergyStemParams parameters(const Tensor& images, double floor) {
  STD_TORCH_CHECK(images.dim() == 4 && images.size(1) == 3 && images.size(2) % 4 == 0 && images.size(3) % 4 == 0,
                  "images: expected (B,3,H,W), H and W multiples of 4");
  EnergyStemParams p{};
  p.images = data(images), p.batch = images.size(0), p.height = images.size(2), p.width = images.size(3);
  p.floor = float(floor);
  return p;
}

// (B,3,H/by,W/by)
Tensor shrunken(const EnergyStemParams& p, int64_t by, const Tensor& like) {
  return allocate({p.batch, 3, p.height / by, p.width / by}, ScalarType::Float, like);
}

}  // namespace

Tensor energy_stem(Tensor images, Tensor weight, Tensor bias, double floor, double center) {
  const Tensor x = dense_float(images, "images"), w = dense_float(weight, "weight"), b = dense_float(bias, "bias");
  EnergyStemParams p = parameters(x, floor);
  STD_TORCH_CHECK(w.dim() == 2 && w.size(1) == kStemInputs && w.size(0) > 0 && w.size(0) % kStemPanel == 0,
                  "weight: expected (K,", kStemInputs, "), K a multiple of ", kStemPanel);
  p.outputs = w.size(0), p.center = float(center);
  check_count(b, p.outputs, x, "bias");
  Tensor out = allocate({p.batch, p.height / 4, p.width / 4, p.outputs}, ScalarType::Float, x);
  if (out.numel() == 0) return out;
  Tensor half = shrunken(p, 2, x), quarter = shrunken(p, 4, x);
  p.weight = data(w), p.bias = data(b), p.out = room(out), p.half = room(half), p.quarter = room(quarter);
  energy_stem(p, on(x));
  return out;
}

Tensor energy_stem_backward(Tensor grad, Tensor images, double floor) {
  const Tensor x = dense_float(images, "images"), g = dense_float(grad, "grad");
  EnergyStemBackwardParams p{};
  p.forward = parameters(x, floor);
  check_count(g, p.forward.batch * (p.forward.height / 4) * (p.forward.width / 4) * kStemInputs, x, "grad");
  Tensor out = allocate_like(x);
  if (out.numel() == 0) return out;
  Tensor half = shrunken(p.forward, 2, x), quarter = shrunken(p.forward, 4, x);
  Tensor full_grad = shrunken(p.forward, 1, x), half_grad = shrunken(p.forward, 2, x);
  Tensor quarter_grad = shrunken(p.forward, 4, x);
  p.forward.half = room(half), p.forward.quarter = room(quarter), p.grad = data(g), p.out = room(out);
  p.full_grad = room(full_grad), p.half_grad = room(half_grad), p.quarter_grad = room(quarter_grad);
  energy_stem_backward(p, on(x));
  return out;
}

}  // namespace finpercep
#endif
