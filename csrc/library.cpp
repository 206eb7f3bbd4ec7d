// finpercep._C: registration of every CPU operator (schemas and kernels) and the Python module with build_info().
// Operators go through torch's stable ABI, so one build serves every torch >= 2.10. One section per family.
#include <pybind11/pybind11.h>

#include "include/dispatch.h"
#include "operators.h"

STABLE_TORCH_LIBRARY(finpercep, m) {
  m.def("empty_like(Tensor like) -> Tensor");  // the allocation behind every output, for tests that poison it

  // modulate
  m.def(
      "modulate(Tensor features, Tensor degradation, int h, int w, int gate, int resample, bool pool)"
      " -> (Tensor, Tensor)");
  m.def(
      "modulate_backward(Tensor grad, Tensor features, Tensor degradation, Tensor d, int h, int w, int gate,"
      " int resample, bool pool, bool need_features, bool need_map) -> (Tensor, Tensor)");

  // degradation_target
  m.def(
      "degradation_target(Tensor reference, Tensor distorted, Tensor? reference_features,"
      " Tensor? distorted_features, float alpha, int normalize, float floor, float percentile, float scale)"
      " -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "degradation_target_backward(Tensor grad, Tensor reference, Tensor distorted, Tensor? reference_features,"
      " Tensor? distorted_features, Tensor out, Tensor bounds, Tensor moments, Tensor raw, float alpha,"
      " int normalize, float floor, float scale, int needs) -> (Tensor, Tensor, Tensor, Tensor)");

  // group_advantage: (advantages, counts, moments); rewards have no gradient
  m.def(
      "group_advantage(Tensor rewards, Tensor? group_ids, int group_size, float eps, int correction, int scale,"
      " float clip) -> (Tensor, Tensor, Tensor)");

  // grpo_loss: (loss, stats)
  m.def(
      "grpo_loss(Tensor log_prob, Tensor old_log_prob, Tensor advantages, Tensor? kl, float clip_low,"
      " float clip_high, float beta) -> (Tensor, Tensor)");
  m.def(
      "grpo_loss_backward(Tensor grad_loss, Tensor log_prob, Tensor old_log_prob, Tensor advantages,"
      " float clip_low, float clip_high) -> Tensor");

  // sde_step: (next_sample, mean, log_prob, std, kl), empty where not asked for
  m.def(
      "sde_step(Tensor velocity, Tensor sample, Tensor sigma, Tensor sigma_next, Tensor? noise, Tensor? next_sample,"
      " Tensor? reference_velocity, int kind, bool exact_kl, float noise_level, float sigma_max, bool return_mean)"
      " -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "sde_step_backward(Tensor? grad_next_sample, Tensor? grad_mean, Tensor? grad_log_prob, Tensor? grad_kl,"
      " Tensor velocity, Tensor sample, Tensor next_sample, Tensor sigma, Tensor sigma_next,"
      " Tensor? reference_velocity, int kind, bool exact_kl, float noise_level, float sigma_max) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(finpercep, CPU, m) {
  m.impl("empty_like", TORCH_BOX(&finpercep::allocate_like));

  // modulate
  m.impl("modulate", TORCH_BOX(&finpercep::modulate));
  m.impl("modulate_backward", TORCH_BOX(&finpercep::modulate_backward));

  // degradation_target
  m.impl("degradation_target", TORCH_BOX(&finpercep::degradation_target));
  m.impl("degradation_target_backward", TORCH_BOX(&finpercep::degradation_target_backward));

  // group_advantage
  m.impl("group_advantage", TORCH_BOX(&finpercep::group_advantage));

  // grpo_loss
  m.impl("grpo_loss", TORCH_BOX(&finpercep::grpo_loss));
  m.impl("grpo_loss_backward", TORCH_BOX(&finpercep::grpo_loss_backward));

  // sde_step
  m.impl("sde_step", TORCH_BOX(&finpercep::sde_step));
  m.impl("sde_step_backward", TORCH_BOX(&finpercep::sde_step_backward));
}

namespace {

namespace py = pybind11;

const char* compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

py::dict build_info() {
  using finpercep::Simd;
  py::list compiled, usable;
  compiled.append("baseline");
#ifdef FINPERCEP_HAS_AVX2
  compiled.append("avx2");
#endif
#ifdef FINPERCEP_HAS_AVX512
  compiled.append("avx512");
#endif
  for (Simd level : {Simd::baseline, Simd::avx2, Simd::avx512})
    if (finpercep::simd_supported(level)) usable.append(finpercep::simd_name(level));
  py::dict info;
  info["compiler"] = compiler();
  info["torch_target"] = "2.10";  // oldest torch that this build runs with
  info["torch_built_with"] = FINPERCEP_TORCH_VERSION;
  info["simd_compiled"] = compiled;
  info["simd_usable"] = usable;
  info["simd"] = finpercep::simd_name(finpercep::simd_level());
  info["threads"] = "torch intra-op pool";
#ifdef _OPENMP
  info["openmp"] = _OPENMP;
#else
  info["openmp"] = py::none();  // none of our own: torch's pool decides
#endif
  info["cuda"] = py::none();
  info["cuda_archs"] = py::list();
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled CPU operators of FinPercep; importing it registers torch.ops.finpercep.*";
  m.def("build_info", &build_info, "Compiler, SIMD levels (compiled, usable, in use), threads, CUDA.");
  m.def("set_simd_level", [](const char* name) { finpercep::set_simd_level(name); }, py::arg("name"),
        "Switch the SIMD level of all operators: 'baseline', 'avx2' or 'avx512'. The environment variable FINPERCEP_SIMD"
        " does the same at import.");
  finpercep::simd_level();  // a wrong FINPERCEP_SIMD fails here, not in the first operator
}
