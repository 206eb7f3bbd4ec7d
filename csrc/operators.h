// Operator entry points: defined in torch_<family>.cpp, registered in library.cpp.
#pragma once
#include <tuple>

#include "torch_common.h"

namespace finpercep {

// modulate
std::tuple<Tensor, Tensor> modulate(
    Tensor features, Tensor degradation, int64_t h, int64_t w, int64_t gate, int64_t resample, bool pool);
std::tuple<Tensor, Tensor> modulate_backward(
    Tensor grad, Tensor features, Tensor degradation, Tensor d, int64_t h, int64_t w, int64_t gate, int64_t resample,
    bool pool, bool need_features, bool need_map);

// degradation_target
std::tuple<Tensor, Tensor, Tensor, Tensor> degradation_target(
    Tensor reference, Tensor distorted, std::optional<Tensor> reference_features,
    std::optional<Tensor> distorted_features, double alpha, int64_t normalize, double floor, double percentile,
    double scale);
std::tuple<Tensor, Tensor, Tensor, Tensor> degradation_target_backward(
    Tensor grad, Tensor reference, Tensor distorted, std::optional<Tensor> reference_features,
    std::optional<Tensor> distorted_features, Tensor out, Tensor bounds, Tensor moments, Tensor raw, double alpha,
    int64_t normalize, double floor, double scale, int64_t needs);

// group_advantage
std::tuple<Tensor, Tensor, Tensor> group_advantage(
    Tensor rewards, std::optional<Tensor> group_ids, int64_t group_size, double eps, int64_t correction, int64_t scale,
    double clip, double resolution);

// grpo_loss
std::tuple<Tensor, Tensor> grpo_loss(
    Tensor log_prob, Tensor old_log_prob, Tensor advantages, std::optional<Tensor> kl, double clip_low,
    double clip_high, double beta);
Tensor grpo_loss_backward(
    Tensor grad_loss, Tensor log_prob, Tensor old_log_prob, Tensor advantages, double clip_low, double clip_high);

// sde_step
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> sde_step(
    Tensor velocity, Tensor sample, Tensor sigma, Tensor sigma_next, std::optional<Tensor> noise,
    std::optional<Tensor> next_sample, std::optional<Tensor> reference_velocity, int64_t kind, bool exact_kl,
    double noise_level, double sigma_max, bool return_mean, int64_t positions);
Tensor sde_step_backward(
    std::optional<Tensor> grad_next_sample, std::optional<Tensor> grad_mean, std::optional<Tensor> grad_log_prob,
    std::optional<Tensor> grad_kl, Tensor velocity, Tensor sample, Tensor next_sample, Tensor sigma, Tensor sigma_next,
    std::optional<Tensor> reference_velocity, int64_t kind, bool exact_kl, double noise_level, double sigma_max,
    int64_t positions);

#ifndef FINPERCEP_CUDA
// layers of the convolutional encoders: CPU only
Tensor energy_stem(Tensor images, Tensor weight, Tensor bias, double floor, double center);
Tensor energy_stem_backward(Tensor grad, Tensor images, double floor);
Tensor conv3x3_weight(Tensor weight);
Tensor conv3x3(Tensor images, Tensor weight, Tensor bias, std::optional<Tensor> residual, bool relu);

// blocks of the mobile encoder: CPU only
Tensor inverted_residual(
    Tensor x, std::optional<Tensor> expand_weight, std::optional<Tensor> expand_bias, Tensor filter_weight,
    Tensor filter_bias, Tensor project_weight, Tensor project_bias, int64_t stride, bool skip);

// stages of the degradations: CPU only
Tensor degrade_filter(Tensor padded, Tensor kernels);
Tensor degrade_resize(
    Tensor images, Tensor height, Tensor width, Tensor new_height, Tensor new_width, Tensor mode, int64_t border,
    bool mirror);
Tensor degrade_noise(
    Tensor images, Tensor height, Tensor width, Tensor gaussian, Tensor strength, Tensor grey, Tensor key,
    Tensor quantile, Tensor chance, Tensor alias);
Tensor degrade_jpeg(Tensor images, Tensor luma, Tensor chroma);
Tensor degrade_samples(
    Tensor images, Tensor first, Tensor second, Tensor sinc, Tensor integers, Tensor flags, Tensor strengths,
    Tensor keys, Tensor tables, Tensor order, Tensor quantile, Tensor chance, Tensor alias);
#endif

}  // namespace finpercep
