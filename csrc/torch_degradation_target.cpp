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

DType image_dtype_of(const Tensor& tensor, const char* name) {
  return tensor.scalar_type() == ScalarType::Byte ? DType::u8 : dtype_of(tensor, name);
}

// `tensor` as `other` is: shape, dtype, device.
void check_alike(const Tensor& tensor, const Tensor& other, const char* name) {
  STD_TORCH_CHECK(tensor.dim() == other.dim(), name, ": expected the other's shape");
  for (int64_t k = 0; k < other.dim(); ++k)
    STD_TORCH_CHECK(tensor.size(k) == other.size(k), name, ": expected the other's shape");
  check_tensor(tensor, other.numel(), other.scalar_type(), other, name);
}

struct Images {
  Tensor reference, distorted;
  OptionalTensor reference_features, distorted_features;
};

TargetParams parameters(const Images& in, double alpha, int64_t normalize, double floor, double scale) {
  STD_TORCH_CHECK(in.reference.dim() == 4 && in.reference.size(1) == 3 && in.reference.size(2) >= 1 &&
                      in.reference.size(3) >= 1,
                  "reference: expected (B, 3, H, W), H and W at least 1");
  check_alike(in.distorted, in.reference, "distorted");
  STD_TORCH_CHECK(in.reference_features.has_value() == in.distorted_features.has_value(),
                  "reference_features, distorted_features: expected both or neither");
  TargetParams p{};
  p.batch = in.reference.size(0), p.height = in.reference.size(2), p.width = in.reference.size(3);
  p.image_type = image_dtype_of(in.reference, "reference");
  p.reference = in.reference.const_data_ptr(), p.distorted = in.distorted.const_data_ptr();
  p.alpha = alpha, p.floor = floor, p.scale = scale, p.normalize = choice<Normalize>(normalize, 4, "normalize");
  if (!in.reference_features.has_value()) return p;
  const Tensor &f = *in.reference_features, &g = *in.distorted_features;
  STD_TORCH_CHECK(f.dim() == 4 && f.size(0) == p.batch && f.size(1) >= 1 && f.size(2) >= 1 && f.size(3) >= 1,
                  "reference_features: expected (B, C, h, w) of the images' batch, C, h and w at least 1");
  check_device(f, in.reference, "reference_features");
  check_alike(g, f, "distorted_features");
  p.channels = f.size(1), p.h = f.size(2), p.w = f.size(3);
  p.feature_type = dtype_of(f, "reference_features");
  STD_TORCH_CHECK((p.feature_type == DType::f64) == (p.image_type == DType::f64),
                  "reference_features: expected float64 with float64 images, and only with them");
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
  STD_TORCH_CHECK(percentile >= 0 && percentile <= 1, "percentile: expected in [0, 1], got ", percentile);
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
  const ScalarType compute = accumulation_type(in.reference);
  const int64_t pixels = p.batch * p.height * p.width, cells = p.batch * p.h * p.w;
  const int64_t counts[] = {pixels, pixels, 4 * p.batch, 3 * cells, p.normalize == Normalize::percentile ? pixels : 0};
  const char* names[] = {"grad", "out", "bounds", "moments", "raw"};
  for (int i = 0; i < 5; ++i) check_tensor(saved[i], counts[i], compute, in.reference, names[i]);
  STD_TORCH_CHECK((needs & 3) == 0 || p.image_type != DType::u8, "needs: expected no gradient of uint8 images");
  STD_TORCH_CHECK((needs & 12) == 0 || p.channels > 0, "needs: expected no gradient of features without features");
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
  const bool features = (needs & 12) != 0;
  Tensor scratch = allocate({target_scratch_bytes(p)}, ScalarType::Byte, in.reference);
  Tensor reduced = allocate({features ? target_reduced_count(p) : 0}, compute, in.reference);
  Tensor coefficients = allocate({features ? target_coefficients_count(p) : 0}, compute, in.reference);
  p.scratch = scratch.mutable_data_ptr();
  if (features) q.reduced = reduced.mutable_data_ptr(), q.coefficients = coefficients.mutable_data_ptr();
  if (p.batch > 0) target_backward(q, on(grad));
  return {grads[0], grads[1], grads[2], grads[3]};
}

}  // namespace finpercep
