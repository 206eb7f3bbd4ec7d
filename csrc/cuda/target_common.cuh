// Shared by degradation_target forward and backward: which pixels a block takes, and its scratch memory.
#pragma once
#include "../include/degradation_target.h"
#include "../math/target_slope.h"
#include "primitives.cuh"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

// ---- tiles ----------------------------------------------------------------------------------------------------------

// What would take a kernel divisions to find out. `behind`: see two_parts.
struct Tiling {
  int tiles, rows, segments, behind;  // tiles of an image, rows of a tile, segments of a row
};

inline Tiling tiling_of(const TargetParams& p) {
  return {int(target_tiles(p.height, p.width)), int(target_tile_rows(p.width)), int(target_segments(p.width)), 0};
}

// Pixels [begin, begin + count) of image b, from column x of row y on: its index-th tile.
struct Tile {
  int64_t b, begin;
  int index, y, x, count;
  __device__ Tile(const TargetParams& p, const Tiling& t, int number) {
    const unsigned image = unsigned(number) / unsigned(t.tiles);
    b = image, index = number - int(image) * t.tiles;
    const int row = t.segments == 1 ? index : index / t.segments, width = int(p.width);
    y = row * t.rows, x = (index - row * t.segments) * int(kTargetTile);
    begin = int64_t(y) * width + x;
    count = t.segments == 1 ? min_of(t.rows, int(p.height) - y) * width : min_of(int(kTargetTile), width - x);
  }
};

// ---- scratch memory and progress of a launch ------------------------------------------------------------------------

using Count = unsigned long long;

// Of one image: tiles that have been through the first part, tiles that are done, how many pixels equal its bounds, and
// whether what the tiles found is merged.
struct Progress {
  Count arrived, finished, ties_low, ties_high;
  unsigned ready, unused;
};
static_assert(sizeof(Progress) == 8 * kTargetProgress, "as target_scratch_bytes counts");

template <class A> struct Pair {
  A first, second;
};

// TargetParams::scratch, in its parts.
template <class A> struct Scratch {
  Count* next;         // tile that no block has taken yet
  Progress* progress;  // (B)
  Count* histograms;   // (B, passes, 2, bins), only percentile
  int64_t* state;      // (B, passes, 2, 2): prefix of the key, and rank among those that share it
  Pair<A>* of_images;  // (B): bounds, or sums for their gradient
  Pair<A>* of_tiles;   // (B, tiles)
  __host__ __device__ explicit Scratch(const TargetParams& p) {
    next = static_cast<Count*>(p.scratch);
    progress = reinterpret_cast<Progress*>(next + 1);
    histograms = reinterpret_cast<Count*>(progress + p.batch);
    state = reinterpret_cast<int64_t*>(next + target_zeroed(p));
    of_images = reinterpret_cast<Pair<A>*>(state + p.batch * kTargetPasses * 4);
    of_tiles = of_images + p.batch;
  }
};

inline void clear_progress(const TargetParams& p, const Stream& stream) {
  set_zero(stream, p.scratch, target_zeroed(p) * int64_t(sizeof(Count)));
}

// Normalizations by an image's bounds need all of its tiles before any is finished. One launch does both: a block takes a
// tile of one image, then finishes a tile of an image some way back. Blocks take their numbers in the order in which they
// start and wait only for lower ones, which run already and do not wait before they have arrived: none waits forever. What
// is read again meanwhile stays in L2.
constexpr int64_t kTilesBetween = 128;  // takes longer to start than a tile takes

inline Tiling two_parts(const TargetParams& p) {
  Tiling t = tiling_of(p);
  t.behind = int(min_of(p.batch, 1 + ceil_div(kTilesBetween, t.tiles))) * t.tiles;
  return t;
}
inline int64_t tile_blocks(const TargetParams& p, const Tiling& t) { return p.batch * t.tiles + t.behind; }

// number[0], in shared memory, is then the block's.
__device__ inline void take_number(Count* next, int* number) {
  if (threadIdx.x == 0) number[0] = int(atomicAdd(next, Count(1)));
  __syncthreads();
}

// After a tile's part: merges what the tiles of an image found, in their order, once all have arrived.
template <class A, class First, class Second>
__device__ void arrive(const TargetParams& p, const Tiling& t, const Tile& tile, Pair<A> found, Pair<A> none, First first,
                       Second second) {
  FINPERCEP_SHARED(bool, is_last, 1);
  const Scratch<A> scratch(p);
  Progress& progress = scratch.progress[tile.b];
  Pair<A>* of_tiles = scratch.of_tiles + tile.b * t.tiles;
  found = {block_reduce(found.first, first), block_reduce(found.second, second)};
  if (threadIdx.x == 0) {  // behind the barriers of block_reduce: what others of the block have written is passed on, too
    of_tiles[tile.index] = found;
    __threadfence();
    is_last[0] = atomicAdd(&progress.arrived, Count(1)) + 1 == Count(t.tiles);
    if (is_last[0]) __threadfence();
  }
  __syncthreads();
  if (!is_last[0]) return;
  found = none;
#pragma unroll 1
  for (int i = int(threadIdx.x); i < t.tiles; i += kThreads)
    found = {first(found.first, of_tiles[i].first), second(found.second, of_tiles[i].second)};
  found = {block_reduce(found.first, first), block_reduce(found.second, second)};
  if (threadIdx.x > 0) return;
  scratch.of_images[tile.b] = found;
  __threadfence();
  atomicAdd(&progress.ready, 1u);
}

// What `arrive` found for image b, as soon as it is there.
template <class A> __device__ Pair<A> result_of(const TargetParams& p, int64_t b) {
  const Scratch<A> scratch(p);
  if (threadIdx.x == 0) {
    const volatile unsigned* ready = &scratch.progress[b].ready;
    while (*ready == 0) {}
    __threadfence();
  }
  __syncthreads();
  return scratch.of_images[b];
}

// Memory that is read for the last time: the first that L2 gives up.
template <int N, class T> __device__ inline Pack<T, N> load_last(const T* from) {
  using Bits = std::conditional_t<sizeof(Pack<T, N>) % sizeof(uint4) == 0, uint4, uint2>;
  static_assert(sizeof(Pack<T, N>) == sizeof(Bits), "a whole load");
  return bit_cast<Pack<T, N>>(__ldcs(reinterpret_cast<const Bits*>(from)));
}
template <int N, class T> __device__ inline Pack<T, N> load_last(const T* from, int64_t, std::true_type) {
  return load_last<N>(from);
}
template <int N, class T> __device__ inline Pack<T, N> load_last(const T* from, int64_t left, std::false_type) {
  return load_pack<N>(from, left);
}

// Sides are int in the kernels: their products divide faster in 32 bits.
inline void check_sides(const TargetParams& p) {
  const int64_t most = (int64_t(1) << 31) - 1;
  check((p.h + 2) * (p.height + 2) <= most && (p.w + 2) * (p.width + 2) <= most,
        "degradation_target: images and features have too large sides");
}

// Packs of pixels and the threads of a block for feature maps: channels are strided, pixels contiguous.
constexpr int kFeatureLanes = 8;
template <int N> __host__ __device__ inline int64_t feature_tiles(const TargetParams& p) {
  return ceil_div(p.h * p.w, kFeatureLanes * N);
}
template <int N> struct FeatureTile {
  static constexpr int groups = kThreads / kFeatureLanes;
  int lane, group;                // pixel pack within the tile; every groups-th channel from `group` on
  int64_t b, block_first, first;  // first pixel of the tile, and of this thread's pack
  __device__ FeatureTile(const TargetParams& p, unsigned index)
      : lane(int(threadIdx.x) % kFeatureLanes), group(int(threadIdx.x) / kFeatureLanes),
        b(index / unsigned(feature_tiles<N>(p))), block_first((index - b * feature_tiles<N>(p)) * kFeatureLanes * N),
        first(block_first + lane * N) {}
};

// f(Tag<T>{}) for the features' type: double goes with double, the others with float.
template <class A, class F> void for_features(const TargetParams& p, const F& f) {
  if constexpr (sizeof(A) == sizeof(double)) return f(Tag<double>{});
  else {
    if (p.feature_type == DType::bf16) return f(Tag<bf16>{});
    if (p.feature_type == DType::f16) return f(Tag<half>{});
    return f(Tag<float>{});
  }
}

}  // namespace
}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
