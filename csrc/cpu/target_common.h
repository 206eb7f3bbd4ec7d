// Shared by degradation_target forward and backward: cosine distance and horizontal interpolation tables.
#pragma once
#include "../include/degradation_target.h"
#include "resample.h"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

inline float root(float x) { return __builtin_sqrtf(x); }
inline double root(double x) { return __builtin_sqrt(x); }

constexpr double kCosineEps = 1e-24;  // on the product of the squared norms, as in the reference

// 1 - f·g / sqrt(|f|²|g|²): sqrt(x·x) is exactly x, so identical features give exactly 0.
template <class A> inline A cosine_distance(A dot, A ff, A gg) {
  const A product = ff * gg;
  const bool safe = product > A(kCosineEps);
  const A distance = A(1) - dot / root(safe ? product : A(1));
  const A fallback = ff != gg ? A(1) : A(0);
  return safe ? (distance < 0 ? A(0) : distance) : fallback;
}

// Bilinear taps of every output column, and for every input column the outputs whose lower tap it is.
template <class A> struct Columns {
  Scratch<A> frac;         // [width]
  Scratch<int64_t> begin;  // [w + 1]
  Columns(int64_t width, int64_t w) : frac(width), begin(w + 1) {
    int64_t next = 0;
    for (int64_t x = 0; x < width; ++x) {
      const Tap<A> tap = bilinear_tap<A>(x, width, w);
      frac.data[x] = tap.frac;
      while (next <= tap.lower) begin.data[next++] = x;
    }
    while (next <= w) begin.data[next++] = width;
  }
};

// f(Tag<T>{}) for the features' type, if there are features: double goes with double, the others with float.
template <class A, class F> inline void for_features(const TargetParams& p, const F& f) {
  if (p.channels == 0) return;
  if constexpr (sizeof(A) == sizeof(double)) return f(Tag<double>{});
  else {
    if (p.feature_type == DType::bf16) return f(Tag<bf16>{});
    if (p.feature_type == DType::f16) return f(Tag<half>{});
    return f(Tag<float>{});
  }
}

}  // namespace
}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
