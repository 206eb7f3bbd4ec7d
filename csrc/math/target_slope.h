// How a gradient of degradation_target passes through the normalisation.
#pragma once
#include "../include/degradation_target.h"
#include "common.h"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

// Of one image: raw gradient = grad·slope where live, plus the shares of the bounds on the pixels that equal them.
template <class A> struct Slope {
  A low, high, divisor, slope, share_low, share_high;
};

FINPERCEP_FN bool is_bounded(Normalize kind) { return kind == Normalize::minmax || kind == Normalize::percentile; }

// Everything but the shares. bounds: (4), as in TargetParams
template <class A> FINPERCEP_FN Slope<A> slope_of(const TargetParams& p, const A* bounds) {
  Slope<A> s{bounds[0], bounds[1], 1, 1, 0, 0};
  if (p.normalize == Normalize::scale) s.slope = A(1) / A(p.scale);
  if (!is_bounded(p.normalize)) return s;
  const A range = s.high - s.low;
  s.divisor = range < A(p.floor) ? A(p.floor) : range;
  s.slope = A(1) / s.divisor;
  return s;
}

// Adds the bounds' part: d out / d low = (out - 1) / range, d out / d high = -out / range; no range below the floor.
// total, product: Σ grad and Σ grad·out over the pixels that are not clamped
template <class A>
FINPERCEP_FN void share_bounds(const TargetParams& p, const A* bounds, A total, A product, Slope<A>* s) {
  const bool live = s->high - s->low >= A(p.floor);
  const A ties_low = bounds[2], ties_high = bounds[3];
  if (ties_low > 0) s->share_low = ((live ? product : A(0)) - total) * s->slope / ties_low;
  if (live && ties_high > 0) s->share_high = -product * s->slope / ties_high;
}

template <class A> FINPERCEP_FN bool inside(A raw, const Slope<A>& s) {  // the clamp of percentile
  const A q = (raw - s.low) / s.divisor;
  return q >= 0 && q <= 1;
}

}  // namespace
}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
