// Which SIMD level runs. Compiled once, for the baseline.
#include "../include/dispatch.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace finpercep {

bool simd_supported(Simd level) {
  switch (level) {
    case Simd::baseline: return true;
#ifdef FINPERCEP_HAS_AVX2
    case Simd::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#endif
#ifdef FINPERCEP_HAS_AVX512
    case Simd::avx512:
      return simd_supported(Simd::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
    default: return false;
  }
}

const char* simd_name(Simd level) {
  switch (level) {
    case Simd::avx512: return "avx512";
    case Simd::avx2: return "avx2";
    default: return "baseline";
  }
}

namespace {

constexpr Simd kLevels[] = {Simd::avx512, Simd::avx2, Simd::baseline};

Simd parse(const char* name) {
  std::string working;
  for (Simd level : kLevels) {
    if (!simd_supported(level)) continue;
    if (std::strcmp(name, simd_name(level)) == 0) return level;
    working += working.empty() ? "" : ", ";
    working += simd_name(level);
  }
  throw std::runtime_error(std::string("FINPERCEP_SIMD: expected one of ") + working + " on this machine, got '" +
                           name + "'");
}

Simd choose() {
  const char* wanted = std::getenv("FINPERCEP_SIMD");
  if (wanted != nullptr && *wanted != '\0') return parse(wanted);
  for (Simd level : kLevels)
    if (simd_supported(level)) return level;
  return Simd::baseline;
}

std::atomic<Simd>& current() {
  static std::atomic<Simd> level{choose()};
  return level;
}

}  // namespace

Simd simd_level() { return current().load(std::memory_order_relaxed); }
void set_simd_level(const char* name) { current().store(parse(name), std::memory_order_relaxed); }

}  // namespace finpercep
