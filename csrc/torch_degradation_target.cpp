// degradation_target: tensors in, launches out. Views are made contiguous first.
#include <cmath>

#include "include/degradation_target.h"
#include "operators.h"

namespace finpercep {
namespace {

using OptionalTensor = std::optional<Tensor>;

OptionalTensor contiguous(const OptionalTensor& tensor) {
  if (!tensor.has_value()) return tensor;
  return torch::stable::contiguous(*tensor);
}

struct Images {
  Tensor reference, distorted;
  OptionalTensor reference_features, distorted_features;
};

TargetParams parameters(const Images& in, double alpha, int64_t normalize, double floor, double scale) {
  STD_TORCH_CHECK(in.reference.dim() == 4 && in.reference.size(1) == 3, "degradation_target: images are (B, 3, H, W)");
  STD_TORCH_CHECK(in.reference.numel() == in.distorted.numel(), "degradation_target: image sizes differ");
  STD_TORCH_CHECK(in.reference.scalar_type() == in.distorted.scalar_type(), "degradation_target: image dtypes differ");
  STD_TORCH_CHECK(in.reference_features.has_value() == in.distorted_features.has_value(),
                  "degradation_target: both features or neither");
  TargetParams p{};
  p.batch = in.reference.size(0), p.height = in.reference.size(2), p.width = in.reference.size(3);
  p.image_type = dtype_of(in.reference, "reference");
  p.reference = in.reference.const_data_ptr(), p.distorted = in.distorted.const_data_ptr();
  p.alpha = alpha, p.floor = floor, p.scale = scale, p.normalize = static_cast<Normalize>(normalize);
  if (!in.reference_features.has_value()) return p;
  const Tensor &f = *in.reference_features, &g = *in.distorted_features;
  STD_TORCH_CHECK(f.dim() == 4 && f.size(0) == p.batch && f.numel() == g.numel() && f.scalar_type() == g.scalar_type(),
                  "degradation_target: features are (B, C, h, w), both alike");
  p.channels = f.size(1), p.h = f.size(2), p.w = f.size(3);
  p.feature_type = dtype_of(f, "features");
  STD_TORCH_CHECK((p.feature_type == DType::f64) == (p.image_type == DType::f64),
                  "degradation_target: fp64 goes with fp64 only");
  p.reference_features = f.const_data_ptr(), p.distorted_features = g.const_data_ptr();
  return p;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> degradation_target(
    Tensor reference, Tensor distorted, OptionalTensor reference_features, OptionalTensor distorted_features,
    double alpha, int64_t normalize, double floor, double percentile, double scale) {
  const Images in{torch::stable::contiguous(reference), torch::stable::contiguous(distorted),
                  contiguous(reference_features), contiguous(distorted_features)};
  TargetParams p = parameters(in, alpha, normalize, floor, scale);
  const int64_t last = p.height * p.width - 1;
  p.rank_high = static_cast<int64_t>(percentile * static_cast<double>(last) + 0.5);
  p.rank_low = last - p.rank_high;
  const ScalarType compute = accumulation_type(in.reference);
  const bool features = p.channels > 0, keep_raw = p.normalize == Normalize::percentile;
  const auto make = [&](std::initializer_list<int64_t> sizes) { return allocate(sizes, compute, in.reference); };
  Tensor out = make({p.batch, 1, p.height, p.width}), bounds = make({p.batch, 4});
  Tensor moments = features ? make({p.batch, 3, p.h, p.w}) : make({0});
  Tensor raw = keep_raw ? make({p.batch, 1, p.height, p.width}) : make({0});
  Tensor distance = make({features ? p.batch * p.h * p.w : 0});
  Tensor scratch = allocate({target_scratch_bytes(p)}, ScalarType::Byte, in.reference);
  p.out = out.mutable_data_ptr(), p.bounds = bounds.mutable_data_ptr(), p.moments = moments.mutable_data_ptr();
  p.raw = keep_raw ? raw.mutable_data_ptr() : nullptr;
  p.distance = distance.mutable_data_ptr(), p.scratch = scratch.mutable_data_ptr();
  if (p.batch > 0) target_forward(p, on(out));
  return {out, bounds, moments, raw};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> degradation_target_backward(
    Tensor grad, Tensor reference, Tensor distorted, OptionalTensor reference_features,
    OptionalTensor distorted_features, Tensor out, Tensor bounds, Tensor moments, Tensor raw, double alpha,
    int64_t normalize, double floor, double scale, int64_t needs) {
  const Images in{torch::stable::contiguous(reference), torch::stable::contiguous(distorted),
                  contiguous(reference_features), contiguous(distorted_features)};
  TargetBackwardParams q{};
  q.forward = parameters(in, alpha, normalize, floor, scale);
  TargetParams& p = q.forward;
  const Tensor saved[] = {torch::stable::contiguous(grad), torch::stable::contiguous(out),
                          torch::stable::contiguous(bounds), torch::stable::contiguous(moments),
                          torch::stable::contiguous(raw)};
  q.grad = saved[0].const_data_ptr();
  p.out = saved[1].mutable_data_ptr(), p.bounds = saved[2].mutable_data_ptr();
  p.moments = saved[3].mutable_data_ptr();
  p.raw = p.normalize == Normalize::percentile ? saved[4].mutable_data_ptr() : nullptr;

  const Tensor sources[] = {in.reference, in.distorted, in.reference_features.value_or(in.reference),
                            in.distorted_features.value_or(in.reference)};
  Tensor grads[4];
  void** targets[] = {&q.grad_reference, &q.grad_distorted, &q.grad_reference_features, &q.grad_distorted_features};
  for (int i = 0; i < 4; ++i) {
    const bool wanted = (needs >> i & 1) != 0;
    grads[i] = wanted ? allocate_like(sources[i]) : allocate({0}, sources[i].scalar_type(), in.reference);
    if (wanted) *targets[i] = grads[i].mutable_data_ptr();
  }
  const ScalarType compute = accumulation_type(in.reference);
  const bool features = p.channels > 0 && (needs & 12) != 0;
  Tensor scratch = allocate({target_scratch_bytes(p)}, ScalarType::Byte, in.reference);
  Tensor reduced = allocate({features ? target_reduced_count(p) : 0}, compute, in.reference);
  Tensor coefficients = allocate({features ? target_coefficients_count(p) : 0}, compute, in.reference);
  p.scratch = scratch.mutable_data_ptr();
  if (features) q.reduced = reduced.mutable_data_ptr(), q.coefficients = coefficients.mutable_data_ptr();
  if (p.batch > 0) target_backward(q, on(grad));
  return {grads[0], grads[1], grads[2], grads[3]};
}

}  // namespace finpercep
