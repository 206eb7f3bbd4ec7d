// What modulate's forward and backward share.
#pragma once
#include "../include/modulate.h"
#include "primitives.cuh"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

// n / by, rounded down, for n >= 0 by a multiplication (Granlund & Montgomery 1994): a fifth of the instructions.
struct Divider {
  unsigned magic;
  int shift = 0;
  explicit Divider(int64_t by) {
    while (int64_t(1) << shift < by) ++shift;
    magic = by < 1 ? 0 : unsigned((((uint64_t(1) << shift) - uint64_t(by)) << 32) / uint64_t(by) + 1);
  }
  __device__ int operator()(int n) const {
    return int((unsigned((uint64_t(unsigned(n)) * magic) >> 32) + unsigned(n)) >> shift);
  }
};

// One side of the grid and of the map, and what math/resample.h says of area windows.
struct Side {
  int cells, size;
  Divider by_cells, by_size;
  Side(int64_t grid, int64_t map) : cells(int(grid)), size(int(map)), by_cells(grid), by_size(map) {}
  __device__ int window_begin(int i) const { return by_cells(i * size); }
  __device__ int window_end(int i) const { return by_cells((i + 1) * size + cells - 1); }
  __device__ int cover_begin(int x) const { return by_size(x * cells); }
  __device__ int cover_end(int x) const { return by_size((x + 1) * cells + size - 1); }
};
struct Sides {
  Side y, x;
  explicit Sides(const ModulateParams& p) : y(p.h, p.height), x(p.w, p.width) {}
};

// The threads of a block in teams of lanes_for(count, pack, most), without divisions.
struct Teams {
  int shift = 0, lanes;
  __device__ Teams(int count, int pack, int most) {
    while (1 << shift < most && pack << shift < count) ++shift;
    lanes = 1 << shift;
  }
  __device__ int lane() const { return int(threadIdx.x) & (lanes - 1); }
  __device__ int index() const { return int(threadIdx.x) >> shift; }  // of this thread's team
  __device__ int count() const { return kThreads >> shift; }
};

// A pack in registers, as bits: elements of 16 bits that are loaded behind a condition would take a register each.
template <class T, int N> struct Held {
  std::conditional_t<sizeof(Pack<T, N>) == sizeof(uint4), uint4, uint2> bits;
  static_assert(sizeof(bits) == sizeof(Pack<T, N>), "8 or 16 bytes");
  __device__ void load(const T* from) { bits = *reinterpret_cast<const decltype(bits)*>(from); }
  __device__ Pack<T, N> pack() const {
    Pack<T, N> result;
    memcpy(result.at, &bits, sizeof(bits));
    return result;
  }
};

// store_pack where the caller knows that the address is aligned and that there is room for all.
template <int N, class T, class A> __device__ void store_whole(T* to, const A (&values)[N]) {
  Pack<T, N> pack;
#pragma unroll
  for (int k = 0; k < N; ++k) pack.at[k] = narrow<T>(values[k]);
  static_assert(sizeof(pack) == sizeof(uint4), "16 bytes");
  uint4 bits;
  memcpy(&bits, pack.at, sizeof(bits));
  __stwb(reinterpret_cast<uint4*>(to), bits);
}

inline void check_sides(const ModulateParams& p) {
  const int64_t most = (int64_t(1) << 31) - 1;
  check((p.h + 2) * (p.height + 2) <= most && (p.w + 2) * (p.width + 2) <= most && p.height * p.width <= most,
        "modulate: grid and map have too large sides");
  check(p.batch * p.h * p.w <= most / 2 && p.channels <= most / 2, "modulate: too many tokens or channels");
}

}  // namespace
}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
