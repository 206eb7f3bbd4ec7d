// Sides as int: their products divide faster in 32 bits.
#pragma once
#include "../include/modulate.h"
#include "primitives.cuh"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

// Sides of the grid and of the map.
struct Sides {
  int h, w, height, width;
  __device__ explicit Sides(const ModulateParams& p)
      : h(int(p.h)), w(int(p.w)), height(int(p.height)), width(int(p.width)) {}
};

inline void check_sides(const ModulateParams& p) {
  const int64_t most = (int64_t(1) << 31) - 1;
  check((p.h + 2) * (p.height + 2) <= most && (p.w + 2) * (p.width + 2) <= most && p.height * p.width <= most,
        "modulate: grid and map have too large sides");
}

}  // namespace
}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
