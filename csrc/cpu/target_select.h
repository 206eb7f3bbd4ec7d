// Order statistic by radix selection: no sort, no copy of the data.
#pragma once
#include "../math/order_key.h"
#include "simd.h"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

// The value of zero-based `rank` among n, NaN if there is one: eleven bits of the key per pass.
template <class A> A select_rank(const A* values, int64_t n, int64_t rank) {
  using Key = decltype(order_key(A(0)));
  constexpr int kBits = 11, kKeyBits = sizeof(Key) * 8;
  Key prefix = 0, mask = 0;
  int64_t counts[1 << kBits], poison = 0;
  for (int shift = kKeyBits; shift > 0;) {
    const int bits = min_of(kBits, shift);
    shift -= bits;
    const Key digit_mask = (Key(1) << bits) - 1;
    for (int64_t k = 0; k < (1 << kBits); ++k) counts[k] = 0;
    for (int64_t i = 0; i < n; ++i) {
      const Key key = order_key(values[i]);
      poison += values[i] != values[i];
      if ((key & mask) == prefix) ++counts[(key >> shift) & digit_mask];
    }
    if (poison > 0) return A(__builtin_nan(""));
    Key digit = 0;
    while (rank >= counts[digit]) rank -= counts[digit++];
    prefix |= digit << shift;
    mask |= digit_mask << shift;
  }
  return from_key(prefix);
}

}  // namespace
}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
