// Unsigned keys in the order of the numbers, for selection by radix.
#pragma once
#include "common.h"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

// Not for NaN.
FINPERCEP_FN uint32_t order_key(float x) {
  const uint32_t u = bit_cast<uint32_t>(x);
  return u ^ (u >> 31 ? 0xffffffffu : 0x80000000u);
}
FINPERCEP_FN uint64_t order_key(double x) {
  const uint64_t u = bit_cast<uint64_t>(x);
  return u ^ (u >> 63 ? ~uint64_t(0) : uint64_t(1) << 63);
}
FINPERCEP_FN float from_key(uint32_t k) { return bit_cast<float>(k ^ (k >> 31 ? 0x80000000u : 0xffffffffu)); }
FINPERCEP_FN double from_key(uint64_t k) {
  return bit_cast<double>(k ^ (k >> 63 ? uint64_t(1) << 63 : ~uint64_t(0)));
}

}  // namespace
}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
