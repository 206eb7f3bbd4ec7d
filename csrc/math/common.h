// Small functions that kernels for the CPU and for CUDA share. In an anonymous namespace inside finpercep::<level>, as
// everything that kernels include: one shared inline function would be linked once, for one level.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define FINPERCEP_FN __host__ __device__ inline
#else
#define FINPERCEP_FN inline
#endif

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

template <class T> struct Accum { using type = float; };
template <> struct Accum<double> { using type = double; };
template <class T> using accum_t = typename Accum<T>::type;

template <class T> struct Tag { using type = T; };

template <class T> FINPERCEP_FN T min_of(T a, T b) { return b < a ? b : a; }
template <class T> FINPERCEP_FN T max_of(T a, T b) { return a < b ? b : a; }
FINPERCEP_FN int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
template <class A> FINPERCEP_FN A magnitude(A x) { return x < 0 ? -x : x; }

template <class To, class From> FINPERCEP_FN To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

#ifdef __CUDACC__
FINPERCEP_FN float root(float x) { return sqrtf(x); }
FINPERCEP_FN double root(double x) { return sqrt(x); }
FINPERCEP_FN double log_of(double x) { return log(x); }
// cos(x·π/2): on a GPU, cos itself would need local memory to reduce large arguments.
FINPERCEP_FN double cos_half_pi(double x) { return cospi(x / 2); }
FINPERCEP_FN double sin_half_pi(double x) { return sinpi(x / 2); }
#else
inline float root(float x) { return __builtin_sqrtf(x); }
inline double root(double x) { return __builtin_sqrt(x); }
inline double log_of(double x) { return __builtin_log(x); }
constexpr double kHalfPi = 1.57079632679489661923;
inline double cos_half_pi(double x) { return __builtin_cos(x * kHalfPi); }
inline double sin_half_pi(double x) { return __builtin_sin(x * kHalfPi); }
#endif

}  // namespace
}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
