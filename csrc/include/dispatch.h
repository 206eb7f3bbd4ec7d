// SIMD levels and the choice among them at run time; CUDA kernels are declared by the same macro.
//
// Every cpu/*.cpp except dispatch.cpp is compiled once per level, with FINPERCEP_ARCH set to the level's name, and puts
// its launchers into namespace finpercep::<level>. FINPERCEP_KERNEL declares them all and, for the bindings, defines
// finpercep::name(), which calls the level that was chosen. With FINPERCEP_CUDA defined (all of finpercep._C_cuda) there is
// one level, gpu, and a stream takes the place of the threads.
#pragma once
#include "types.h"

namespace finpercep {

enum class Simd : int32_t { baseline, avx2, avx512 };

Simd simd_level();                          // the level in use
bool simd_supported(Simd level);            // compiled in, and this CPU has it
const char* simd_name(Simd level);
void set_simd_level(const char* name);      // throws std::runtime_error naming the levels that work here

}  // namespace finpercep

// Use inside namespace finpercep: FINPERCEP_KERNEL(modulate_forward, ModulateParams)
#ifdef FINPERCEP_CUDA

#define FINPERCEP_KERNEL(name, Params)                       \
  namespace gpu { void name(const Params&, const Stream&); } \
  using gpu::name;

#else

#ifdef FINPERCEP_HAS_AVX2
#define FINPERCEP_IF_AVX2(...) __VA_ARGS__
#else
#define FINPERCEP_IF_AVX2(...)
#endif
#ifdef FINPERCEP_HAS_AVX512
#define FINPERCEP_IF_AVX512(...) __VA_ARGS__
#else
#define FINPERCEP_IF_AVX512(...)
#endif

// The chooser is left out of the per-level objects: an inline function emitted there would carry that level's instructions.
#ifdef FINPERCEP_ARCH
#define FINPERCEP_CHOOSER(name, Params)
#else
#define FINPERCEP_CHOOSER(name, Params)                                                \
  inline void name(const Params& params, const Parallel& pool) {                       \
    switch (simd_level()) {                                                            \
      FINPERCEP_IF_AVX512(case Simd::avx512 : return avx512::name(params, pool);)      \
      FINPERCEP_IF_AVX2(case Simd::avx2 : return avx2::name(params, pool);)            \
      default: return baseline::name(params, pool);                                    \
    }                                                                                  \
  }
#endif

#define FINPERCEP_KERNEL(name, Params)                                                       \
  namespace baseline { void name(const Params&, const Parallel&); }                          \
  FINPERCEP_IF_AVX2(namespace avx2 { void name(const Params&, const Parallel&); })           \
  FINPERCEP_IF_AVX512(namespace avx512 { void name(const Params&, const Parallel&); })       \
  FINPERCEP_CHOOSER(name, Params)

#endif  // FINPERCEP_CUDA
