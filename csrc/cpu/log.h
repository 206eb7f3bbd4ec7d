// The natural logarithm of positive normal numbers, for vectors of any width.
#pragma once
#include "vec.h"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

// Within 2 ulp: x = m·2^e with m in [√½, √2), a polynomial in m - 1 (Cephes' coefficients). Infinity and NaN give NaN.
inline vec<float> log_of(const vec<float>& x) {
  using V = vec<float>;
  using I = vec_mask<float>;
  const I bits = bit_cast<I>(x);
  V m = bit_cast<V>((bits & 0x7fffff) | 0x3f000000);  // in [½, 1)
  V e = __builtin_convertvector((bits >> 23) - 126, V);
  const I low = m < 0.707106781186547524f;
  e = low ? e - 1 : e;
  m = (low ? m + m : m) - 1;
  V y = 7.0376836292e-2f * m - 1.1514610310e-1f;
  y = y * m + 1.1676998740e-1f;
  y = y * m - 1.2420140846e-1f;
  y = y * m + 1.4249322787e-1f;
  y = y * m - 1.6668057665e-1f;
  y = y * m + 2.0000714765e-1f;
  y = y * m - 2.4999993993e-1f;
  y = y * m + 3.3333331174e-1f;
  const V square = m * m;
  y = y * m * square - e * 2.12194440e-4f - square * 0.5f;  // ln2 = 0.693359375 - 2.12194440e-4
  return m + y + e * 0.693359375f + (x - x);
}

}  // namespace
}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
