// Blocks of tensors whose dtype is known at run time only: one switch per kBlock elements costs nothing, and any mix of
// dtypes (half-precision velocities, fp32 latents) needs one instantiation per accumulation type.
#pragma once
#include "simd.h"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

template <class A> inline const A* load_any(const void* from, DType type, int64_t offset, A* buffer, int64_t n) {
  const A* block = buffer;
  for_float(type, [&](auto tag) {
    using T = typename decltype(tag)::type;
    block = load_block(static_cast<const T*>(from) + offset, buffer, n);
  });
  return block;
}

template <class A>
inline void store_any(void* to, DType type, int64_t offset, const A* from, int64_t n, bool stream) {
  for_float(type, [&](auto tag) {
    using T = typename decltype(tag)::type;
    store_block(static_cast<T*>(to) + offset, from, n, stream);
  });
}

// What a number becomes when it is stored as `type` and read back.
template <class A> inline void round_any(DType type, A* values, int64_t n) {
  for_float(type, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (sizeof(T) >= sizeof(A)) return;
    for (int64_t i = 0; i < n; ++i) {
      T stored;
      narrow(values[i], &stored);
      values[i] = A(widen(stored));
    }
  });
}

inline int64_t bytes_of(DType type) { return type == DType::f64 ? 8 : type == DType::f32 ? 4 : 2; }

}  // namespace
}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
