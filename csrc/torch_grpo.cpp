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
    STD_TORCH_CHECK(p.count > 0 && old_log_prob.numel() == p.count, "grpo_loss: log-probabilities do not match");
    const int64_t given = advantages.numel();
    STD_TORCH_CHECK(given == p.count || (log_prob.dim() == 2 && given == log_prob.size(0)),
                    "grpo_loss: advantages do not match");
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
    STD_TORCH_CHECK(divergence.numel() == p.count, "grpo_loss: kl does not match");
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
  STD_TORCH_CHECK(grad.scalar_type() == accumulation_type(in.log_prob), "grpo_loss_backward: wrong dtype of grad_loss");
  Tensor out = allocate_like(in.log_prob);
  q.grad_loss = grad.const_data_ptr(), q.grad_log_prob = out.mutable_data_ptr();
  grpo_loss_backward(q, on(out));
  return out;
}

}  // namespace finpercep
