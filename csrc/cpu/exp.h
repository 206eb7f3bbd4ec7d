// The exponential, in a form that vectorises in plain loops at every SIMD level.
#pragma once
#include "simd.h"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

// e^x within 2 ulp: x = n·ln2 + r, a polynomial on |r| <= ln2/2 (Cephes' coefficients), times 2^n in two factors so that
// overflow gives inf and underflow goes through subnormals to 0. NaN passes both comparisons and stays NaN.
inline float exp_of(float x) {
  x = x < -150.0f ? -150.0f : x;
  x = x > 130.0f ? 130.0f : x;
  const float shifter = 12582912.0f;  // 1.5·2^23: adding it rounds to an integer, kept in the low bits
  const float shifted = x * 1.44269504088896341f + shifter;
  const float n = shifted - shifter;
  const int32_t exponent = bit_cast<int32_t>(shifted) - bit_cast<int32_t>(shifter);
  float r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;  // ln2 = 0.693359375 - 2.12194440e-4
  float y = 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * (r * r) + r + 1.0f;
  const int32_t half = exponent >> 1;
  const float first = bit_cast<float>(static_cast<uint32_t>(half + 127) << 23);
  const float second = bit_cast<float>(static_cast<uint32_t>(exponent - half + 127) << 23);
  return y * first * second;
}
inline double exp_of(double x) { return __builtin_exp(x); }

}  // namespace
}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
