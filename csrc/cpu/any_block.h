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

// What numbers (at most kBlock) become when they are stored as `type` and read back.
template <class A> inline void round_any(DType type, A* values, int64_t n) {
  for_float(type, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (sizeof(T) >= sizeof(A)) return;
    T stored[kBlock];
    narrow_block(stored, values, n);
    load_block(stored, values, n);
  });
}

inline int64_t bytes_of(DType type) { return type == DType::f64 ? 8 : type == DType::f32 ? 4 : 2; }

}  // namespace
}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
