// Resampling weights shared by kernels: adaptive (area) windows and bilinear taps (align_corners=False), as PyTorch.
#pragma once
#include "common.h"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

// I: int64_t, or int where the product of two sides fits one (division is slow on a GPU, of 64 bits slower).

template <class I> FINPERCEP_FN I ceil_quotient(I a, I b) { return (a + b - 1) / b; }

// Adaptive pooling: cell i of `cells` covers input [begin, end) of `size`.
template <class I> FINPERCEP_FN I window_begin(I i, I cells, I size) { return i * size / cells; }
template <class I> FINPERCEP_FN I window_end(I i, I cells, I size) { return ceil_quotient((i + 1) * size, cells); }
// The cells whose windows contain pixel x.
template <class I> FINPERCEP_FN I cover_begin(I x, I cells, I size) { return x * cells / size; }
template <class I> FINPERCEP_FN I cover_end(I x, I cells, I size) { return ceil_quotient((x + 1) * cells, size); }

// Output i of `outputs` over `inputs` reads lower and upper with weights 1 - frac and frac.
template <class A, class I = int64_t> struct Tap {
  I lower, upper;
  A frac;
};
template <class A, class I> FINPERCEP_FN Tap<A, I> bilinear_tap(I i, I outputs, I inputs) {
  const A position = max_of(A(0), (A(i) + A(0.5)) * (A(inputs) / A(outputs)) - A(0.5));
  const I lower = min_of(I(position), inputs - 1);
  return {lower, min_of(lower + 1, inputs - 1), min_of(A(1), max_of(A(0), position - A(lower)))};
}
// Weight of input x in an output.
template <class A, class I> FINPERCEP_FN A tap_weight(const Tap<A, I>& tap, I x) {
  return (tap.lower == x ? 1 - tap.frac : A(0)) + (tap.upper == x ? tap.frac : A(0));
}
// Outputs that may touch input x: a superset of [first, last) in which the taps tell.
template <class I> FINPERCEP_FN I touch_begin(I x, I outputs, I inputs) {
  if (x == 0) return 0;
  return max_of(I(0), (x - 1) * outputs / inputs - 1);
}
template <class I> FINPERCEP_FN I touch_end(I x, I outputs, I inputs) {
  if (x >= inputs - 1) return outputs;
  return min_of(outputs, ceil_quotient((x + 2) * outputs, inputs) + 1);
}

}  // namespace
}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
