// group_advantage: tensors in, launch out.
#include "include/advantage.h"
#include "operators.h"

namespace finpercep {

#ifdef FINPERCEP_CUDA
namespace {

// aten::sort, (values, indices). torch's own wrapper is newer than 2.10, the operator is not.
std::pair<Tensor, Tensor> stable_sort(const Tensor& tensor) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  StableIValue stack[] = {from(tensor), from(std::optional<bool>(true)), from(int64_t(-1)), from(false)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack, TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}

}  // namespace
#endif

std::tuple<Tensor, Tensor, Tensor> group_advantage(
    Tensor rewards, std::optional<Tensor> group_ids, int64_t group_size, double eps, int64_t correction, int64_t scale,
    double clip, double resolution) {
  const Tensor r = torch::stable::contiguous(rewards);
  STD_TORCH_CHECK(r.dim() == 1, "rewards: expected (N,)");
  STD_TORCH_CHECK(correction == 0 || correction == 1, "correction: expected 0 or 1, got ", correction);
  STD_TORCH_CHECK(resolution >= 0 && resolution < 1, "resolution: expected in [0, 1), got ", resolution);
  AdvantageParams p{};
  Tensor ids;
  if (group_ids.has_value()) {
    STD_TORCH_CHECK(group_ids->scalar_type() == ScalarType::Long && group_ids->numel() == r.numel(),
                    "group_ids: expected int64, one per reward");
    check_device(*group_ids, r, "group_ids");
    ids = torch::stable::contiguous(*group_ids);
    p.ids = static_cast<const int64_t*>(ids.const_data_ptr());
    if (p.ids == nullptr) group_size = 1;  // empty tensors may have no memory
  }
  if (p.ids == nullptr)
    STD_TORCH_CHECK(group_size >= 1 && r.numel() % group_size == 0, "group_size: expected a divisor of ", r.numel(),
                    " rewards, got ", group_size);
  p.count = r.numel(), p.group_size = group_size;
  p.reward_type = dtype_of(r, "rewards");
  p.eps = eps, p.correction = correction, p.clip = clip, p.resolution = resolution;
  p.scale = choice<AdvantageScale>(scale, 3, "scale");
  const ScalarType compute = accumulation_type(r);
  Tensor advantages = allocate({p.count}, compute, r);
  Tensor counts = allocate({4}, ScalarType::Long, r), moments = allocate({2}, compute, r);
  p.rewards = r.const_data_ptr(), p.advantages = advantages.mutable_data_ptr();
  p.counts = static_cast<int64_t*>(counts.mutable_data_ptr()), p.moments = moments.mutable_data_ptr();
#ifdef FINPERCEP_CUDA
  const bool small = advantage_is_small(p.count, p.reward_type);
  Tensor order, scratch = allocate({small ? 0 : advantage_scratch_bytes()}, ScalarType::Byte, r);
  p.scratch = scratch.mutable_data_ptr();
  if (p.ids != nullptr && !small) {
    std::tie(ids, order) = stable_sort(ids);
    p.ids = static_cast<const int64_t*>(ids.const_data_ptr());
    p.order = static_cast<const int64_t*>(order.const_data_ptr());
  }
#endif
  group_advantage(p, on(r));
  return {advantages, counts, moments};
}

}  // namespace finpercep
