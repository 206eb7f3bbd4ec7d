// Shared by degradation_target forward and backward: which pixels a block takes, and its scratch memory.
#pragma once
#include "../include/degradation_target.h"
#include "../math/target_slope.h"
#include "primitives.cuh"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

// Pixels [begin, end) of image b, the index-th chunk of it.
struct Chunk {
  int64_t b, index, begin, end;
  __device__ explicit Chunk(const TargetParams& p) {
    const int64_t pixels = p.height * p.width, chunks = target_chunks(pixels), size = target_chunk(pixels);
    b = blockIdx.x / chunks, index = blockIdx.x % chunks;
    begin = index * size, end = min_of(pixels, begin + size);
  }
};

inline int64_t chunk_blocks(const TargetParams& p) { return p.batch * target_chunks(p.height * p.width); }

// TargetParams::scratch, in its parts.
template <class A> struct Scratch {
  A* partial;         // (B, chunks, 2)
  int64_t* ties;      // (B, chunks, 2)
  unsigned long long* histograms;  // (B, passes, 2, bins)
  int64_t* state;     // (B, passes, 2, 2): prefix of the key, and rank among those that share it
  __host__ __device__ explicit Scratch(const TargetParams& p) {
    const int64_t pairs = 2 * p.batch * target_chunks(p.height * p.width);
    int64_t* memory = static_cast<int64_t*>(p.scratch);
    ties = memory + pairs;
    histograms = reinterpret_cast<unsigned long long*>(ties + pairs);
    state = ties + pairs + p.batch * kTargetPasses * 2 * kTargetBins;
    partial = reinterpret_cast<A*>(memory);
  }
};

// ---- slices of the batch, for normalizations that read the map again ------------------------------------------------

constexpr int64_t kSliceBytes = 16 << 20;  // of a one-channel map: it is still in L2 when it is read again

inline int64_t bytes_of(DType type) {
  switch (type) {
    case DType::f64: return 8;
    case DType::f32: return 4;
    case DType::u8: return 1;
    default: return 2;
  }
}
template <class P> P* advanced(P* memory, int64_t bytes) {  // P: void or const void
  using Byte = std::conditional_t<std::is_const_v<P>, const char, char>;
  return memory == nullptr ? nullptr : static_cast<Byte*>(memory) + bytes;
}
inline int64_t accumulator_bytes(const TargetParams& p) { return p.image_type == DType::f64 ? 8 : 4; }

// Images [first, first + count). The scratch memory is that of all: slices follow each other on one stream.
inline TargetParams slice_of(const TargetParams& p, int64_t first, int64_t count) {
  const int64_t pixels = p.height * p.width, cells = p.h * p.w, a = accumulator_bytes(p);
  const int64_t image = 3 * pixels * bytes_of(p.image_type), features = p.channels * cells * bytes_of(p.feature_type);
  TargetParams s = p;
  s.batch = count;
  s.reference = advanced(p.reference, first * image), s.distorted = advanced(p.distorted, first * image);
  s.reference_features = advanced(p.reference_features, first * features);
  s.distorted_features = advanced(p.distorted_features, first * features);
  s.out = advanced(p.out, first * pixels * a), s.raw = advanced(p.raw, first * pixels * a);
  s.bounds = advanced(p.bounds, first * 4 * a), s.moments = advanced(p.moments, first * 3 * cells * a);
  s.distance = advanced(p.distance, first * cells * a);
  return s;
}

// f(first, count) for each slice of the batch.
template <class F> void for_slices(const TargetParams& p, const F& f) {
  const int64_t fit = max_of(int64_t(1), kSliceBytes / max_of(int64_t(1), p.height * p.width * accumulator_bytes(p)));
  const int64_t count = is_bounded(p.normalize) ? min_of(p.batch, fit) : p.batch;
  for (int64_t first = 0; first < p.batch; first += count) f(first, min_of(count, p.batch - first));
}

// Sides are int in the kernels: their products divide faster in 32 bits.
inline void check_sides(const TargetParams& p) {
  const int64_t most = (int64_t(1) << 31) - 1;
  check((p.h + 2) * (p.height + 2) <= most && (p.w + 2) * (p.width + 2) <= most,
        "degradation_target: images and features have too large sides");
}

// Pixels per thread and the threads of a block for feature maps: channels are strided, pixels contiguous.
struct FeatureTile {
  int lane, group, groups;  // pixel pack within the tile; every groups-th channel from `group` on
  int64_t b, first;         // first pixel of this thread's pack
};
constexpr int kFeatureLanes = 8;
template <int N> __host__ __device__ inline int64_t feature_tiles(const TargetParams& p) {
  return ceil_div(p.h * p.w, kFeatureLanes * N);
}
template <int N> __device__ inline FeatureTile feature_tile(const TargetParams& p, int64_t index) {
  const int64_t tiles = feature_tiles<N>(p);
  const int lane = int(threadIdx.x) % kFeatureLanes;
  return {lane, int(threadIdx.x) / kFeatureLanes, kThreads / kFeatureLanes, index / tiles,
          (index % tiles * kFeatureLanes + lane) * N};
}

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
