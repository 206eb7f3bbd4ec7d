// degradation_target forward. The images are read once; bounds are found while writing the raw map, and the one-channel
// map is rescaled in place while it is still in the cache. Compiled once per SIMD level.
#include "target_cosine.h"
#include "target_select.h"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

template <class A> struct RowRange {
  A low, high;
};

// Combined horizontal interpolation of the low-resolution row: values[j], and steps[j] to its right neighbour.
template <class A> void blend_low_row(const TargetParams& p, int64_t b, int64_t y, A* values, A* steps) {
  const Tap<A> tap = bilinear_tap<A>(y, p.height, p.h);
  const A* upper = static_cast<const A*>(p.distance) + (b * p.h + tap.lower) * p.w;
  const A* lower = static_cast<const A*>(p.distance) + (b * p.h + tap.upper) * p.w;
  const A weight = A(1 - p.alpha);
  for (int64_t j = 0; j < p.w; ++j) values[j] = weight * ((1 - tap.frac) * upper[j] + tap.frac * lower[j]);
  for (int64_t j = 0; j + 1 < p.w; ++j) steps[j] = values[j + 1] - values[j];
  steps[p.w - 1] = 0;
}

// Upsampled feature distance of one row: a straight line between neighbours, so no gathers.
template <class A>
__attribute__((noinline)) void interpolate_row(const Columns<A>& columns, int64_t w, const A* values, const A* steps,
                                               A* __restrict to) {
  const A* frac = columns.frac.data;
  for (int64_t j = 0; j < w; ++j) {
    const A value = values[j], step = steps[j];
    const int64_t end = columns.begin.data[j + 1];
    for (int64_t x = columns.begin.data[j]; x < end; ++x) to[x] = value + frac[x] * step;
  }
}

// weight · Σ_c |f_c - g_c| + base over n pixels; base may be null. Not inlined: GCC does not vectorise it in its callers.
template <class A>
__attribute__((noinline)) void pixel_block(const A* const* f, const A* const* g, const A* base, A weight, int64_t n,
                                           A* __restrict to) {
  const A *f0 = f[0], *f1 = f[1], *f2 = f[2], *g0 = g[0], *g1 = g[1], *g2 = g[2];
  const auto pixel = [&](int64_t i) {
    return weight * (magnitude(f0[i] - g0[i]) + magnitude(f1[i] - g1[i]) + magnitude(f2[i] - g2[i]));
  };
  if (base == nullptr)
    for (int64_t i = 0; i < n; ++i) to[i] = pixel(i);
  else
    for (int64_t i = 0; i < n; ++i) to[i] = pixel(i) + base[i];
}

// raw[x] of one image row; base: its feature part, or null.
template <class T, class A> void raw_row(const TargetParams& p, const A* base, int64_t row, A* raw) {
  const int64_t plane = p.height * p.width, b = row / p.height, y = row % p.height;
  const T* f = static_cast<const T*>(p.reference) + b * 3 * plane + y * p.width;
  const T* g = static_cast<const T*>(p.distorted) + b * 3 * plane + y * p.width;
  const A unit = p.image_type == DType::u8 ? A(1.0 / 255) : A(1);
  const A weight = (p.channels > 0 ? A(p.alpha) : A(1)) * unit / A(3);
  A buffers[6][kBlock];
  for (int64_t x = 0; x < p.width; x += kBlock) {
    const int64_t n = min_of(kBlock, p.width - x);
    const A *fs[3], *gs[3];
    for (int k = 0; k < 3; ++k) {
      fs[k] = load_block(f + k * plane + x, buffers[k], n);
      gs[k] = load_block(g + k * plane + x, buffers[3 + k], n);
    }
    pixel_block(fs, gs, base == nullptr ? nullptr : base + x, weight, n, raw + x);
  }
}

// Smallest and largest; NaN if there is one, as amin and amax give.
template <class A> RowRange<A> range_of(const A* values, int64_t n) {
  A low[kLanes], high[kLanes], poison[kLanes];
  for (int k = 0; k < kLanes; ++k) low[k] = high[k] = values[0], poison[k] = 0;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int k = 0; k < kLanes; ++k) {
      const A v = values[i + k];
      low[k] = v < low[k] ? v : low[k];
      high[k] = v > high[k] ? v : high[k];
      poison[k] += v != v ? A(1) : A(0);
    }
  for (; i < n; ++i) {
    const A v = values[i];
    low[0] = min_of(low[0], v), high[0] = max_of(high[0], v), poison[0] += v != v ? A(1) : A(0);
  }
  A bad = 0;
  for (int k = 0; k < kLanes; ++k) {
    low[0] = min_of(low[0], low[k]), high[0] = max_of(high[0], high[k]), bad += poison[k];
  }
  const A nan = bad > 0 ? A(__builtin_nan("")) : A(0);
  return {low[0] + nan, high[0] + nan};
}

template <class A> void scale_row(A* values, int64_t n, A scale) {
  for (int64_t i = 0; i < n; ++i) values[i] = values[i] >= scale ? A(1) : values[i] / scale;
}

// out = (raw - low) / divisor, clamped for percentile; counts the pixels that share the gradient of the bounds.
template <class A, bool kClamp>
void rescale_row(const A* raw, A* out, int64_t n, A low, A high, A divisor, A* ties_low, A* ties_high) {
  A lows[kLanes] = {}, highs[kLanes] = {};
  const auto one = [&](int64_t i, int64_t k) {
    const A v = raw[i];
    A q = (v - low) / divisor;
    if (kClamp) q = q < 0 ? A(0) : (q > 1 ? A(1) : q);
    out[i] = q;
    lows[k] += (kClamp ? v == low : q == 0) ? A(1) : A(0);
    highs[k] += (kClamp ? v == high : q == 1) ? A(1) : A(0);
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int64_t k = 0; k < kLanes; ++k) one(i + k, k);
  for (; i < n; ++i) one(i, 0);
  *ties_low = fold(lows), *ties_high = fold(highs);
}

template <class T, class A> struct Rows {
  const TargetParams& p;
  A* out;
  A* raw;   // == out unless percentile
  A* rows;  // (B, H, 4)
  A* bounds;

  void make(int64_t begin, int64_t end) const {
    const bool features = p.channels > 0;
    Scratch<A> values(features ? p.w : 0), steps(features ? p.w : 0), base(features ? p.width : 0);
    const Columns<A> columns(features ? p.width : 0, features ? p.w : 0);
    for (int64_t row = begin; row < end; ++row) {
      A* to = raw + row * p.width;
      if (features) {
        blend_low_row(p, row / p.height, row % p.height, values.data, steps.data);
        interpolate_row(columns, p.w, values.data, steps.data, base.data);
      }
      raw_row<T, A>(p, features ? base.data : nullptr, row, to);
      if (p.normalize == Normalize::scale) scale_row(to, p.width, A(p.scale));
      if (p.normalize != Normalize::minmax) continue;
      const RowRange<A> range = range_of(to, p.width);
      rows[row * 4] = range.low, rows[row * 4 + 1] = range.high;
    }
  }
  void bound(int64_t b) const {
    A low, high;
    if (p.normalize == Normalize::percentile) {
      const int64_t pixels = p.height * p.width;
      low = select_rank(raw + b * pixels, pixels, p.rank_low);
      high = select_rank(raw + b * pixels, pixels, p.rank_high);
    } else {
      const A* r = rows + b * p.height * 4;
      low = r[0], high = r[1];
      for (int64_t y = 1; y < p.height; ++y) {  // comparisons written so that NaN stays
        const A l = r[4 * y], h = r[4 * y + 1];
        low = l < low || l != l ? l : low;
        high = h > high || h != h ? h : high;
      }
    }
    bounds[b * 4] = low, bounds[b * 4 + 1] = high;
  }
  void rescale(int64_t begin, int64_t end) const {
    for (int64_t row = begin; row < end; ++row) {
      const A low = bounds[row / p.height * 4], high = bounds[row / p.height * 4 + 1], range = high - low;
      const A divisor = range < A(p.floor) ? A(p.floor) : range;
      const int64_t at = row * p.width;
      A* ties = rows + row * 4 + 2;
      if (p.normalize == Normalize::percentile)
        rescale_row<A, true>(raw + at, out + at, p.width, low, high, divisor, ties, ties + 1);
      else
        rescale_row<A, false>(raw + at, out + at, p.width, low, high, divisor, ties, ties + 1);
    }
  }
  void count(int64_t b) const {
    A low = 0, high = 0;
    for (int64_t row = b * p.height; row < (b + 1) * p.height; ++row) low += rows[row * 4 + 2], high += rows[row * 4 + 3];
    bounds[b * 4 + 2] = low, bounds[b * 4 + 3] = high;
  }
};

template <class T, class A> void target(const TargetParams& p, const Parallel& pool) {
  A *out = static_cast<A*>(p.out), *raw = p.raw != nullptr ? static_cast<A*>(p.raw) : out;
  const Rows<T, A> rows{p, out, raw, static_cast<A*>(p.scratch), static_cast<A*>(p.bounds)};
  const int64_t pixels = p.height * p.width, grain = grain_of(4 * p.width);
  const bool bounded = p.normalize == Normalize::minmax || p.normalize == Normalize::percentile;
  if (!bounded) {
    for (int64_t i = 0; i < p.batch * 4; ++i) rows.bounds[i] = 0;
    return parallel_for(pool, p.batch * p.height, grain, [&](int64_t a, int64_t z) { rows.make(a, z); });
  }
  // One image at a time, by one thread or by all: either way its raw map is still cached when it is rescaled.
  if (pixels <= (256 << 10) && p.batch >= pool.threads && (p.batch % pool.threads == 0 || p.batch >= 4 * pool.threads)) {
    return parallel_for(pool, p.batch, grain_of(4 * pixels), [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        rows.make(b * p.height, (b + 1) * p.height);
        rows.bound(b);
        rows.rescale(b * p.height, (b + 1) * p.height);
        rows.count(b);
      }
    });
  }
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t first = b * p.height;
    parallel_for(pool, p.height, grain, [&](int64_t a, int64_t z) { rows.make(first + a, first + z); });
    rows.bound(b);
    parallel_for(pool, p.height, grain, [&](int64_t a, int64_t z) { rows.rescale(first + a, first + z); });
    rows.count(b);
  }
}

}  // namespace

void target_forward(const TargetParams& p, const Parallel& pool) {
  const auto run = [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accum_t<T>;
    for_features<A>(p, [&](auto features) { cosine_forward<typename decltype(features)::type, A>(p, pool); });
    target<T, A>(p, pool);
  };
  if (p.image_type == DType::u8) run(Tag<uint8_t>{});
  else for_float(p.image_type, run);
}

}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
