// degradation_target backward: one pass over the images, after sums for the bounds in the same launch, then the features. The
// bilinear adjoint is a gather in both directions: along the rows from the gradients of a tile, which its block keeps, then
// along the columns.
#include "../math/cosine.h"
#include "../math/resample.h"
#include "../math/target_slope.h"
#include "target_common.cuh"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

// The saved tensors of one image.
template <class A> struct Saved {
  const A *grad, *out, *raw, *bounds;
  __device__ Saved(const TargetBackwardParams& q, int64_t b) {
    const TargetParams& p = q.forward;
    const int64_t offset = b * p.height * p.width;
    grad = static_cast<const A*>(q.grad) + offset;
    out = static_cast<const A*>(p.out) + offset;
    raw = p.normalize == Normalize::percentile ? static_cast<const A*>(p.raw) + offset : nullptr;
    bounds = static_cast<const A*>(p.bounds) + 4 * b;
  }
  // The raw map, or out once more: loads behind a branch would come after the others.
  __device__ const A* raw_or_out() const { return raw != nullptr ? raw : out; }
};

// `inside` without its division, which rounds to at most 1 where this is true and only there.
template <class A> __device__ inline bool is_unclamped(A raw, const Slope<A>& s) {
  return raw - s.low >= 0 && raw - s.low <= s.divisor;
}

// This thread's Σ grad and Σ grad·out over the pixels of a tile that are not clamped.
template <class A> __device__ Pair<A> tile_sums(const TargetBackwardParams& q, const Tile& tile) {
  constexpr int N = kPack<A>;
  const TargetParams& p = q.forward;
  const Saved<A> saved(q, tile.b);
  const Slope<A> slope = slope_of(p, saved.bounds);
  const A *grads = saved.grad + tile.begin, *outs = saved.out + tile.begin, *raws = saved.raw_or_out() + tile.begin;
  const bool all_aligned = aligned<N>(grads, outs, raws);
  const int count = tile.count;
  A total = 0, product = 0;
  for (int at = int(threadIdx.x) * N; at < count; at += kThreads * N) {
    const int left = count - at;
    Pack<A, N> grad, out, raw;
    read_batch(all_aligned && left >= N, [&](auto whole) {
      grad = load_pack<N>(grads + at, left, whole), out = load_pack<N>(outs + at, left, whole);
      raw = load_pack<N>(raws + at, left, whole);
    });
#pragma unroll
    for (int k = 0; k < N; ++k) {
      if (k >= left || (saved.raw != nullptr && !is_unclamped(raw.at[k], slope))) continue;
      total += grad.at[k];
      product += grad.at[k] * out.at[k];
    }
  }
  return {total, product};
}

// Gradient of the raw map at one pixel.
template <Normalize kKind, class A> __device__ inline A raw_gradient(A grad, A out, A raw, const Slope<A>& s) {
  switch (kKind) {
    case Normalize::minmax: return grad * s.slope + (out == 0 ? s.share_low : A(0)) + (out == 1 ? s.share_high : A(0));
    case Normalize::percentile:
      return (is_unclamped(raw, s) ? grad * s.slope : A(0)) + (raw == s.low ? s.share_low : A(0)) +
             (raw == s.high ? s.share_high : A(0));
    case Normalize::scale: return out < 1 ? grad * s.slope : A(0);
    default: return grad;
  }
}
template <Normalize kKind, class A, int N>
__device__ inline void raw_gradients(const Pack<A, N>& grad, const Pack<A, N>& out, const Pack<A, N>& raw, const Slope<A>& s,
                                     A (&values)[N]) {
#pragma unroll
  for (int k = 0; k < N; ++k) values[k] = raw_gradient<kKind>(grad.at[k], out.at[k], raw.at[k], s);
}

// Where the gradient of a tile's i-th pixel is kept: neighbouring cells of a row start in different banks.
constexpr int kKept = int(kTargetTile + kTargetTile / 16);
__device__ inline int place(int i) { return i + (i >> 4); }

// Gradients of a tile's pixels, and its raw gradients to `kept`.
template <class T, class A>
__device__ void image_gradients(const TargetBackwardParams& q, const Tile& tile, const Slope<A>& slope, A* kept) {
  constexpr int N = kPack<T>;
  const TargetParams& p = q.forward;
  const Saved<A> saved(q, tile.b);
  const int64_t pixels = p.height * p.width, image = tile.b * 3 * pixels + tile.begin;
  const T *f = static_cast<const T*>(p.reference) + image, *g = static_cast<const T*>(p.distorted) + image;
  T *grad_f = static_cast<T*>(q.grad_reference), *grad_g = static_cast<T*>(q.grad_distorted);
  const A *grads = saved.grad + tile.begin, *outs = saved.out + tile.begin, *raws = saved.raw_or_out() + tile.begin;
  const int count = tile.count;
  const bool all_aligned = aligned<N>(grads, outs, raws);
  const bool all_whole = pixels % N == 0 && count % N == 0 && aligned<N>(f, g) && all_aligned;
  const bool images = grad_f != nullptr || grad_g != nullptr, features = q.reduced != nullptr;
  const A weight = (p.channels > 0 ? A(p.alpha) : A(1)) / A(3);
#pragma unroll 1
  for (int at = int(threadIdx.x) * N; at < count; at += kThreads * N) {
    const int left = count - at;
    A values[N];
    const auto through_bounds = [&](const Pack<A, N>& grad, const Pack<A, N>& out, const Pack<A, N>& raw) {
      switch (p.normalize) {
        case Normalize::minmax: raw_gradients<Normalize::minmax>(grad, out, raw, slope, values); break;
        case Normalize::percentile: raw_gradients<Normalize::percentile>(grad, out, raw, slope, values); break;
        case Normalize::scale: raw_gradients<Normalize::scale>(grad, out, raw, slope, values); break;
        default: raw_gradients<Normalize::none>(grad, out, raw, slope, values);
      }
#pragma unroll
      for (int k = 0; k < N; ++k) {
        if (features && k < left) kept[place(at + k)] = values[k];
        values[k] *= weight;
      }
    };
    const auto store = [&](const Pack<T, N>& fs, const Pack<T, N>& gs, int c) {
      A results[N];
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const A difference = A(widen(fs.at[k])) - A(widen(gs.at[k]));
        results[k] = difference > 0 ? values[k] : (difference < 0 ? -values[k] : A(0));
      }
      const int64_t to = image + c * pixels + at;
      if (grad_f != nullptr) store_pack<N>(grad_f + to, left, results);
#pragma unroll
      for (int k = 0; k < N; ++k) results[k] = -results[k];
      if (grad_g != nullptr) store_pack<N>(grad_g + to, left, results);
    };
    if (all_whole && images) {
      Pack<T, N> fs[3], gs[3];
#pragma unroll
      for (int c = 0; c < 3; ++c) fs[c] = load_last<N>(f + c * pixels + at), gs[c] = load_last<N>(g + c * pixels + at);
      through_bounds(load_whole<N>(grads + at), load_whole<N>(outs + at), load_whole<N>(raws + at));
#pragma unroll
      for (int c = 0; c < 3; ++c) store(fs[c], gs[c], c);
    } else {
      Pack<A, N> grad, out, raw;
      read_batch(all_aligned && left >= N, [&](auto whole) {
        grad = load_pack<N>(grads + at, left, whole), out = load_pack<N>(outs + at, left, whole);
        raw = load_pack<N>(raws + at, left, whole);
      });
      through_bounds(grad, out, raw);
#pragma unroll 1  // registers are for the other branch
      for (int c = 0; c < 3 && images; ++c)
        store(load_pack<N>(f + c * pixels + at, left), load_pack<N>(g + c * pixels + at, left), c);
    }
  }
}

// Outputs [begin, end) of a bilinear resize that read input j, and a few more: those that rounding may add, and two. The
// others of `touch_begin` and `touch_end` have no weight.
struct Support {
  int begin, end;
  __device__ Support(int j, int outputs, int inputs) : begin(0), end(outputs) {
    const unsigned size = unsigned(outputs), half = 2 * unsigned(inputs), at = 2 * unsigned(j);
    const int spare = 2 + (outputs >> 20);
    if (j > 0) begin = max_of(0, int((at - 1) * size / half) - spare);
    if (j < inputs - 1) end = min_of(outputs, int((at + 3) * size / half) + spare);
  }
};

// Horizontal half of the adjoint of upsampling, of the raw gradients of a tile: reduced[b, y, segment, j].
template <class A>
__device__ void reduce_rows(const TargetBackwardParams& q, const Tiling& t, const Tile& tile, const A* kept) {
  const TargetParams& p = q.forward;
  const int width = int(p.width), w = int(p.w), columns = min_of(width, tile.count), last = tile.x + columns;
  const int rows = tile.count / columns, segment = tile.x / int(kTargetTile);
  A* reduced = static_cast<A*>(q.reduced) + ((tile.b * p.height + tile.y) * t.segments + segment) * w;
  for (int64_t i = threadIdx.x; i < int64_t(rows) * w; i += kThreads) {
    const int row = int(i / w), j = int(i - int64_t(row) * w);
    const Support support(j, width, w);
    const int end = min_of(support.end, last);
    A sum = 0;
    for (int x = max_of(support.begin, tile.x); x < end; ++x) {
      const A weight = tap_weight(bilinear_tap<A>(x, width, w), j), value = kept[place(row * columns + x - tile.x)];
      sum += weight != 0 ? weight * value : A(0);
    }
    reduced[i] = A(1 - p.alpha) * sum;  // the rows of a tile follow each other
  }
}

template <class T, class A>
__global__ void __launch_bounds__(kThreads, sizeof(T) == sizeof(double) ? 2 : 3) target_image_bwd_kernel(TargetBackwardParams q,
                                                                                                         Tiling t) {
  FINPERCEP_SHARED(A, kept, kKept);
  FINPERCEP_SHARED(int, number, 1);
  const TargetParams& p = q.forward;
  const bool bounded = is_bounded(p.normalize);
  if (bounded) {
    take_number(Scratch<A>(p).next, number);
    const Tile first(p, t, number[0]);
    if (first.b < p.batch) arrive(p, t, first, tile_sums<A>(q, first), {0, 0}, Sum(), Sum());
    if (number[0] < t.behind) return;
  }
  const Tile tile(p, t, bounded ? number[0] - t.behind : int(blockIdx.x));
  const A* bounds = static_cast<const A*>(p.bounds) + 4 * tile.b;
  Slope<A> slope = slope_of(p, bounds);
  if (bounded) {
    const Pair<A> sums = result_of<A>(p, tile.b);
    share_bounds(p, bounds, sums.first, sums.second, &slope);
  }
  image_gradients<T, A>(q, tile, slope, kept);
  if (q.reduced == nullptr) return;
  __syncthreads();
  // Found again, so that nothing of it takes registers in between.
  reduce_rows(q, t, Tile(p, t, bounded ? number[0] - t.behind : int(blockIdx.x)), kept);
}

// Vertical half of the adjoint for the cells of a tile, then the factors of the cosine's gradient: A (3, cells of the tile).
template <int N, class A>
__device__ void cosine_gradient_factors(const TargetBackwardParams& q, int segments, const FeatureTile<N>& tile, A* factors) {
  constexpr int kCells = kFeatureLanes * N, kParts = kThreads / kCells;
  FINPERCEP_SHARED(A, of_parts, kThreads);
  const TargetParams& p = q.forward;
  const int height = int(p.height), h = int(p.h), w = int(p.w);
  const int thread = int(threadIdx.x), part = thread / kCells;
  const int64_t pixels = p.h * p.w, cell = tile.block_first + thread % kCells;
  const bool gives = thread < kCells && cell < pixels;
  A grad = 0, of_cell[3] = {};
#pragma unroll
  for (int m = 0; m < 3; ++m)
    if (gives) of_cell[m] = static_cast<const A*>(p.moments)[(tile.b * 3 + m) * pixels + cell];
  if (cell < pixels) {
    const int i = int(cell) / w;
    const Support support(i, height, h);
    const int begin = support.begin, count = (support.end - begin) * segments;
    const A* reduced = static_cast<const A*>(q.reduced) + (tile.b * height + begin) * segments * w + int(cell) % w;
#pragma unroll 4
    for (int k = part; k < count; k += kParts) {
      const A weight = tap_weight(bilinear_tap<A>(begin + k / segments, height, h), i), value = reduced[int64_t(k) * w];
      grad += weight != 0 ? weight * value : A(0);
    }
  }
  of_parts[thread] = grad;
  __syncthreads();
  if (gives) {
#pragma unroll
    for (int other = 1; other < kParts; ++other) grad += of_parts[other * kCells + thread];
    A* to = factors + thread;
    cosine_factors(grad, of_cell[0], of_cell[1], of_cell[2], to, to + kCells, to + 2 * kCells);
  }
  __syncthreads();
}

// Channels of a block: all of them where there are tiles enough to keep any GPU busy.
constexpr int64_t kFeatureBlocks = 1024, kLeastChannels = 64;

struct Slabs {
  int size, count, segments;
};
template <int N> Slabs slabs_of(const TargetParams& p) {
  const int64_t wanted = ceil_div(kFeatureBlocks, p.batch * feature_tiles<N>(p));
  const int64_t size = max_of(kLeastChannels, ceil_div(p.channels, wanted));
  return {int(size), int(ceil_div(p.channels, size)), int(target_segments(p.width))};
}

template <class T, class A>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 2 ? 2 : 3) target_cosine_bwd_kernel(TargetBackwardParams q,
                                                                                             Slabs slabs) {
  constexpr int N = kPack<T>, kCells = kFeatureLanes * N, kBatch = 2;
  FINPERCEP_SHARED(A, factors, 3 * kCells);
  const TargetParams& p = q.forward;
  const int64_t pixels = p.h * p.w;
  const unsigned index = blockIdx.x / unsigned(slabs.count);
  const FeatureTile<N> tile(p, index);
  cosine_gradient_factors<N>(q, slabs.segments, tile, factors);
  const int begin = int(blockIdx.x - index * unsigned(slabs.count)) * slabs.size;
  const int end = min_of(int(p.channels), begin + slabs.size);
  const int64_t left = pixels - tile.first, start = tile.b * p.channels * pixels + tile.first;
  if (left <= 0) return;
  const T *f = static_cast<const T*>(p.reference_features) + start, *g = static_cast<const T*>(p.distorted_features) + start;
  T *grad_f = static_cast<T*>(q.grad_reference_features), *grad_g = static_cast<T*>(q.grad_distorted_features);
  Pack<A, N> other, own_f, own_g;
#pragma unroll
  for (int k = 0; k < N; ++k) {
    const A* at = factors + tile.lane * N + k;
    other.at[k] = at[0], own_f.at[k] = at[kCells], own_g.at[k] = at[2 * kCells];
  }
  const bool all_whole = pixels % N == 0 && aligned<N>(f, g);
  for (int c = begin + tile.group; c < end; c += kBatch * tile.groups) {
    Pack<T, N> x[kBatch], y[kBatch];
    read_batch(all_whole, [&](auto whole) {
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {  // the last channel stands in for those that there are not
        const int64_t from = min_of(c + u * tile.groups, end - 1) * pixels;
        x[u] = load_last<N>(f + from, left, whole), y[u] = load_last<N>(g + from, left, whole);
      }
    });
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      if (c + u * tile.groups >= end) break;
      const int64_t to = start + (c + u * tile.groups) * pixels;
      A results[N];
      if (grad_f != nullptr) {
#pragma unroll
        for (int k = 0; k < N; ++k)
          results[k] = other.at[k] * A(widen(y[u].at[k])) + own_f.at[k] * A(widen(x[u].at[k]));
        store_pack<N>(grad_f + to, left, results);
      }
      if (grad_g != nullptr) {
#pragma unroll
        for (int k = 0; k < N; ++k)
          results[k] = other.at[k] * A(widen(x[u].at[k])) + own_g.at[k] * A(widen(y[u].at[k]));
        store_pack<N>(grad_g + to, left, results);
      }
    }
  }
}

template <class T, class A> void gradients(const TargetBackwardParams& q, const Stream& stream) {
  const TargetParams& p = q.forward;
  const bool bounded = is_bounded(p.normalize), images = q.grad_reference != nullptr || q.grad_distorted != nullptr;
  if (!images && q.reduced == nullptr) return;
  if (bounded) clear_progress(p, stream);
  const Tiling t = bounded ? two_parts(p) : tiling_of(p);
  launch(stream, target_image_bwd_kernel<T, A>, tile_blocks(p, t), kThreads, 0, q, t);
  if (q.reduced == nullptr) return;
  for_features<A>(p, [&](auto tag) {
    using F = typename decltype(tag)::type;
    const Slabs slabs = slabs_of<kPack<F>>(p);
    launch(stream, target_cosine_bwd_kernel<F, A>, p.batch * feature_tiles<kPack<F>>(p) * slabs.count, kThreads, 0, q, slabs);
  });
}

}  // namespace

void target_backward(const TargetBackwardParams& q, const Stream& stream) {
  check_sides(q.forward);
  if (q.forward.image_type == DType::u8) {  // they have no gradient, and are not read without one
    TargetBackwardParams without = q;
    without.grad_reference = without.grad_distorted = nullptr;
    return gradients<float, float>(without, stream);
  }
  for_float(q.forward.image_type, [&](auto tag) {
    using T = typename decltype(tag)::type;
    gradients<T, accum_t<T>>(q, stream);
  });
}

}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
