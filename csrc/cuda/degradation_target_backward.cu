// degradation_target backward: sums for the bounds, one pass over the images, then the features. The bilinear adjoint is a
// gather in both directions: each low-resolution cell reads the pixels that touch it.
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

// Per chunk: Σ grad and Σ grad·out over the pixels that are not clamped.
template <class A> __global__ void __launch_bounds__(kThreads, 4) target_sums_bwd_kernel(TargetBackwardParams q) {
  constexpr int N = kPack<A>;
  const TargetParams& p = q.forward;
  const Chunk chunk(p);
  const Saved<A> saved(q, chunk.b);
  const Slope<A> slope = slope_of(p, saved.bounds);
  const A* raw_map = saved.raw_or_out();
  const bool all_aligned = aligned<N>(saved.grad, saved.out, raw_map);
  A total = 0, product = 0;
  for (int64_t at = chunk.begin + threadIdx.x * N; at < chunk.end; at += kThreads * N) {
    const int64_t left = chunk.end - at;
    Pack<A, N> grad, out, raw;
    read_batch(all_aligned && left >= N, [&](auto whole) {
      grad = load_pack<N>(saved.grad + at, left, whole), out = load_pack<N>(saved.out + at, left, whole);
      raw = load_pack<N>(raw_map + at, left, whole);
    });
#pragma unroll
    for (int k = 0; k < N; ++k) {
      if (k >= left || (saved.raw != nullptr && !inside(raw.at[k], slope))) continue;
      total += grad.at[k];
      product += grad.at[k] * out.at[k];
    }
  }
  total = block_reduce(total, Sum()), product = block_reduce(product, Sum());
  A* partial = Scratch<A>(p).partial + 2 * int64_t(blockIdx.x);
  if (threadIdx.x == 0) partial[0] = total, partial[1] = product;
}

// The slope of image b with the shares of its bounds, from the sums of all its chunks. All threads of a block take part.
template <class A> __device__ Slope<A> finished_slope(const TargetParams& p, int64_t b, const A* bounds) {
  Slope<A> slope = slope_of(p, bounds);
  if (!is_bounded(p.normalize)) return slope;
  const int64_t chunks = target_chunks(p.height * p.width);
  const A* partial = Scratch<A>(p).partial + 2 * b * chunks;
  A total = 0, product = 0;
  for (int64_t c = threadIdx.x; c < chunks; c += kThreads) total += partial[2 * c], product += partial[2 * c + 1];
  total = block_reduce(total, Sum()), product = block_reduce(product, Sum());
  share_bounds(p, bounds, total, product, &slope);
  return slope;
}

// Gradient of the raw map at one pixel.
template <class A> __device__ inline A raw_gradient(Normalize kind, A grad, A out, A raw, const Slope<A>& s) {
  switch (kind) {
    case Normalize::minmax: return grad * s.slope + (out == 0 ? s.share_low : A(0)) + (out == 1 ? s.share_high : A(0));
    case Normalize::percentile:
      return (inside(raw, s) ? grad * s.slope : A(0)) + (raw == s.low ? s.share_low : A(0)) +
             (raw == s.high ? s.share_high : A(0));
    case Normalize::scale: return out < 1 ? grad * s.slope : A(0);
    default: return grad;
  }
}

template <class T, class A>
__global__ void __launch_bounds__(kThreads, sizeof(T) == sizeof(double) ? 2 : 3) target_image_bwd_kernel(TargetBackwardParams q) {
  constexpr int N = kPack<T>;
  const TargetParams& p = q.forward;
  const Chunk chunk(p);
  const Saved<A> saved(q, chunk.b);
  const Slope<A> slope = finished_slope(p, chunk.b, saved.bounds);
  const int64_t pixels = p.height * p.width, image = chunk.b * 3 * pixels;
  const T *f = static_cast<const T*>(p.reference) + image, *g = static_cast<const T*>(p.distorted) + image;
  T *grad_f = static_cast<T*>(q.grad_reference), *grad_g = static_cast<T*>(q.grad_distorted);
  const A* raw_map = saved.raw_or_out();
  const bool all_whole = pixels % N == 0 && aligned<N>(f, g) && aligned<N>(saved.grad, saved.out, raw_map);
  const A weight = (p.channels > 0 ? A(p.alpha) : A(1)) / A(3);
  for (int64_t at = chunk.begin + threadIdx.x * N; at < chunk.end; at += kThreads * N) {
    const int64_t left = chunk.end - at;
    A values[N];
    const auto through_bounds = [&](const Pack<A, N>& grad, const Pack<A, N>& out, const Pack<A, N>& raw) {
#pragma unroll
      for (int k = 0; k < N; ++k)
        values[k] = weight * raw_gradient(p.normalize, grad.at[k], out.at[k], raw.at[k], slope);
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
    if (all_whole) {
      Pack<T, N> fs[3], gs[3];
#pragma unroll
      for (int c = 0; c < 3; ++c) fs[c] = load_whole<N>(f + c * pixels + at), gs[c] = load_whole<N>(g + c * pixels + at);
      through_bounds(load_whole<N>(saved.grad + at), load_whole<N>(saved.out + at), load_whole<N>(raw_map + at));
#pragma unroll
      for (int c = 0; c < 3; ++c) store(fs[c], gs[c], c);
    } else {
      through_bounds(load_pack<N>(saved.grad + at, left), load_pack<N>(saved.out + at, left), load_pack<N>(raw_map + at, left));
#pragma unroll 1  // registers are for the other branch
      for (int c = 0; c < 3; ++c)
        store(load_pack<N>(f + c * pixels + at, left), load_pack<N>(g + c * pixels + at, left), c);
    }
  }
}

// Horizontal half of the adjoint of upsampling: reduced[b, y, j], a thread each. Blocks do not cross images.
template <class A> __global__ void __launch_bounds__(kThreads, 3) target_columns_bwd_kernel(TargetBackwardParams q) {
  const TargetParams& p = q.forward;
  const int64_t cells = p.height * p.w, blocks = ceil_div(cells, kThreads), b = blockIdx.x / blocks;
  const int64_t cell = blockIdx.x % blocks * kThreads + threadIdx.x;
  const Saved<A> saved(q, b);
  const Slope<A> slope = finished_slope(p, b, saved.bounds);
  if (cell >= cells) return;
  const int width = int(p.width), w = int(p.w), j = int(cell % w);
  const int64_t row = cell / w * width;
  const int end = touch_end(j, width, w);
  A sum = 0;
  for (int x = touch_begin(j, width, w); x < end; ++x) {
    const A weight = tap_weight(bilinear_tap<A>(x, width, w), j);
    if (weight == 0) continue;
    const A raw = saved.raw != nullptr ? saved.raw[row + x] : A(0);
    sum += weight * raw_gradient(p.normalize, saved.grad[row + x], saved.out[row + x], raw, slope);
  }
  static_cast<A*>(q.reduced)[b * cells + cell] = A(1 - p.alpha) * sum;
}

// Vertical half, then the factors of the cosine's gradient; a thread per cell.
template <class A> __global__ void __launch_bounds__(kThreads, 4) target_cells_bwd_kernel(TargetBackwardParams q) {
  const TargetParams& p = q.forward;
  const int64_t pixels = p.h * p.w, index = blockIdx.x * int64_t(kThreads) + threadIdx.x, b = index / pixels;
  if (b >= p.batch) return;
  const int64_t cell = index - b * pixels;
  const int height = int(p.height), h = int(p.h), w = int(p.w), i = int(cell / w);
  const int end = touch_end(i, height, h);
  const A* reduced = static_cast<const A*>(q.reduced) + b * p.height * w + cell % w;
  A grad = 0;
  for (int y = touch_begin(i, height, h); y < end; ++y) {
    const A weight = tap_weight(bilinear_tap<A>(y, height, h), i);
    if (weight != 0) grad += weight * reduced[int64_t(y) * w];
  }
  const A* moments = static_cast<const A*>(p.moments) + b * 3 * pixels + cell;
  A* to = static_cast<A*>(q.coefficients) + b * 3 * pixels + cell;
  cosine_factors(grad, moments[0], moments[pixels], moments[2 * pixels], to, to + pixels, to + 2 * pixels);
}

constexpr int64_t kChannelSlab = 256;  // channels of one block

template <class T, class A> __global__ void __launch_bounds__(kThreads, 3) target_cosine_bwd_kernel(TargetBackwardParams q) {
  constexpr int N = kPack<T>;
  const TargetParams& p = q.forward;
  const int64_t slabs = ceil_div(p.channels, kChannelSlab), pixels = p.h * p.w;
  const FeatureTile tile = feature_tile<N>(p, blockIdx.x / slabs);
  const int64_t begin = blockIdx.x % slabs * kChannelSlab, end = min_of(p.channels, begin + kChannelSlab);
  const int64_t left = pixels - tile.first, start = tile.b * p.channels * pixels + tile.first;
  if (left <= 0) return;
  const T *f = static_cast<const T*>(p.reference_features) + start, *g = static_cast<const T*>(p.distorted_features) + start;
  T *grad_f = static_cast<T*>(q.grad_reference_features), *grad_g = static_cast<T*>(q.grad_distorted_features);
  const A* factors = static_cast<const A*>(q.coefficients) + tile.b * 3 * pixels + tile.first;
  const Pack<A, N> other = load_pack<N>(factors, left);
  const Pack<A, N> own_f = load_pack<N>(factors + pixels, left), own_g = load_pack<N>(factors + 2 * pixels, left);
  const bool all_whole = pixels % N == 0 && aligned<N>(f, g);
  for (int64_t c = begin + tile.group; c < end; c += tile.groups) {
    Pack<T, N> x, y;
    read_batch(all_whole, [&](auto whole) {
      x = load_pack<N>(f + c * pixels, left, whole), y = load_pack<N>(g + c * pixels, left, whole);
    });
    A results[N];
    if (grad_f != nullptr) {
#pragma unroll
      for (int k = 0; k < N; ++k) results[k] = other.at[k] * A(widen(y.at[k])) + own_f.at[k] * A(widen(x.at[k]));
      store_pack<N>(grad_f + start + c * pixels, left, results);
    }
    if (grad_g != nullptr) {
#pragma unroll
      for (int k = 0; k < N; ++k) results[k] = other.at[k] * A(widen(x.at[k])) + own_g.at[k] * A(widen(y.at[k]));
      store_pack<N>(grad_g + start + c * pixels, left, results);
    }
  }
}

template <class A> void feature_gradients(const TargetBackwardParams& q, const Stream& stream) {
  const TargetParams& p = q.forward;
  launch(stream, target_columns_bwd_kernel<A>, p.batch * ceil_div(p.height * p.w, kThreads), kThreads, 0, q);
  launch(stream, target_cells_bwd_kernel<A>, ceil_div(p.batch * p.h * p.w, kThreads), kThreads, 0, q);
  for_features<A>(p, [&](auto tag) {
    using F = typename decltype(tag)::type;
    const int64_t blocks = p.batch * feature_tiles<kPack<F>>(p) * ceil_div(p.channels, kChannelSlab);
    launch(stream, target_cosine_bwd_kernel<F, A>, blocks, kThreads, 0, q);
  });
}

// Images [first, first + count).
TargetBackwardParams slice_of(const TargetBackwardParams& q, int64_t first, int64_t count) {
  const TargetParams& p = q.forward;
  const int64_t pixels = p.height * p.width, cells = p.h * p.w, a = accumulator_bytes(p);
  const int64_t image = 3 * pixels * bytes_of(p.image_type), features = p.channels * cells * bytes_of(p.feature_type);
  TargetBackwardParams s = q;
  s.forward = slice_of(p, first, count);
  s.grad = advanced(q.grad, first * pixels * a);
  s.grad_reference = advanced(q.grad_reference, first * image), s.grad_distorted = advanced(q.grad_distorted, first * image);
  s.grad_reference_features = advanced(q.grad_reference_features, first * features);
  s.grad_distorted_features = advanced(q.grad_distorted_features, first * features);
  s.reduced = advanced(q.reduced, first * p.height * p.w * a);
  s.coefficients = advanced(q.coefficients, first * 3 * cells * a);
  return s;
}

template <class T, class A> void gradients(const TargetBackwardParams& q, const Stream& stream) {
  const int64_t blocks = chunk_blocks(q.forward);
  if (is_bounded(q.forward.normalize)) launch(stream, target_sums_bwd_kernel<A>, blocks, kThreads, 0, q);
  if constexpr (sizeof(T) > 1)  // uint8 images have no gradient
    if (q.grad_reference != nullptr || q.grad_distorted != nullptr)
      launch(stream, target_image_bwd_kernel<T, A>, blocks, kThreads, 0, q);
  if (q.reduced != nullptr) feature_gradients<A>(q, stream);
}

}  // namespace

void target_backward(const TargetBackwardParams& q, const Stream& stream) {
  const TargetParams& p = q.forward;
  check_sides(p);
  const auto run = [&](auto tag) {
    using T = typename decltype(tag)::type;
    for_slices(p, [&](int64_t first, int64_t count) { gradients<T, accum_t<T>>(slice_of(q, first, count), stream); });
  };
  if (p.image_type == DType::u8) run(Tag<uint8_t>{});
  else for_float(p.image_type, run);
}

}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
