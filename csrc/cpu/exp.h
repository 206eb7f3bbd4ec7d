// The exponential, for numbers and for vectors of any width.
#pragma once
#include "vec.h"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

// e^x within 2 ulp: x = n·ln2 + r, a polynomial on |r| <= ln2/2 (Cephes' coefficients), times 2^n in two factors so that
// overflow gives inf and underflow goes through subnormals to 0. NaN passes both comparisons and stays NaN.
// F: float, or vectors of it; I: int32_t alike. U: what is shifted, unsigned for scalars, where NaN would overflow.
template <class F, class I, class U> inline F exp_float(F x) {
  x = x < -150.0f ? F{} - 150.0f : x;
  x = x > 130.0f ? F{} + 130.0f : x;
  const F shifter = F{} + 12582912.0f;  // 1.5·2^23: adding it rounds to an integer, kept in the low bits
  const F shifted = x * 1.44269504088896341f + shifter;
  const F n = shifted - shifter;
  const I exponent = bit_cast<I>(shifted) - bit_cast<I>(shifter);
  F r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;  // ln2 = 0.693359375 - 2.12194440e-4
  F y = 1.9875691500e-4f * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * (r * r) + r + 1.0f;
  const I half = exponent >> 1;
  return y * bit_cast<F>(U(half + 127) << 23) * bit_cast<F>(U(exponent - half + 127) << 23);
}
inline float exp_of(float x) { return exp_float<float, int32_t, uint32_t>(x); }
inline double exp_of(double x) { return __builtin_exp(x); }
inline vec<float> exp_of(const vec<float>& x) { return exp_float<vec<float>, vec_mask<float>, vec_mask<float>>(x); }
inline vec<double> exp_of(const vec<double>& x) {
  vec<double> y;
  for (int k = 0; k < lanes_of<double>; ++k) y[k] = __builtin_exp(x[k]);
  return y;
}

}  // namespace
}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
