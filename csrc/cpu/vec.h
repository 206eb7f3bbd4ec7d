// Vectors by the compilers' vector extensions: as wide as the SIMD level, for loops whose running sums must stay in
// registers. Arithmetic, comparison and `mask ? a : b` are the language's own.
#pragma once
#include "simd.h"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class A, int kBytes> struct Vector;
template <int kBytes> struct Vector<float, kBytes> {
  typedef float type __attribute__((vector_size(kBytes)));
  typedef int32_t mask __attribute__((vector_size(kBytes)));
};
template <int kBytes> struct Vector<double, kBytes> {
  typedef double type __attribute__((vector_size(kBytes)));
  typedef int64_t mask __attribute__((vector_size(kBytes)));
};
template <class A> using vec = typename Vector<A, kVectorBytes>::type;
template <class A> using vec_mask = typename Vector<A, kVectorBytes>::mask;
template <class A> constexpr int lanes_of = kVectorBytes / int(sizeof(A));

template <class V, class A> inline V load_vec(const A* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof(V));
  return v;
}
template <class V, class A> inline void store_vec(A* to, const V& v) { __builtin_memcpy(to, &v, sizeof(V)); }

// A vector of A from numbers of a narrower (or the same) type, converted on the way.
template <class A> inline vec<A> load_wide(const A* from) { return load_vec<vec<A>>(from); }
template <class A> inline vec<float> load_wide(const bf16* from) {
  typedef uint16_t narrow_bits __attribute__((vector_size(kVectorBytes / 2)));
  typedef uint32_t wide_bits __attribute__((vector_size(kVectorBytes)));
  const wide_bits bits = __builtin_convertvector(load_vec<narrow_bits>(from), wide_bits) << 16;
  return load_vec<vec<float>>(&bits);
}
template <class A> inline vec<float> load_wide(const half* from) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(load_vec<__m256i>(from));
#elif defined(__F16C__)
  return _mm256_cvtph_ps(load_vec<__m128i>(from));
#else
  vec<float> wide;
  for (int k = 0; k < lanes_of<float>; ++k) wide[k] = widen(from[k]);
  return wide;
#endif
}

// Sum of the lanes, by halves.
template <class A, int kBytes> inline A sum_lanes(typename Vector<A, kBytes>::type v) {
  if constexpr (kBytes == 2 * int(sizeof(A))) {
    return v[0] + v[1];
  } else {
    typename Vector<A, kBytes / 2>::type lower, upper;
    __builtin_memcpy(&lower, &v, kBytes / 2);
    __builtin_memcpy(&upper, reinterpret_cast<const char*>(&v) + kBytes / 2, kBytes / 2);
    return sum_lanes<A, kBytes / 2>(lower + upper);
  }
}

// Brings a line of each stream that is read side by side into L2 before its page is reached: the hardware's own
// prefetcher stops at pages. Never faults. Most loops want a page ahead; those that say less were measured so.
inline void prefetch_line(const void* from) { __builtin_prefetch(from, 0, 2); }
template <int kBytes = 4096> inline void prefetch_ahead(const void* from) {
  prefetch_line(static_cast<const char*>(from) + kBytes);
}

}  // namespace
}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
