// modulate: tensors in, launches out. Views are made contiguous first.
#include "include/modulate.h"
#include "operators.h"

namespace finpercep {
namespace {

ModulateParams parameters(const Tensor& features, const Tensor& map, int64_t h, int64_t w, int64_t gate,
                          int64_t resample, bool pool) {
  STD_TORCH_CHECK(features.dim() == 3, "features: expected (B, h*w, C)");
  STD_TORCH_CHECK(map.dim() == 4 && map.size(0) == features.size(0) && map.size(1) == 1 && map.size(2) >= 1 &&
                      map.size(3) >= 1,
                  "degradation: expected (B, 1, H, W) of the features' batch, H and W at least 1");
  STD_TORCH_CHECK(h >= 1 && w >= 1 && features.size(1) % w == 0 && features.size(1) / w == h,
                  "h, w: expected h*w = ", features.size(1), " tokens, both at least 1, got ", h, ", ", w);
  check_device(map, features, "degradation");
  ModulateParams p{};
  p.batch = features.size(0), p.h = h, p.w = w, p.channels = features.size(2);
  p.height = map.size(2), p.width = map.size(3);
  p.gate = choice<Gate>(gate, 3, "gate"), p.resample = choice<Resample>(resample, 2, "resample"), p.pool = pool;
  p.feature_type = dtype_of(features, "features"), p.map_type = dtype_of(map, "degradation");
  p.features = features.const_data_ptr(), p.map = map.const_data_ptr();
  return p;
}

}  // namespace

std::tuple<Tensor, Tensor> modulate(
    Tensor features, Tensor degradation, int64_t h, int64_t w, int64_t gate, int64_t resample, bool pool_mean) {
  const Tensor f = torch::stable::contiguous(features);
  Tensor map = torch::stable::contiguous(degradation);
#ifdef FINPERCEP_CUDA  // kernels for maps like the features or like the accumulation; the others are few and small
  dtype_of(map, "degradation");  // bytes would convert, too
  if (map.scalar_type() != f.scalar_type()) map = torch::stable::to(map, accumulation_type(f));
#endif
  ModulateParams p = parameters(f, map, h, w, gate, resample, pool_mean);
  const ScalarType compute = accumulation_type(f);
  Tensor d = allocate({p.batch, h * w}, compute, f);
  Tensor out = pool_mean ? allocate({p.batch, p.channels}, f.scalar_type(), f)
                         : allocate({p.batch, h * w, p.channels}, f.scalar_type(), f);
  Tensor partial = allocate({pool_mean ? p.batch * modulate_splits(h, w) : 0, p.channels}, compute, f);
  p.d = d.mutable_data_ptr(), p.out = out.mutable_data_ptr(), p.partial = partial.mutable_data_ptr();
  modulate_forward(p, on(f));
  return {out, d};
}

std::tuple<Tensor, Tensor> modulate_backward(
    Tensor grad, Tensor features, Tensor degradation, Tensor d, int64_t h, int64_t w, int64_t gate, int64_t resample,
    bool pool_mean, bool need_features, bool need_map) {
  const Tensor g = torch::stable::contiguous(grad), f = torch::stable::contiguous(features);
  const Tensor dc = torch::stable::contiguous(d);
  ModulateBackwardParams p{};
  p.forward = parameters(f, degradation, h, w, gate, resample, pool_mean);
  const int64_t rows = p.forward.batch * (pool_mean ? 1 : h * w);
  check_tensor(g, rows * p.forward.channels, f.scalar_type(), f, "grad");
  check_tensor(dc, p.forward.batch * h * w, accumulation_type(f), f, "d");
  p.forward.d = dc.mutable_data_ptr();
  p.forward.map = nullptr;  // only its shape and dtype are used
  p.grad = g.const_data_ptr();
  Tensor grad_features = need_features ? allocate_like(f) : allocate({0}, f.scalar_type(), f);
  Tensor grad_map = need_map ? allocate_like(degradation) : allocate({0}, degradation.scalar_type(), f);
  Tensor grad_d = need_map ? allocate_like(dc) : allocate({0}, dc.scalar_type(), f);
  if (need_features) p.grad_features = grad_features.mutable_data_ptr();
  if (need_map) p.grad_map = grad_map.mutable_data_ptr(), p.grad_d = grad_d.mutable_data_ptr();
  modulate_backward(p, on(f));
  return {grad_features, grad_map};
}

}  // namespace finpercep
