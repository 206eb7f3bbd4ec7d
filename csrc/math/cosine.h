// The cosine distance of degradation_target and its gradient, from the three moments f·g, f·f, g·g.
#pragma once
#include "common.h"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

constexpr double kCosineEps = 1e-24;  // on the product of the squared norms, as in the reference

// 1 - f·g / sqrt(|f|²|g|²): sqrt(x·x) is exactly x, so identical features give exactly 0.
template <class A> FINPERCEP_FN A cosine_distance(A dot, A ff, A gg) {
  const A product = ff * gg;
  const bool safe = product > A(kCosineEps);
  const A distance = A(1) - dot / root(safe ? product : A(1));
  const A fallback = ff != gg ? A(1) : A(0);
  return safe ? (distance < 0 ? A(0) : distance) : fallback;
}

// Turns the gradient of the distance into the three factors of
//   grad f = other·g + own_f·f,  grad g = other·f + own_g·g.
template <class A> FINPERCEP_FN void cosine_factors(A grad, A dot, A ff, A gg, A* other, A* own_f, A* own_g) {
  const A product = ff * gg;
  const bool safe = product > A(kCosineEps);
  const A inverse = A(1) / root(safe ? product : A(1)), cosine = dot * inverse;
  const bool live = safe && dot / root(safe ? product : A(1)) <= A(1);  // not where the distance was clamped
  *other = live ? -grad * inverse : A(0);
  *own_f = live ? grad * cosine / ff : A(0);
  *own_g = live ? grad * cosine / gg : A(0);
}

}  // namespace
}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
