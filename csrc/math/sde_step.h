// The numbers of one SDE step: coefficients, scores and weights of the gradient. Few, so all in double.
#pragma once
#include "../include/sde.h"
#include "common.h"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

constexpr double kHalfLogTwoPi = 0.91893853320467274178;

// mean = a·x + b·v, x' = mean + spread·ε
struct Step {
  double a, b, std, spread;
};

FINPERCEP_FN double level_of(const Levels& levels, int64_t sample) {
  if (levels.data == nullptr) return levels.value;
  const int64_t i = sample * levels.stride;
  return levels.type == DType::f32 ? double(static_cast<const float*>(levels.data)[i]) : static_cast<const double*>(levels.data)[i];
}

FINPERCEP_FN Step coefficients(const SdeParams& p, int64_t sample) {
  const double sigma = level_of(p.sigma, sample), next = level_of(p.sigma_next, sample), dt = next - sigma;
  const double level = p.noise_level;
  Step s;
  if (p.kind == SdeKind::cps) {  // x0 = x - σv, x1 = x + (1-σ)v; √(σ'² - std²) = σ'·cos
    const double along = next * cos_half_pi(level);
    s.a = 1 - next + along;
    s.b = (1 - sigma) * along - sigma * (1 - next);
    s.std = s.spread = next * sin_half_pi(level);
    return s;
  }
  double half;  // std²/(2σ) of the diffusion, finite at σ = 0
  if (p.kind == SdeKind::flow) {
    const double at = sigma >= 1 ? (p.sigma_max < 0 ? next : p.sigma_max) : sigma;
    const double room = 1 - at < 1e-12 ? 1e-12 : 1 - at;
    s.std = level * root(sigma / room);
    half = level * level / (2 * room);
  } else {
    s.std = level;
    half = sigma > 0 ? level * level / (2 * (sigma < 1e-12 ? 1e-12 : sigma)) : 0;
  }
  s.a = 1 + half * dt;
  s.b = (1 + half * (1 - sigma)) * dt;
  s.spread = s.std * root(-dt);
  if (p.kind == SdeKind::dance) s.std = s.spread;
  return s;
}

struct Score {
  double log_prob, kl;
};

// From Σ (x' - mean)² and Σ (v - v_reference)² of a sample.
FINPERCEP_FN Score score_of(const SdeParams& p, const Step& step, double square, double gap) {
  if (step.spread <= 0) return {0, 0};  // deterministic; NaN, from rising sigmas, stays visible
  square /= double(p.size);
  gap *= step.b * step.b / double(p.size);
  const double width = p.exact_kl ? step.spread : step.std, kl = gap / (2 * width * width);
  if (p.kind == SdeKind::cps) return {-square, kl};
  return {-square / (2 * step.spread * step.spread) - log_of(step.spread) - kHalfLogTwoPi, kl};
}

// log p of a position from its Σ (x' - mean)² over the channels.
struct Density {
  double factor, constant;
  FINPERCEP_FN double of(double square) const { return factor == 0 ? 0 : factor * square + constant; }
};

FINPERCEP_FN Density density_of(const SdeParams& p, const Step& step) {
  if (step.spread <= 0) return {0, 0};  // deterministic, whatever the outcome; NaN stays visible
  const double channels = double(p.size / p.positions);
  if (p.kind == SdeKind::cps) return {-1 / channels, 0};
  return {-1 / (2 * step.spread * step.spread * channels), -log_of(step.spread) - kHalfLogTwoPi};
}

// grad = outcome·(x' - mean) + pathwise·(grad_drawn + grad_mean) + gap·(v - v_reference)
template <class A> struct Weights {
  A outcome, pathwise, gap;  // with positions, outcome is still to be multiplied by the gradient of each
};

template <class A> FINPERCEP_FN Weights<A> weights(const SdeBackwardParams& q, const Step& step, int64_t sample) {
  const SdeParams& p = q.forward;
  Weights<A> w{A(0), A(step.b), A(0)};
  if (step.spread <= 0) return w;
  const double size = double(p.size), width = p.exact_kl ? step.spread : step.std;
  if (q.grad_log_prob != nullptr) {
    const double sharpness = p.kind == SdeKind::cps ? 2 : 1 / (step.spread * step.spread);
    const double grad = p.positions > 0 ? 1 : double(static_cast<const A*>(q.grad_log_prob)[sample]);
    w.outcome = A(grad * step.b * sharpness / (p.positions > 0 ? double(p.size / p.positions) : size));
  }
  if (q.grad_kl != nullptr)
    w.gap = A(double(static_cast<const A*>(q.grad_kl)[sample]) * step.b * step.b / (width * width * size));
  return w;
}

}  // namespace
}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
