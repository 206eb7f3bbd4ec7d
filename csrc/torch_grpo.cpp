// grpo_loss: tensors in, launches out. Views are made contiguous first.
#include "include/grpo.h"
#include "operators.h"

namespace finpercep {
namespace {

struct Inputs {
  Tensor log_prob, old_log_prob, advantages;

  Inputs(const Tensor& a, const Tensor& b, const Tensor& c)
      : log_prob(torch::stable::contiguous(a)),
        old_log_prob(torch::stable::contiguous(b)),
        advantages(torch::stable::contiguous(c)) {}

  GrpoParams parameters(double clip_low, double clip_high) const {
    GrpoParams p{};
    p.count = log_prob.numel();
    STD_TORCH_CHECK(p.count > 0, "log_prob: expected at least one element");
    check_count(old_log_prob, p.count, log_prob, "old_log_prob");
    const int64_t given = advantages.numel();
    STD_TORCH_CHECK(given == p.count || (log_prob.dim() == 2 && given == log_prob.size(0)),
                    "advantages: expected one per element, or per row, of log_prob");
    check_device(advantages, log_prob, "advantages");
    p.steps = p.count / given;
    p.wide = log_prob.scalar_type() == ScalarType::Double;
    p.clip_low = clip_low, p.clip_high = clip_high;
    p.log_prob_type = dtype_of(log_prob, "log_prob"), p.log_prob = log_prob.const_data_ptr();
    p.old_type = dtype_of(old_log_prob, "old_log_prob"), p.old_log_prob = old_log_prob.const_data_ptr();
    p.advantage_type = dtype_of(advantages, "advantages"), p.advantages = advantages.const_data_ptr();
    return p;
  }
};

}  // namespace

std::tuple<Tensor, Tensor> grpo_loss(
    Tensor log_prob, Tensor old_log_prob, Tensor advantages, std::optional<Tensor> kl, double clip_low,
    double clip_high, double beta) {
  const Inputs in(log_prob, old_log_prob, advantages);
  GrpoParams p = in.parameters(clip_low, clip_high);
  Tensor divergence;
  if (kl.has_value()) {
    divergence = torch::stable::contiguous(*kl);
    check_count(divergence, p.count, in.log_prob, "kl");
    p.kl_type = dtype_of(divergence, "kl"), p.kl = divergence.const_data_ptr();
  }
  p.beta = beta;
  const ScalarType compute = accumulation_type(in.log_prob);
  Tensor loss = allocate({}, compute, in.log_prob), stats = allocate({kGrpoStats}, compute, in.log_prob);
  Tensor partial = allocate({grpo_chunks(p.count), kGrpoStats}, ScalarType::Double, in.log_prob);
  p.loss = loss.mutable_data_ptr(), p.stats = stats.mutable_data_ptr();
  p.partial = static_cast<double*>(partial.mutable_data_ptr());
  grpo_loss_forward(p, on(loss));
  return {loss, stats};
}

Tensor grpo_loss_backward(
    Tensor grad_loss, Tensor log_prob, Tensor old_log_prob, Tensor advantages, double clip_low, double clip_high) {
  const Inputs in(log_prob, old_log_prob, advantages);
  GrpoBackwardParams q{};
  q.forward = in.parameters(clip_low, clip_high);
  const Tensor grad = torch::stable::contiguous(grad_loss);
  check_tensor(grad, 1, accumulation_type(in.log_prob), in.log_prob, "grad_loss");
  Tensor out = allocate_like(in.log_prob);
  q.grad_loss = grad.const_data_ptr(), q.grad_log_prob = out.mutable_data_ptr();
  grpo_loss_backward(q, on(out));
  return out;
}

}  // namespace finpercep
