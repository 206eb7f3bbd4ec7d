// degradation_target forward: the features are read once, the images once. `none` and `scale` are then done; `minmax` reads
// the one-channel raw map once more, `percentile` once per eight bits of the key (no sort) and once to rescale.
#include "../math/cosine.h"
#include "../math/order_key.h"
#include "../math/resample.h"
#include "target_common.cuh"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

// ---- features: moments and cosine distance --------------------------------------------------------------------------

template <class T, class A> __global__ void __launch_bounds__(kThreads, 4) target_cosine_kernel(TargetParams p) {
  constexpr int N = kPack<T>, kBatch = 2;
  FINPERCEP_SHARED(A, parts, kThreads * N);
  const FeatureTile tile = feature_tile<N>(p, blockIdx.x);
  const int64_t pixels = p.h * p.w, left = pixels - tile.first, start = tile.b * p.channels * pixels + tile.first;
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
  for (int64_t c = tile.group; c < p.channels && left > 0 && !all_whole; c += tile.groups)
    add(load_pack<N>(f + c * pixels, left), load_pack<N>(g + c * pixels, left));
  for (int64_t c = tile.group; c < p.channels && left > 0 && all_whole; c += kBatch * tile.groups) {
    Pack<T, N> fs[kBatch], gs[kBatch];
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      const int64_t channel = c + u * tile.groups;
      if (channel < p.channels) fs[u] = load_whole<N>(f + channel * pixels), gs[u] = load_whole<N>(g + channel * pixels);
    }
#pragma unroll
    for (int u = 0; u < kBatch; ++u)
      if (c + u * tile.groups < p.channels) add(fs[u], gs[u]);
  }
  A* moments = static_cast<A*>(p.moments) + tile.b * 3 * pixels + tile.first;
#pragma unroll
  for (int m = 0; m < 3; ++m) {
    __syncthreads();
#pragma unroll
    for (int k = 0; k < N; ++k) parts[k * kThreads + threadIdx.x] = sums[m][k];
    __syncthreads();
    if (tile.group > 0 || left <= 0) continue;
    for (int other = 1; other < tile.groups; ++other)
#pragma unroll
      for (int k = 0; k < N; ++k) sums[m][k] += parts[k * kThreads + other * kFeatureLanes + tile.lane];
    store_pack<N>(moments + m * pixels, left, sums[m]);
  }
  if (tile.group > 0 || left <= 0) return;
  A distance[N];
#pragma unroll
  for (int k = 0; k < N; ++k) distance[k] = cosine_distance(sums[0][k], sums[1][k], sums[2][k]);
  store_pack<N>(static_cast<A*>(p.distance) + tile.b * pixels + tile.first, left, distance);
}

// ---- images: the raw map --------------------------------------------------------------------------------------------

// (1 - alpha) · upsampled feature distance, pixel by pixel along the rows. Neighbouring pixels share their cells, so the
// blended ends of the last pair are kept.
template <class A> class Upsampled {
 public:
  __device__ Upsampled(const TargetParams& p, int64_t b)
      : p_(p), width_(int(p.width)), height_(int(p.height)), h_(int(p.h)), w_(int(p.w)),
        image_(static_cast<const A*>(p.distance) + b * p.h * p.w) {}
  __device__ void move_to(int64_t pixel) {
    y_ = int(pixel / width_), x_ = int(pixel - int64_t(y_) * width_);
    cell_ = -1;
  }
  __device__ A next() {
    const Tap<A, int> across = bilinear_tap<A>(x_, width_, w_);
    if (across.lower != cell_) {
      const Tap<A, int> down = bilinear_tap<A>(y_, height_, h_);
      const A *upper = image_ + int64_t(down.lower) * w_, *lower = image_ + int64_t(down.upper) * w_;
      const A weight = A(1 - p_.alpha);
      left_ = weight * ((1 - down.frac) * upper[across.lower] + down.frac * lower[across.lower]);
      right_ = weight * ((1 - down.frac) * upper[across.upper] + down.frac * lower[across.upper]);
      cell_ = across.lower;
    }
    if (++x_ == width_) x_ = 0, ++y_, cell_ = -1;
    return (1 - across.frac) * left_ + across.frac * right_;
  }

 private:
  const TargetParams& p_;
  int width_, height_, h_, w_, x_ = 0, y_ = 0, cell_ = -1;
  const A* image_;
  A left_ = 0, right_ = 0;
};

template <class T, class A> __global__ void __launch_bounds__(kThreads, 3) target_raw_kernel(TargetParams p) {
  constexpr int N = kPack<T>;
  const Chunk chunk(p);
  const int64_t pixels = p.height * p.width;
  const T *f = static_cast<const T*>(p.reference) + chunk.b * 3 * pixels;
  const T *g = static_cast<const T*>(p.distorted) + chunk.b * 3 * pixels;
  A* raw = static_cast<A*>(p.raw != nullptr ? p.raw : p.out) + chunk.b * pixels;
  const A unit = sizeof(T) == 1 ? A(1.0 / 255) : A(1);
  const bool features = p.channels > 0;
  const A weight = (features ? A(p.alpha) : A(1)) * unit / A(3), scale = A(p.scale);
  const bool all_whole = pixels % N == 0 && aligned<N>(f, g);
  Upsampled<A> upsampled(p, chunk.b);
  A low = infinity<A>(), high = -infinity<A>();
  for (int64_t at = chunk.begin + threadIdx.x * N; at < chunk.end; at += kThreads * N) {
    const int64_t left = chunk.end - at;
    A sums[N] = {};
    const auto add = [&](const Pack<T, N>& fs, const Pack<T, N>& gs) {
#pragma unroll
      for (int k = 0; k < N; ++k) sums[k] += magnitude(A(widen(fs.at[k])) - A(widen(gs.at[k])));
    };
    if (all_whole) {
      Pack<T, N> fs[3], gs[3];
#pragma unroll
      for (int c = 0; c < 3; ++c) fs[c] = load_whole<N>(f + c * pixels + at), gs[c] = load_whole<N>(g + c * pixels + at);
#pragma unroll
      for (int c = 0; c < 3; ++c) add(fs[c], gs[c]);
    } else {
#pragma unroll 1  // registers are for the other branch
      for (int c = 0; c < 3; ++c) add(load_pack<N>(f + c * pixels + at, left), load_pack<N>(g + c * pixels + at, left));
    }
    if (features) upsampled.move_to(at);
    A values[N];
#pragma unroll
    for (int k = 0; k < N; ++k) {
      A value = weight * sums[k];
      if (features && k < left) value += upsampled.next();
      if (p.normalize == Normalize::scale) value = value >= scale ? A(1) : value / scale;
      if (k < left) low = Lowest()(low, value), high = Highest()(high, value);
      values[k] = value;
    }
    store_pack<N>(raw + at, left, values);
  }
  if (p.normalize == Normalize::minmax || p.normalize == Normalize::percentile) {
    low = block_reduce(low, Lowest()), high = block_reduce(high, Highest());
    A* partial = Scratch<A>(p).partial + 2 * int64_t(blockIdx.x);
    if (threadIdx.x == 0) partial[0] = low, partial[1] = high;
  } else if (chunk.index == 0 && threadIdx.x < 4) {
    static_cast<A*>(p.bounds)[4 * chunk.b + threadIdx.x] = 0;  // there are none
  }
}

// ---- bounds ---------------------------------------------------------------------------------------------------------

template <class A> struct Bounds {
  A low, high;
};

template <class A> __device__ Bounds<A> range_of(const TargetParams& p, int64_t b) {
  const int64_t chunks = target_chunks(p.height * p.width);
  const A* partial = Scratch<A>(p).partial + 2 * b * chunks;
  A low = infinity<A>(), high = -infinity<A>();
  for (int64_t c = threadIdx.x; c < chunks; c += kThreads)
    low = Lowest()(low, partial[2 * c]), high = Highest()(high, partial[2 * c + 1]);
  return {block_reduce(low, Lowest()), block_reduce(high, Highest())};
}

// Where the two ranks stand after `pass` digits of the key: the digits, and the rank among the keys that start with them.
struct Standing {
  int64_t prefix[2], rank[2];
};

template <class A> constexpr int kDigits = sizeof(A);  // of eight bits

// Finds the digit in which `rank` lies from the counts of all digits; one thread per digit.
__device__ inline void find_digit(const unsigned long long* counts, int64_t* prefix, int64_t* rank) {
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
template <class A> __global__ void __launch_bounds__(kThreads, 4) target_digit_kernel(TargetParams p, int pass) {
  constexpr int N = kPack<A>;
  FINPERCEP_SHARED(unsigned, counts, 2 * kTargetBins);
  const Chunk chunk(p);
  const Standing s = standing_before<A>(p, chunk.b, pass);
  const Scratch<A> scratch(p);
  const int64_t at_pass = chunk.b * kTargetPasses + pass;
  if (chunk.index == 0 && threadIdx.x < 2) {
    const int q = int(threadIdx.x);
    scratch.state[at_pass * 4 + q] = q == 0 ? s.prefix[0] : s.prefix[1];
    scratch.state[at_pass * 4 + 2 + q] = q == 0 ? s.rank[0] : s.rank[1];
  }
  counts[threadIdx.x] = counts[kTargetBins + threadIdx.x] = 0;
  __syncthreads();
  const A* raw = static_cast<const A*>(p.raw) + chunk.b * p.height * p.width;
  const int shift = 8 * (kDigits<A> - 1 - pass);
  for (int64_t at = chunk.begin + threadIdx.x * N; at < chunk.end; at += kThreads * N) {
    const int64_t left = chunk.end - at;
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
  unsigned long long* totals = scratch.histograms + at_pass * 2 * kTargetBins;
  for (int bin = int(threadIdx.x); bin < 2 * kTargetBins; bin += kThreads)  // whole numbers: any order gives the same sum
    if (counts[bin] > 0) atomicAdd(totals + bin, static_cast<unsigned long long>(counts[bin]));
}

// out = (raw - low) / range, clamped for percentile; counts the pixels that share the gradient of the bounds.
template <class A, bool kClamp> __global__ void __launch_bounds__(kThreads, 4) target_rescale_kernel(TargetParams p) {
  constexpr int N = kPack<A>;
  using Key = decltype(order_key(A(0)));
  const Chunk chunk(p);
  Bounds<A> bounds = range_of<A>(p, chunk.b);
  if (kClamp && bounds.low == bounds.low) {  // a NaN anywhere is the bound, and so the whole map
    const Standing s = standing_before<A>(p, chunk.b, kDigits<A>);
    bounds = {from_key(Key(s.prefix[0])), from_key(Key(s.prefix[1]))};
  }
  const A range = bounds.high - bounds.low, divisor = range < A(p.floor) ? A(p.floor) : range;
  A* out = static_cast<A*>(p.out) + chunk.b * p.height * p.width;
  const A* raw = kClamp ? static_cast<const A*>(p.raw) + chunk.b * p.height * p.width : out;
  int low = 0, high = 0;
  for (int64_t at = chunk.begin + threadIdx.x * N; at < chunk.end; at += kThreads * N) {
    const int64_t left = chunk.end - at;
    const Pack<A, N> pack = load_pack<N>(raw + at, left);
    A values[N];
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const A v = pack.at[k];
      A q = (v - bounds.low) / divisor;
      if (kClamp) q = q < 0 ? A(0) : (q > 1 ? A(1) : q);
      values[k] = q;
      low += k < left && (kClamp ? v == bounds.low : q == 0);
      high += k < left && (kClamp ? v == bounds.high : q == 1);
    }
    store_pack<N>(out + at, left, values);
  }
  low = block_reduce(low, Sum()), high = block_reduce(high, Sum());
  if (threadIdx.x > 0) return;
  int64_t* ties = Scratch<A>(p).ties + 2 * int64_t(blockIdx.x);
  ties[0] = low, ties[1] = high;
  if (chunk.index == 0) {
    A* to = static_cast<A*>(p.bounds) + 4 * chunk.b;
    to[0] = bounds.low, to[1] = bounds.high;
  }
}

// bounds[2], bounds[3]: the ties of all chunks; a block per image.
template <class A> __global__ void __launch_bounds__(kThreads, 3) target_ties_kernel(TargetParams p) {
  const int64_t chunks = target_chunks(p.height * p.width), b = blockIdx.x;
  const int64_t* ties = Scratch<A>(p).ties + 2 * b * chunks;
  int64_t low = 0, high = 0;
  for (int64_t c = threadIdx.x; c < chunks; c += kThreads) low += ties[2 * c], high += ties[2 * c + 1];
  low = block_reduce(low, Sum()), high = block_reduce(high, Sum());
  if (threadIdx.x > 0) return;
  A* to = static_cast<A*>(p.bounds) + 4 * b;
  to[2] = A(low), to[3] = A(high);
}

template <class T, class A> void target(const TargetParams& p, const Stream& stream) {
  if (p.channels > 0)
    for_features<A>(p, [&](auto tag) {
      using F = typename decltype(tag)::type;
      launch(stream, target_cosine_kernel<F, A>, p.batch * feature_tiles<kPack<F>>(p), kThreads, 0, p);
    });
  const int64_t blocks = chunk_blocks(p);
  launch(stream, target_raw_kernel<T, A>, blocks, kThreads, 0, p);
  if (p.normalize == Normalize::percentile) {
    const int64_t counts = p.batch * kTargetPasses * 2 * kTargetBins;
    set_zero(stream, Scratch<A>(p).histograms, counts * int64_t(sizeof(unsigned long long)));
    for (int pass = 0; pass < kDigits<A>; ++pass) launch(stream, target_digit_kernel<A>, blocks, kThreads, 0, p, pass);
    launch(stream, target_rescale_kernel<A, true>, blocks, kThreads, 0, p);
  } else if (p.normalize == Normalize::minmax) {
    launch(stream, target_rescale_kernel<A, false>, blocks, kThreads, 0, p);
  } else {
    return;
  }
  launch(stream, target_ties_kernel<A>, p.batch, kThreads, 0, p);
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
