// Building blocks of the CPU kernels: number types, blockwise conversion, streaming stores, threads.
//
// A kernel works on blocks of at most kBlock elements: load_block brings them to the accumulation type in L1 (or hands
// out the memory itself when nothing is to convert), plain loops that the compiler vectorises do the arithmetic, and
// store_block converts back. Everything is in an anonymous namespace inside finpercep::<level>, and no std template is
// used: a shared inline function, linked once, could otherwise carry AVX-512 code into the baseline path.
#pragma once
#include <cstdlib>
#include <cstring>

#include "../include/types.h"
#include "../math/common.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

constexpr int64_t kBlock = 1024;
// Outputs at least this large bypass the cache: they would not stay in it, and a normal store first reads the line.
constexpr int64_t kStreamBytes = 4 << 20;

struct bf16 { uint16_t bits; };
struct half { uint16_t bits; };

// ---- one number -------------------------------------------------------------------------------------------------

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(uint8_t x) { return x; }
inline float widen(bf16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }
inline float widen(half x) {
#ifdef __F16C__
  return _cvtsh_ss(x.bits);
#else
  // Shift exponent and mantissa into place and rescale by 2^112: exact, subnormals too. Then infinity and NaN.
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, rest = uint32_t(x.bits & 0x7fff) << 13;
  const uint32_t scaled = bit_cast<uint32_t>(bit_cast<float>(rest) * 0x1p112f);
  return bit_cast<float>(sign | (rest >= 0x0f800000u ? rest | 0x7f800000u : scaled));
#endif
}

inline void narrow(float x, float* to) { *to = x; }
inline void narrow(float x, double* to) { *to = x; }
inline void narrow(double x, double* to) { *to = x; }
inline void narrow(double x, float* to) { *to = float(x); }
inline void narrow(float x, bf16* to) {  // round to nearest even; NaN stays NaN
  const uint32_t u = bit_cast<uint32_t>(x);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  to->bits = uint16_t(x != x ? (u >> 16) | 0x40u : rounded);
}
inline void narrow(float x, half* to) {
#ifdef __F16C__
  to->bits = uint16_t(_cvtss_sh(x, 0));
#else
  const uint32_t u = bit_cast<uint32_t>(x), sign = (u >> 16) & 0x8000u, mag = u & 0x7fffffffu;
  uint32_t bits;
  if (mag > 0x7f800000u) bits = 0x7e00u;        // NaN
  else if (mag >= 0x477ff000u) bits = 0x7c00u;  // rounds to infinity
  else if (mag < 0x38800000u)                   // subnormal: the addition does the rounding
    bits = bit_cast<uint32_t>(bit_cast<float>(mag) + 0.5f) - 0x3f000000u;
  else bits = (mag - 0x38000000u + 0xfffu + ((mag >> 13) & 1u)) >> 13;
  to->bits = uint16_t(sign | bits);
#endif
}
inline void narrow(double x, bf16* to) { narrow(float(x), to); }
inline void narrow(double x, half* to) { narrow(float(x), to); }

// ---- blocks -----------------------------------------------------------------------------------------------------

inline const float* load_block(const float* from, float*, int64_t) { return from; }
inline const double* load_block(const double* from, double*, int64_t) { return from; }
// Conversion leaves the memory idle while a block is computed on: ask for what comes a few blocks later in the stream.
template <class T> inline void prefetch_ahead(const T* from, int64_t n) {
  const char* at = reinterpret_cast<const char*>(from + 4 * n);
  for (int64_t k = 0; k < n * int64_t(sizeof(T)); k += 64) __builtin_prefetch(at + k);
}
template <class T, class A> inline const A* load_block(const T* from, A* buffer, int64_t n) {
  prefetch_ahead(from, n);
  for (int64_t i = 0; i < n; ++i) buffer[i] = A(widen(from[i]));
  return buffer;
}
inline const float* load_block(const half* from, float* buffer, int64_t n) {
  prefetch_ahead(from, n);
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= n; i += 16)
    _mm512_storeu_ps(buffer + i, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(from + i))));
#elif defined(__F16C__)
  for (; i + 8 <= n; i += 8)
    _mm256_storeu_ps(buffer + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(from + i))));
#endif
  for (; i < n; ++i) buffer[i] = widen(from[i]);
  return buffer;
}

inline const float* load_block(const bf16* from, float* buffer, int64_t n) {
  prefetch_ahead(from, n);
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= n; i += 16) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(from + i)));
    _mm512_storeu_si512(buffer + i, _mm512_slli_epi32(wide, 16));
  }
#elif defined(__AVX2__)
  for (; i + 8 <= n; i += 8) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)(from + i)));
    _mm256_storeu_si256((__m256i*)(buffer + i), _mm256_slli_epi32(wide, 16));
  }
#endif
  for (; i < n; ++i) buffer[i] = widen(from[i]);
  return buffer;
}

template <class T, class A> inline void narrow_block(T* to, const A* from, int64_t n) {
  for (int64_t i = 0; i < n; ++i) narrow(from[i], to + i);
}
inline void narrow_block(half* to, const float* from, int64_t n) {
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= n; i += 16)
    _mm256_storeu_si256((__m256i*)(to + i), _mm512_cvtps_ph(_mm512_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  for (; i + 8 <= n; i += 8)
    _mm_storeu_si128((__m128i*)(to + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
#endif
  for (; i < n; ++i) narrow(from[i], to + i);
}

inline void narrow_block(bf16* to, const float* from, int64_t n) {
  int64_t i = 0;
#if defined(__AVX512F__)
  const __m512i half_unit = _mm512_set1_epi32(0x7fff), one = _mm512_set1_epi32(1), quiet = _mm512_set1_epi32(0x400000);
  for (; i + 16 <= n; i += 16) {
    const __m512 x = _mm512_loadu_ps(from + i);
    const __m512i u = _mm512_castps_si512(x), odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), one);
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(u, half_unit), odd);
    const __m512i kept = _mm512_mask_or_epi32(rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), u, quiet);
    _mm256_storeu_si256((__m256i*)(to + i), _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16)));
  }
#endif
  for (; i < n; ++i) narrow(from[i], to + i);
}

// Copy that does not pull the destination into the cache. stream_fence() before another thread reads it.
inline void stream_copy(void* to, const void* from, int64_t bytes) {
  char* out = static_cast<char*>(to);
  const char* in = static_cast<const char*>(from);
#if defined(__x86_64__)
  const int64_t head = min_of(bytes, int64_t(-reinterpret_cast<uintptr_t>(out) & 63));
  __builtin_memcpy(out, in, head);
  out += head, in += head, bytes -= head;
  for (; bytes >= 64; bytes -= 64, out += 64, in += 64) {
#if defined(__AVX512F__)
    _mm512_stream_si512((__m512i*)out, _mm512_loadu_si512(in));
#elif defined(__AVX2__)
    _mm256_stream_si256((__m256i*)out, _mm256_loadu_si256((const __m256i*)in));
    _mm256_stream_si256((__m256i*)(out + 32), _mm256_loadu_si256((const __m256i*)(in + 32)));
#else
    for (int k = 0; k < 64; k += 16)
      _mm_stream_si128((__m128i*)(out + k), _mm_loadu_si128((const __m128i*)(in + k)));
#endif
  }
#endif
  __builtin_memcpy(out, in, bytes);
}
inline void stream_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// Where to compute a block of results: in place if possible, else in `buffer` (of kBlock), for store_block to move.
inline float* out_block(float* to, float* buffer, bool stream) { return stream ? buffer : to; }
inline double* out_block(double* to, double* buffer, bool stream) { return stream ? buffer : to; }
template <class T, class A> inline A* out_block(T*, A* buffer, bool) { return buffer; }

template <class A> inline void store_block(A* to, const A* from, int64_t n, bool stream) {
  if (stream) stream_copy(to, from, n * int64_t(sizeof(A)));
  else if (to != from) __builtin_memcpy(to, from, n * sizeof(A));
}
template <class T, class A> inline void store_block(T* to, const A* from, int64_t n, bool stream) {
  if (!stream) return narrow_block(to, from, n);
  T buffer[kBlock];
  for (int64_t i = 0; i < n; i += kBlock) {
    const int64_t m = min_of(n - i, kBlock);
    narrow_block(buffer, from + i, m);
    stream_copy(to + i, buffer, m * int64_t(sizeof(T)));
  }
}

// ---- reductions over a block: many independent sums, so that they vectorise without reordering flags --------------

constexpr int kLanes = 32;

template <class A> inline A fold(const A* lanes) {
  A half_sum[kLanes / 2];
  for (int k = 0; k < kLanes / 2; ++k) half_sum[k] = lanes[k] + lanes[k + kLanes / 2];
  for (int step = kLanes / 4; step > 0; step /= 2)
    for (int k = 0; k < step; ++k) half_sum[k] += half_sum[k + step];
  return half_sum[0];
}
template <class A> inline A sum_block(const A* a, int64_t n) {
  A lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int k = 0; k < kLanes; ++k) lanes[k] += a[i + k];
  for (; i < n; ++i) lanes[i % kLanes] += a[i];
  return fold(lanes);
}

// ---- threads, scratch, types --------------------------------------------------------------------------------------

template <class F> inline void parallel_for(const Parallel& pool, int64_t count, int64_t grain, const F& body) {
  if (count <= 0) return;
  pool.run(
      count, max_of(grain, int64_t(1)),
      [](int64_t begin, int64_t end, void* context) {
        (*static_cast<const F*>(context))(begin, end);
        stream_fence();
      },
      const_cast<void*>(static_cast<const void*>(&body)));
}

// Grain for items of `cost` elements each: a range handed to another thread holds at least 32 Ki elements.
inline int64_t grain_of(int64_t cost) { return max_of(int64_t(1), (32 << 10) / max_of(cost, int64_t(1))); }

template <class A> struct Scratch {
  A* data;
  explicit Scratch(int64_t n) : data(static_cast<A*>(std::malloc((n > 0 ? n : 1) * sizeof(A)))) {
    if (data == nullptr) std::abort();  // a few rows: out of memory here is out of memory everywhere
  }
  ~Scratch() { std::free(data); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
};

// f(Tag<T>{}) for a float type
template <class F> inline void for_float(DType type, const F& f) {
  switch (type) {
    case DType::f64: return f(Tag<double>{});
    case DType::bf16: return f(Tag<bf16>{});
    case DType::f16: return f(Tag<half>{});
    default: return f(Tag<float>{});
  }
}

}  // namespace
}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
