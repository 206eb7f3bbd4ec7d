// degradation_target forward: the features are read once, the images once. `none` and `scale` are then done; `minmax` reads
// the one-channel raw map once more, in the same launch, `percentile` once per eight bits of the key (no sort) and once to
// rescale.
#include "../math/cosine.h"
#include "../math/order_key.h"
#include "../math/resample.h"
#include "target_common.cuh"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

// ---- features: moments and cosine distance --------------------------------------------------------------------------

template <class T, class A> __global__ void __launch_bounds__(kThreads, 4) target_cosine_kernel(TargetParams p) {
  constexpr int N = kPack<T>, kCells = kFeatureLanes * N, kBatch = sizeof(T) == 2 ? 2 : 4, kWarps = kThreads / kWarp;
  FINPERCEP_SHARED(A, of_warps, kWarps * 3 * kCells);
  FINPERCEP_SHARED(A, totals, 3 * kCells);
  const FeatureTile<N> tile(p, blockIdx.x);
  const int64_t pixels = p.h * p.w, start = tile.b * p.channels * pixels + tile.first, left = pixels - tile.first;
  const T *f = static_cast<const T*>(p.reference_features) + start, *g = static_cast<const T*>(p.distorted_features) + start;
  const bool all_whole = pixels % N == 0 && aligned<N>(f, g);
  A sums[3][N] = {};
  const auto add = [&](const Pack<T, N>& fs, const Pack<T, N>& gs) {
#pragma unroll
    for (int k = 0; k < N; ++k) {  // rounded alike: for identical features all three are equal
      const A x = A(widen(fs.at[k])), y = A(widen(gs.at[k]));
      sums[0][k] = multiply_add(x, y, sums[0][k]);
      sums[1][k] = multiply_add(x, x, sums[1][k]);
      sums[2][k] = multiply_add(y, y, sums[2][k]);
    }
  };
  const int channels = left > 0 ? int(p.channels) : 0;
  for (int c = tile.group; c < channels && !all_whole; c += tile.groups)
    add(load_pack<N>(f + c * pixels, left), load_pack<N>(g + c * pixels, left));
  for (int c = tile.group; c < channels && all_whole; c += kBatch * tile.groups) {
    Pack<T, N> fs[kBatch], gs[kBatch];
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      // The last channels stand in for those that there are not: loads behind a branch would come after the others.
      const int64_t channel = min_of(c + u * tile.groups, channels - 1);
      fs[u] = load_last<N>(f + channel * pixels), gs[u] = load_last<N>(g + channel * pixels);
    }
#pragma unroll
    for (int u = 0; u < kBatch; ++u)
      if (c + u * tile.groups < channels) add(fs[u], gs[u]);
  }
  const int warp = int(threadIdx.x) / kWarp, thread = int(threadIdx.x);
#pragma unroll
  for (int m = 0; m < 3; ++m)
#pragma unroll
    for (int k = 0; k < N; ++k) {
      for (int step = kFeatureLanes; step < kWarp; step *= 2) sums[m][k] += __shfl_xor_sync(kAllLanes, sums[m][k], step);
      if (thread % kWarp < kFeatureLanes) of_warps[(warp * 3 + m) * kCells + tile.lane * N + k] = sums[m][k];
    }
  __syncthreads();
  const int cell = thread % kCells;
  const int64_t at = tile.block_first + cell;
  static_assert(3 * kCells <= kThreads, "a thread per moment");
  if (thread < 3 * kCells) {
    A total = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += of_warps[w * 3 * kCells + thread];
    totals[thread] = total;
    if (at < pixels) static_cast<A*>(p.moments)[(tile.b * 3 + thread / kCells) * pixels + at] = total;
  }
  __syncthreads();
  if (thread >= kCells || at >= pixels) return;
  const A distance = cosine_distance(totals[cell], totals[kCells + cell], totals[2 * kCells + cell]);
  static_cast<A*>(p.distance)[tile.b * pixels + at] = distance;
}

// ---- images: the raw map --------------------------------------------------------------------------------------------

// (1 - alpha) · upsampled feature distance, pixel by pixel along the rows. Neighbouring pixels share their cells, so the
// blended ends of the last pair are kept.
template <class A> class Upsampled {
 public:
  __device__ Upsampled(const TargetParams& p, int64_t b)
      : weight_(A(1 - p.alpha)), width_(int(p.width)), height_(int(p.height)), h_(int(p.h)), w_(int(p.w)),
        image_(static_cast<const A*>(p.distance) + b * p.h * p.w) {}
  __device__ void move_to(int y, int x) {
    y_ = y + x / width_, x_ = x % width_;
    cell_ = -1;
  }
  __device__ A next() {
    const Tap<A, int> across = bilinear_tap<A>(x_, width_, w_);
    if (across.lower != cell_) {
      const Tap<A, int> down = bilinear_tap<A>(y_, height_, h_);
      const A *upper = image_ + int64_t(down.lower) * w_, *lower = image_ + int64_t(down.upper) * w_;
      left_ = weight_ * ((1 - down.frac) * upper[across.lower] + down.frac * lower[across.lower]);
      right_ = weight_ * ((1 - down.frac) * upper[across.upper] + down.frac * lower[across.upper]);
      cell_ = across.lower;
    }
    if (++x_ == width_) x_ = 0, ++y_, cell_ = -1;
    return (1 - across.frac) * left_ + across.frac * right_;
  }

 private:
  A weight_;
  int width_, height_, h_, w_, x_ = 0, y_ = 0, cell_ = -1;
  const A* image_;
  A left_ = 0, right_ = 0;
};

// Writes the raw map of a tile, finished if the normalization may be `scale` and is; gives this thread's lowest and highest.
template <class T, class A, bool kMayScale> __device__ Pair<A> raw_tile(const TargetParams& p, const Tile& tile) {
  constexpr int N = kPack<T>;
  const int64_t pixels = p.height * p.width, start = tile.b * 3 * pixels + tile.begin;
  const T *f = static_cast<const T*>(p.reference) + start, *g = static_cast<const T*>(p.distorted) + start;
  A* raw = static_cast<A*>(p.raw != nullptr ? p.raw : p.out) + tile.b * pixels + tile.begin;
  const A unit = sizeof(T) == 1 ? A(1.0 / 255) : A(1);
  const bool features = p.channels > 0, is_scaled = kMayScale && p.normalize == Normalize::scale;
  const A weight = (features ? A(p.alpha) : A(1)) * unit / A(3), scale = A(p.scale);
  const int count = tile.count;
  const bool all_whole = pixels % N == 0 && count % N == 0 && aligned<N>(f, g);
  Upsampled<A> upsampled(p, tile.b);
  A low = infinity<A>(), high = -infinity<A>();
  for (int at = int(threadIdx.x) * N; at < count; at += kThreads * N) {
    const int left = count - at;
    A sums[N] = {}, others[N] = {};
    const auto add = [&](const Pack<T, N>& fs, const Pack<T, N>& gs) {
#pragma unroll
      for (int k = 0; k < N; ++k) sums[k] += magnitude(A(widen(fs.at[k])) - A(widen(gs.at[k])));
    };
    const auto upsample = [&] {  // reads no further than the features, wherever the pixel is
      if (!features) return;
      upsampled.move_to(tile.y, tile.x + at);
#pragma unroll
      for (int k = 0; k < N; ++k) others[k] = upsampled.next();
    };
    if (all_whole) {
      Pack<T, N> fs[3], gs[3];
#pragma unroll
      for (int c = 0; c < 3; ++c) fs[c] = load_last<N>(f + c * pixels + at), gs[c] = load_last<N>(g + c * pixels + at);
      upsample();  // while these loads are under way
#pragma unroll
      for (int c = 0; c < 3; ++c) add(fs[c], gs[c]);
    } else {
      upsample();
#pragma unroll 1  // registers are for the other branch
      for (int c = 0; c < 3; ++c) add(load_pack<N>(f + c * pixels + at, left), load_pack<N>(g + c * pixels + at, left));
    }
    A values[N];
#pragma unroll
    for (int k = 0; k < N; ++k) {
      A value = weight * sums[k] + others[k];
      if (is_scaled) value = value >= scale ? A(1) : value / scale;
      if (k < left) low = Lowest()(low, value), high = Highest()(high, value);
      values[k] = value;
    }
    store_pack<N>(raw + at, left, values);
  }
  return {low, high};
}

// Blocks of a multiprocessor that have registers without spilling. Only the raw kernel divides by `scale`.
template <class T> constexpr int kRawBlocks = sizeof(T) == sizeof(half) || sizeof(T) == sizeof(double) ? 2 : 3;
template <class T> constexpr int kMinmaxBlocks = sizeof(T) == sizeof(float) ? 4 : kRawBlocks<T>;

template <class T, class A>
__global__ void __launch_bounds__(kThreads, kRawBlocks<T>) target_raw_kernel(TargetParams p, Tiling t) {
  const Tile tile(p, t, int(blockIdx.x));
  const Pair<A> found = raw_tile<T, A, true>(p, tile);
  if (p.normalize == Normalize::percentile)
    arrive(p, t, tile, found, {infinity<A>(), -infinity<A>()}, Lowest(), Highest());
  else if (tile.index == 0 && threadIdx.x < 4)
    static_cast<A*>(p.bounds)[4 * tile.b + threadIdx.x] = 0;  // there are none
}

// ---- rescaling ------------------------------------------------------------------------------------------------------

// out = (raw - low) / range, clamped for percentile; counts the pixels that share the gradient of the bounds.
template <class A, bool kClamp>
__device__ void rescale_tile(const TargetParams& p, const Tiling& t, const Tile& tile, Pair<A> bounds) {
  constexpr int N = kPack<A>, kBatch = 4, kStep = kThreads * N;
  const A low = bounds.first, high = bounds.second, divisor = high - low < A(p.floor) ? A(p.floor) : high - low;
  const int64_t start = tile.b * p.height * p.width + tile.begin;
  A* out = static_cast<A*>(p.out) + start;
  const A* raw = kClamp ? static_cast<const A*>(p.raw) + start : out;
  const int count = tile.count;
  const bool is_aligned = aligned<N>(raw);
  int lows = 0, highs = 0;
  for (int at = int(threadIdx.x) * N; at < count; at += kBatch * kStep) {
    const int left = count - at;
    Pack<A, N> packs[kBatch];
    read_batch(is_aligned && left >= (kBatch - 1) * kStep + N, [&](auto whole) {
#pragma unroll
      for (int u = 0; u < kBatch; ++u) packs[u] = load_pack<N>(raw + at + u * kStep, left - u * kStep, whole);
    });
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      A values[N];
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const A v = packs[u].at[k];
        A q = (v - low) / divisor;
        if (kClamp) q = q < 0 ? A(0) : (q > 1 ? A(1) : q);
        values[k] = q;
        lows += k < left - u * kStep && (kClamp ? v == low : q == 0);
        highs += k < left - u * kStep && (kClamp ? v == high : q == 1);
      }
      store_pack<N>(out + at + u * kStep, left - u * kStep, values);
    }
  }
  static_assert(kTargetTile < 1 << 15, "two counts in one number");
  const int ties = block_reduce(lows | highs << 16, Sum());
  if (threadIdx.x > 0) return;
  Progress& progress = Scratch<A>(p).progress[tile.b];
  if (ties != 0) atomicAdd(&progress.ties_low, Count(ties & 0xffff)), atomicAdd(&progress.ties_high, Count(ties >> 16));
  __threadfence();
  if (atomicAdd(&progress.finished, Count(1)) + 1 < Count(t.tiles)) return;
  __threadfence();
  A* to = static_cast<A*>(p.bounds) + 4 * tile.b;
  to[0] = low, to[1] = high;
  to[2] = A(atomicAdd(&progress.ties_low, Count(0))), to[3] = A(atomicAdd(&progress.ties_high, Count(0)));
}

// The raw map of one image, and out of another some way back.
template <class T, class A>
__global__ void __launch_bounds__(kThreads, kMinmaxBlocks<T>) target_minmax_kernel(TargetParams p, Tiling t) {
  FINPERCEP_SHARED(int, number, 1);
  take_number(Scratch<A>(p).next, number);
  const Tile first(p, t, number[0]);
  if (first.b < p.batch)
    arrive(p, t, first, raw_tile<T, A, false>(p, first), {infinity<A>(), -infinity<A>()}, Lowest(), Highest());
  if (number[0] < t.behind) return;
  const Tile second(p, t, number[0] - t.behind);
  rescale_tile<A, false>(p, t, second, result_of<A>(p, second.b));
}

// ---- percentile -----------------------------------------------------------------------------------------------------

// Where the two ranks stand after `pass` digits of the key: the digits, and the rank among the keys that start with them.
struct Standing {
  int64_t prefix[2], rank[2];
};

template <class A> constexpr int kDigits = sizeof(A);  // of eight bits

// Finds the digit in which `rank` lies from the counts of all digits; one thread per digit.
__device__ inline void find_digit(const Count* counts, int64_t* prefix, int64_t* rank) {
  static_assert(kThreads == kTargetBins, "a thread per digit");
  FINPERCEP_SHARED(int64_t, sums, kThreads / kWarp);
  FINPERCEP_SHARED(int64_t, found, 2);
  const int64_t count = int64_t(counts[threadIdx.x]);
  int64_t upto = count;  // inclusive sum, first over the warp
  for (int step = 1; step < kWarp; step *= 2) {
    const int64_t before = __shfl_up_sync(kAllLanes, upto, step);
    if (int(threadIdx.x % kWarp) >= step) upto += before;
  }
  __syncthreads();
  if (threadIdx.x % kWarp == kWarp - 1) sums[threadIdx.x / kWarp] = upto;
  __syncthreads();
  for (int warp = 0; warp < int(threadIdx.x) / kWarp; ++warp) upto += sums[warp];
  if (*rank < upto && *rank >= upto - count) found[0] = threadIdx.x, found[1] = *rank - (upto - count);
  __syncthreads();
  *prefix = int64_t((uint64_t(*prefix) << 8) | uint64_t(found[0]));
  *rank = found[1];
}

template <class A> __device__ Standing standing_before(const TargetParams& p, int64_t b, int pass) {
  Standing s{{0, 0}, {p.rank_low, p.rank_high}};
  if (pass == 0) return s;
  const Scratch<A> scratch(p);
  const int64_t before = b * kTargetPasses + pass - 1;
#pragma unroll
  for (int q = 0; q < 2; ++q) {
    if (pass > 1) s.prefix[q] = scratch.state[before * 4 + q], s.rank[q] = scratch.state[before * 4 + 2 + q];
    const int64_t histogram = before * 2 + (pass > 1 ? q : 0);  // no digit yet: both ranks look at the same counts
    find_digit(scratch.histograms + histogram * kTargetBins, &s.prefix[q], &s.rank[q]);
  }
  return s;
}

// Counts the next digit of the keys that start as the low or the high bound does.
template <class A> __global__ void __launch_bounds__(kThreads, 4) target_digit_kernel(TargetParams p, Tiling t, int pass) {
  constexpr int N = kPack<A>;
  FINPERCEP_SHARED(unsigned, counts, 2 * kTargetBins);
  const Tile tile(p, t, int(blockIdx.x));
  const Standing s = standing_before<A>(p, tile.b, pass);
  const Scratch<A> scratch(p);
  const int64_t at_pass = tile.b * kTargetPasses + pass;
  if (tile.index == 0 && threadIdx.x < 2) {
    const int q = int(threadIdx.x);
    scratch.state[at_pass * 4 + q] = q == 0 ? s.prefix[0] : s.prefix[1];
    scratch.state[at_pass * 4 + 2 + q] = q == 0 ? s.rank[0] : s.rank[1];
  }
  counts[threadIdx.x] = counts[kTargetBins + threadIdx.x] = 0;
  __syncthreads();
  const A* raw = static_cast<const A*>(p.raw) + tile.b * p.height * p.width + tile.begin;
  const int shift = 8 * (kDigits<A> - 1 - pass);
  for (int at = int(threadIdx.x) * N; at < tile.count; at += kThreads * N) {
    const int left = tile.count - at;
    const Pack<A, N> pack = load_pack<N>(raw + at, left);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const uint64_t key = order_key(pack.at[k]), prefix = pass == 0 ? 0 : key >> shift >> 8;
      const int digit = int(key >> shift & (kTargetBins - 1));
      if (k < left && prefix == uint64_t(s.prefix[0])) atomicAdd(counts + digit, 1u);
      if (k < left && pass > 0 && prefix == uint64_t(s.prefix[1])) atomicAdd(counts + kTargetBins + digit, 1u);
    }
  }
  __syncthreads();
  Count* totals = scratch.histograms + at_pass * 2 * kTargetBins;
  for (int bin = int(threadIdx.x); bin < 2 * kTargetBins; bin += kThreads)  // whole numbers: any order gives the same sum
    if (counts[bin] > 0) atomicAdd(totals + bin, static_cast<Count>(counts[bin]));
}

template <class A> __global__ void __launch_bounds__(kThreads, 3) target_rescale_kernel(TargetParams p, Tiling t) {
  using Key = decltype(order_key(A(0)));
  const Tile tile(p, t, int(blockIdx.x));
  Pair<A> bounds = Scratch<A>(p).of_images[tile.b];
  if (bounds.first == bounds.first) {  // a NaN anywhere is the bound, and so the whole map
    const Standing s = standing_before<A>(p, tile.b, kDigits<A>);
    bounds = {from_key(Key(s.prefix[0])), from_key(Key(s.prefix[1]))};
  }
  rescale_tile<A, true>(p, t, tile, bounds);
}

// ---- slices of the batch, for percentile: it reads the map again and again ------------------------------------------

constexpr int64_t kSliceBytes = 16 << 20;  // still in L2 when they are read again

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
  const int64_t count = p.normalize == Normalize::percentile ? min_of(p.batch, fit) : p.batch;
  for (int64_t first = 0; first < p.batch; first += count) f(first, min_of(count, p.batch - first));
}

// ---- launches -------------------------------------------------------------------------------------------------------

template <class T, class A> void target(const TargetParams& p, const Stream& stream) {
  if (is_bounded(p.normalize)) clear_progress(p, stream);
  if (p.channels > 0)
    for_features<A>(p, [&](auto tag) {
      using F = typename decltype(tag)::type;
      launch(stream, target_cosine_kernel<F, A>, p.batch * feature_tiles<kPack<F>>(p), kThreads, 0, p);
    });
  const Tiling t = p.normalize == Normalize::minmax ? two_parts(p) : tiling_of(p);
  const int64_t blocks = tile_blocks(p, t);
  if (p.normalize == Normalize::minmax) return launch(stream, target_minmax_kernel<T, A>, blocks, kThreads, 0, p, t);
  launch(stream, target_raw_kernel<T, A>, blocks, kThreads, 0, p, t);
  if (p.normalize != Normalize::percentile) return;
  for (int pass = 0; pass < kDigits<A>; ++pass) launch(stream, target_digit_kernel<A>, blocks, kThreads, 0, p, t, pass);
  launch(stream, target_rescale_kernel<A>, blocks, kThreads, 0, p, t);
}

}  // namespace

void target_forward(const TargetParams& p, const Stream& stream) {
  check_sides(p);
  const auto run = [&](auto tag) {
    using T = typename decltype(tag)::type;
    for_slices(p, [&](int64_t first, int64_t count) { target<T, accum_t<T>>(slice_of(p, first, count), stream); });
  };
  if (p.image_type == DType::u8) run(Tag<uint8_t>{});
  else for_float(p.image_type, run);
}

}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
