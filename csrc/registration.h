// The schemas of all operators, and the kernels that every library registers for them. One section per family.
#pragma once
#include "operators.h"

namespace finpercep {

inline void define_schemas(torch::stable::detail::StableLibrary& m) {
  m.def("empty_like(Tensor like) -> Tensor");  // the allocation behind every output, for tests that poison it

  // modulate
  m.def(
      "modulate(Tensor features, Tensor degradation, SymInt h, SymInt w, int gate, int resample, bool pool)"
      " -> (Tensor, Tensor)");
  m.def(
      "modulate_backward(Tensor grad, Tensor features, Tensor degradation, Tensor d, SymInt h, SymInt w, int gate,"
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
      " float clip, float resolution) -> (Tensor, Tensor, Tensor)");

  // grpo_loss: (loss, stats)
  m.def(
      "grpo_loss(Tensor log_prob, Tensor old_log_prob, Tensor advantages, Tensor? kl, float clip_low,"
      " float clip_high, float beta) -> (Tensor, Tensor)");
  m.def(
      "grpo_loss_backward(Tensor grad_loss, Tensor log_prob, Tensor old_log_prob, Tensor advantages,"
      " float clip_low, float clip_high) -> Tensor");

  // sde_step: (next_sample, mean, log_prob, std, kl), empty where not asked for; positions > 0: log_prob (B, positions)
  m.def(
      "sde_step(Tensor velocity, Tensor sample, Tensor sigma, Tensor sigma_next, Tensor? noise, Tensor? next_sample,"
      " Tensor? reference_velocity, int kind, bool exact_kl, float noise_level, float sigma_max, bool return_mean,"
      " SymInt positions=0) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "sde_step_backward(Tensor? grad_next_sample, Tensor? grad_mean, Tensor? grad_log_prob, Tensor? grad_kl,"
      " Tensor velocity, Tensor sample, Tensor next_sample, Tensor sigma, Tensor sigma_next,"
      " Tensor? reference_velocity, int kind, bool exact_kl, float noise_level, float sigma_max, SymInt positions=0)"
      " -> Tensor");

  // layers of the convolutional encoders (finpercep.models): CPU only, no gradients
  m.def("energy_stem(Tensor images, Tensor weight, Tensor bias, float floor, float center) -> Tensor");
  m.def("energy_stem_backward(Tensor grad, Tensor images, float floor) -> Tensor");
  m.def("conv3x3_weight(Tensor weight) -> Tensor");
  m.def("conv3x3(Tensor images, Tensor weight, Tensor bias, Tensor? residual, bool relu) -> Tensor");

  // blocks of the mobile encoder (finpercep.models): CPU only, no gradients; x and result (B,H,W,C)
  m.def(
      "inverted_residual(Tensor x, Tensor? expand_weight, Tensor? expand_bias, Tensor filter_weight,"
      " Tensor filter_bias, Tensor project_weight, Tensor project_bias, int stride, bool skip) -> Tensor");

  // stages of the degradations (finpercep.data): CPU only, no gradients
  m.def("degrade_filter(Tensor padded, Tensor kernels) -> Tensor");
  m.def(
      "degrade_resize(Tensor images, Tensor height, Tensor width, Tensor new_height, Tensor new_width, Tensor mode,"
      " int border, bool mirror) -> Tensor");
  m.def(
      "degrade_noise(Tensor images, Tensor height, Tensor width, Tensor gaussian, Tensor strength, Tensor grey,"
      " Tensor key, Tensor quantile, Tensor chance, Tensor alias) -> Tensor");
  m.def("degrade_jpeg(Tensor images, Tensor luma, Tensor chroma) -> Tensor");
  m.def(
      "degrade_samples(Tensor images, Tensor first, Tensor second, Tensor sinc, Tensor integers, Tensor flags,"
      " Tensor strengths, Tensor keys, Tensor tables, Tensor order, Tensor quantile, Tensor chance, Tensor alias)"
      " -> Tensor");
}

inline void register_kernels(torch::stable::detail::StableLibrary& m) {
  m.impl("empty_like", TORCH_BOX(&allocate_like));

  // modulate
  m.impl("modulate", TORCH_BOX(&modulate));
  m.impl("modulate_backward", TORCH_BOX(&modulate_backward));

  // degradation_target
  m.impl("degradation_target", TORCH_BOX(&degradation_target));
  m.impl("degradation_target_backward", TORCH_BOX(&degradation_target_backward));

  // group_advantage
  m.impl("group_advantage", TORCH_BOX(&group_advantage));

  // grpo_loss
  m.impl("grpo_loss", TORCH_BOX(&grpo_loss));
  m.impl("grpo_loss_backward", TORCH_BOX(&grpo_loss_backward));

  // sde_step
  m.impl("sde_step", TORCH_BOX(&sde_step));
  m.impl("sde_step_backward", TORCH_BOX(&sde_step_backward));

#ifndef FINPERCEP_CUDA
  // layers of the convolutional encoders
  m.impl("energy_stem", TORCH_BOX(&energy_stem));
  m.impl("energy_stem_backward", TORCH_BOX(&energy_stem_backward));
  m.impl("conv3x3_weight", TORCH_BOX(&conv3x3_weight));
  m.impl("conv3x3", TORCH_BOX(&conv3x3));

  // blocks of the mobile encoder
  m.impl("inverted_residual", TORCH_BOX(&inverted_residual));

  // stages of the degradations
  m.impl("degrade_filter", TORCH_BOX(&degrade_filter));
  m.impl("degrade_resize", TORCH_BOX(&degrade_resize));
  m.impl("degrade_noise", TORCH_BOX(&degrade_noise));
  m.impl("degrade_jpeg", TORCH_BOX(&degrade_jpeg));
  m.impl("degrade_samples", TORCH_BOX(&degrade_samples));
#endif
}

}  // namespace finpercep
