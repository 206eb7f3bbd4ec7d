// Resampling weights shared by kernels: adaptive (area) windows and bilinear taps (align_corners=False), as PyTorch.
#pragma once
#include "simd.h"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

// Adaptive pooling: cell i of `cells` covers input [begin, end) of `size`.
inline int64_t window_begin(int64_t i, int64_t cells, int64_t size) { return i * size / cells; }
inline int64_t window_end(int64_t i, int64_t cells, int64_t size) { return ceil_div((i + 1) * size, cells); }
// The cells whose windows contain pixel x.
inline int64_t cover_begin(int64_t x, int64_t cells, int64_t size) { return x * cells / size; }
inline int64_t cover_end(int64_t x, int64_t cells, int64_t size) { return ceil_div((x + 1) * cells, size); }

// Output i of `outputs` over `inputs` reads lower and lower + step with weights 1 - frac and frac.
template <class A> struct Tap {
  int64_t lower, upper;
  A frac;
};
template <class A> inline Tap<A> bilinear_tap(int64_t i, int64_t outputs, int64_t inputs) {
  const A position = max_of(A(0), (A(i) + A(0.5)) * (A(inputs) / A(outputs)) - A(0.5));
  const int64_t lower = min_of(int64_t(position), inputs - 1);
  return {lower, min_of(lower + 1, inputs - 1), min_of(A(1), max_of(A(0), position - A(lower)))};
}
// Outputs that may touch input x: a superset of [first, last) in which the taps tell.
inline int64_t touch_begin(int64_t x, int64_t outputs, int64_t inputs) {
  if (x == 0) return 0;
  return max_of(int64_t(0), (x - 1) * outputs / inputs - 1);
}
inline int64_t touch_end(int64_t x, int64_t outputs, int64_t inputs) {
  if (x >= inputs - 1) return outputs;
  return min_of(outputs, ceil_div((x + 2) * outputs, inputs) + 1);
}

}  // namespace
}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
