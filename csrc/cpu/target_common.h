// Shared by degradation_target forward and backward: horizontal interpolation tables.
#pragma once
#include "../include/degradation_target.h"
#include "../math/cosine.h"
#include "../math/resample.h"
#include "simd.h"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

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
