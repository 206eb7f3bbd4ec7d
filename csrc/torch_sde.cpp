// sde_step: tensors in, launches out. Views are made contiguous first; only backward's inputs need to be kept alive.
#include "include/sde.h"
#include "operators.h"

namespace finpercep {
namespace {

// Contiguous copies (or the tensors themselves) that the parameters point into.
struct Inputs {
  Tensor velocity, sample, sigma, sigma_next, outcome, reference;
  SdeParams p{};

  Inputs(const Tensor& v, const Tensor& x, const Tensor& s, const Tensor& next, int64_t kind, bool exact_kl,
         double noise_level, double sigma_max, int64_t positions)
      : velocity(torch::stable::contiguous(v)),
        sample(torch::stable::contiguous(x)),
        sigma(torch::stable::contiguous(s)),
        sigma_next(torch::stable::contiguous(next)) {
    STD_TORCH_CHECK(sample.dim() >= 1, "sample: expected a batch dimension");
    p.batch = sample.size(0);
    p.size = p.batch > 0 ? sample.numel() / p.batch : 0;
    STD_TORCH_CHECK(positions >= 0 && (positions == 0 || p.batch == 0 || (positions <= p.size && p.size % positions == 0)),
                    "positions: expected 0 or a divisor of ", p.size, " numbers per sample, got ", positions);
    p.positions = positions;
    p.velocity = image(velocity, "velocity"), p.sample = image(sample, "sample");
    p.wide = velocity.scalar_type() == ScalarType::Double || sample.scalar_type() == ScalarType::Double;
    p.kind = choice<SdeKind>(kind, 3, "kind"), p.exact_kl = exact_kl;
    p.noise_level = noise_level, p.sigma_max = sigma_max;
    p.sigma = levels(sigma, "sigma"), p.sigma_next = levels(sigma_next, "sigma_next");
  }

  Levels levels(const Tensor& tensor, const char* name) const {
    const ScalarType type = tensor.scalar_type();
    STD_TORCH_CHECK((type == ScalarType::Double || type == ScalarType::Float) &&
                        (tensor.numel() == p.batch || tensor.numel() == 1),
                    name, ": expected float32 or float64, one per sample or one for all");
    Levels result{tensor.const_data_ptr(), dtype_of(tensor, name), tensor.numel() == 1 ? 0 : 1, 0};
#ifdef FINPERCEP_CUDA
    if (tensor.is_cpu() && tensor.numel() == 1) {  // goes along with the launch: nothing to copy, nothing to wait for
      result.value = type == ScalarType::Float ? double(*static_cast<const float*>(result.data))
                                               : *static_cast<const double*>(result.data);
      result.data = nullptr;
    }
    if (result.data != nullptr) check_device(tensor, sample, name);
#endif
    return result;
  }

  Image image(const Tensor& tensor, const char* name) const {
    check_count(tensor, p.batch * p.size, sample, name);
    return {tensor.const_data_ptr(), dtype_of(tensor, name)};
  }
  Image keep(Tensor& slot, const std::optional<Tensor>& tensor, const char* name) const {
    if (!tensor.has_value()) return {};
    slot = torch::stable::contiguous(*tensor);
    return image(slot, name);
  }
  int64_t scores() const { return p.positions > 0 ? p.batch * p.positions : p.batch; }  // numbers of log_prob
  ScalarType compute() const { return p.wide ? ScalarType::Double : ScalarType::Float; }
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> sde_step(
    Tensor velocity, Tensor sample, Tensor sigma, Tensor sigma_next, std::optional<Tensor> noise,
    std::optional<Tensor> next_sample, std::optional<Tensor> reference_velocity, int64_t kind, bool exact_kl,
    double noise_level, double sigma_max, bool return_mean, int64_t positions) {
  STD_TORCH_CHECK(noise.has_value() != next_sample.has_value(), "noise: expected it or next_sample, not both");
  Inputs in(velocity, sample, sigma, sigma_next, kind, exact_kl, noise_level, sigma_max, positions);
  SdeParams& p = in.p;
  if (noise.has_value()) p.noise = in.keep(in.outcome, noise, "noise");
  else p.next_sample = in.keep(in.outcome, next_sample, "next_sample");
  p.reference = in.keep(in.reference, reference_velocity, "reference_velocity");

  const Tensor& like = in.sample;
  const ScalarType image_type = like.scalar_type();
  Tensor drawn = noise.has_value() ? allocate_like(like) : allocate({0}, image_type, like);
  Tensor mean = return_mean ? allocate_like(like) : allocate({0}, image_type, like);
  Tensor log_prob = positions > 0 ? allocate({p.batch, positions}, in.compute(), like)
                                  : allocate({p.batch}, in.compute(), like);
  Tensor std = allocate({p.batch}, in.compute(), like);
  Tensor kl = allocate({reference_velocity.has_value() ? p.batch : 0}, in.compute(), like);
  Tensor partial = allocate({p.batch, sde_parts(p.size, positions), 2}, ScalarType::Double, like);
  p.drawn = drawn.mutable_data_ptr();
  p.mean = return_mean ? mean.mutable_data_ptr() : nullptr;
  p.log_prob = log_prob.mutable_data_ptr(), p.std = std.mutable_data_ptr();
  p.kl = reference_velocity.has_value() ? kl.mutable_data_ptr() : nullptr;
  p.partial = static_cast<double*>(partial.mutable_data_ptr());
  if (p.batch > 0) sde_step_forward(p, on(like));
  return {drawn, mean, log_prob, std, kl};
}

Tensor sde_step_backward(
    std::optional<Tensor> grad_next_sample, std::optional<Tensor> grad_mean, std::optional<Tensor> grad_log_prob,
    std::optional<Tensor> grad_kl, Tensor velocity, Tensor sample, Tensor next_sample, Tensor sigma, Tensor sigma_next,
    std::optional<Tensor> reference_velocity, int64_t kind, bool exact_kl, double noise_level, double sigma_max,
    int64_t positions) {
  Inputs in(velocity, sample, sigma, sigma_next, kind, exact_kl, noise_level, sigma_max, positions);
  SdeBackwardParams q{};
  in.p.next_sample = in.keep(in.outcome, next_sample, "next_sample");
  in.p.reference = in.keep(in.reference, reference_velocity, "reference_velocity");
  STD_TORCH_CHECK(!grad_kl.has_value() || reference_velocity.has_value(),
                  "grad_kl: expected only with reference_velocity");
  Tensor drawn, mean, log_prob, kl;
  q.grad_drawn = in.keep(drawn, grad_next_sample, "grad_next_sample");
  q.grad_mean = in.keep(mean, grad_mean, "grad_mean");
  const auto scalars = [&](Tensor& slot, const std::optional<Tensor>& grad, int64_t count, const char* name) -> const void* {
    if (!grad.has_value()) return nullptr;
    slot = torch::stable::contiguous(*grad);
    check_tensor(slot, count, in.compute(), in.sample, name);
    return slot.const_data_ptr();
  };
  q.grad_log_prob = scalars(log_prob, grad_log_prob, in.scores(), "grad_log_prob");
  q.grad_kl = scalars(kl, grad_kl, in.p.batch, "grad_kl");
  q.forward = in.p;
  Tensor out = allocate_like(in.velocity);
  q.grad_velocity = out.mutable_data_ptr();
  if (in.p.batch > 0) sde_step_backward(q, on(out));
  return out;
}

}  // namespace finpercep
