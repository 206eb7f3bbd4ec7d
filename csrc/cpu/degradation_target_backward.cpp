// degradation_target backward: sums for the bounds, one pass over the images, then the features.
#include "../math/target_slope.h"
#include "target_cosine.h"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

// Σ grad and Σ grad·out over the pixels that are not clamped
template <class A, bool kClamp>
void bound_sums(const A* grad, const A* out, const A* raw, int64_t n, const Slope<A>& s, A* sum, A* product) {
  A sums[kLanes] = {}, products[kLanes] = {};
  const auto one = [&](int64_t i, int64_t k) {
    const A g = kClamp && !inside(raw[i], s) ? A(0) : grad[i];
    sums[k] += g;
    products[k] += g * out[i];
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int64_t k = 0; k < kLanes; ++k) one(i + k, k);
  for (; i < n; ++i) one(i, 0);
  *sum = fold(sums), *product = fold(products);
}

template <class A>
void raw_gradient(Normalize kind, const A* grad, const A* out, const A* raw, int64_t n, const Slope<A>& s, A* to) {
  switch (kind) {
    case Normalize::minmax:
      for (int64_t i = 0; i < n; ++i)
        to[i] = grad[i] * s.slope + (out[i] == 0 ? s.share_low : A(0)) + (out[i] == 1 ? s.share_high : A(0));
      return;
    case Normalize::percentile:
      for (int64_t i = 0; i < n; ++i)
        to[i] = (inside(raw[i], s) ? grad[i] * s.slope : A(0)) + (raw[i] == s.low ? s.share_low : A(0)) +
                (raw[i] == s.high ? s.share_high : A(0));
      return;
    case Normalize::scale:
      for (int64_t i = 0; i < n; ++i) to[i] = out[i] < 1 ? grad[i] * s.slope : A(0);
      return;
    default:
      for (int64_t i = 0; i < n; ++i) to[i] = grad[i];
  }
}

// Sums of one segment: Σ g and Σ g·frac
template <class A> inline void segment_sums(const A* g, const A* frac, int64_t n, A* total, A* upper) {
  constexpr int kParts = 8;
  A totals[kParts] = {}, uppers[kParts] = {};
  int64_t i = 0;
  for (; i + kParts <= n; i += kParts)
    for (int k = 0; k < kParts; ++k) totals[k] += g[i + k], uppers[k] += g[i + k] * frac[i + k];
  for (; i < n; ++i) totals[0] += g[i], uppers[0] += g[i] * frac[i];
  for (int step = kParts / 2; step > 0; step /= 2)
    for (int k = 0; k < step; ++k) totals[k] += totals[k + step], uppers[k] += uppers[k + step];
  *total = totals[0], *upper = uppers[0];
}

// Adjoint of the horizontal interpolation of one row. to: [w]
template <class A> void reduce_columns(const Columns<A>& columns, const A* grad, int64_t w, A weight, A* to) {
  for (int64_t j = 0; j < w; ++j) to[j] = 0;
  for (int64_t j = 0; j < w; ++j) {
    const int64_t begin = columns.begin.data[j], n = columns.begin.data[j + 1] - begin;
    if (n <= 0) continue;
    A total, upper;
    segment_sums(grad + begin, columns.frac.data + begin, n, &total, &upper);
    to[j] += weight * (total - upper);
    to[j + 1 < w ? j + 1 : j] += weight * upper;
  }
}

template <class T, class A> struct BackwardRows {
  const TargetBackwardParams& q;
  const TargetParams& p;
  const A *grad, *out, *raw, *bounds;
  A* rows;     // (B, H, 4)
  bool stream;
  bool features, images;  // which gradients are wanted

  Slope<A> slope(int64_t b) const { return slope_of(p, bounds + b * 4); }
  bool bounded() const { return is_bounded(p.normalize); }

  void sum(int64_t begin, int64_t end) const {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t at = row * p.width;
      const Slope<A> s = slope(row / p.height);
      A *total = rows + row * 4, *product = total + 1;
      if (p.normalize == Normalize::percentile)
        bound_sums<A, true>(grad + at, out + at, raw + at, p.width, s, total, product);
      else
        bound_sums<A, false>(grad + at, out + at, nullptr, p.width, s, total, product);
    }
  }
  Slope<A> finish(int64_t b) const {
    Slope<A> s = slope(b);
    if (!bounded()) return s;
    A total = 0, product = 0;
    for (int64_t row = b * p.height; row < (b + 1) * p.height; ++row) total += rows[row * 4], product += rows[row * 4 + 1];
    share_bounds(p, bounds + b * 4, total, product, &s);
    return s;
  }
  void make(int64_t begin, int64_t end, const Slope<A>& s) const {
    Scratch<A> row_gradient(p.width);
    const Columns<A> columns(features ? p.width : 0, features ? p.w : 0);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t at = row * p.width;
      raw_gradient(p.normalize, grad + at, out + at, raw == nullptr ? nullptr : raw + at, p.width, s, row_gradient.data);
      if constexpr (sizeof(T) > 1)  // uint8 images have no gradient
        if (images) image_row(row, row_gradient.data);
      if (features)
        reduce_columns(columns, row_gradient.data, p.w, A(1 - p.alpha), static_cast<A*>(q.reduced) + row * p.w);
    }
  }
  void image_row(int64_t row, const A* raw_grad) const {
    const int64_t plane = p.height * p.width, first = row / p.height * 3 * plane + row % p.height * p.width;
    const T *f = static_cast<const T*>(p.reference), *g = static_cast<const T*>(p.distorted);
    T *grad_f = static_cast<T*>(q.grad_reference), *grad_g = static_cast<T*>(q.grad_distorted);
    const A weight = (p.channels > 0 ? A(p.alpha) : A(1)) / A(3);
    A f_buffer[kBlock], g_buffer[kBlock], f_result[kBlock], g_result[kBlock];
    for (int64_t x = 0; x < p.width; x += kBlock) {
      const int64_t n = min_of(kBlock, p.width - x);
      for (int k = 0; k < 3; ++k) {
        const int64_t at = first + k * plane + x;
        const A *a = load_block(f + at, f_buffer, n), *c = load_block(g + at, g_buffer, n);
        for (int64_t i = 0; i < n; ++i) {
          const A difference = a[i] - c[i], value = weight * raw_grad[x + i];
          f_result[i] = difference > 0 ? value : (difference < 0 ? -value : A(0));
        }
        if (grad_g != nullptr) {
          for (int64_t i = 0; i < n; ++i) g_result[i] = -f_result[i];
          store_block(grad_g + at, g_result, n, stream);
        }
        if (grad_f != nullptr) store_block(grad_f + at, f_result, n, stream);
      }
    }
  }
};

// Vertical half of the adjoint, then the factors of the cosine's gradient, per low-resolution row.
template <class A> void distance_gradient(const TargetBackwardParams& q, const Parallel& pool) {
  const TargetParams& p = q.forward;
  const A *reduced = static_cast<const A*>(q.reduced), *moments = static_cast<const A*>(p.moments);
  A* coefficients = static_cast<A*>(q.coefficients);
  const int64_t pixels = p.h * p.w;
  parallel_for(pool, p.batch * p.h, grain_of(2 * p.height / p.h * p.w), [&](int64_t begin, int64_t end) {
    Scratch<A> grad(p.w);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t b = row / p.h, i = row % p.h;
      for (int64_t j = 0; j < p.w; ++j) grad.data[j] = 0;
      for (int64_t y = touch_begin(i, p.height, p.h); y < touch_end(i, p.height, p.h); ++y) {
        const Tap<A> tap = bilinear_tap<A>(y, p.height, p.h);
        const A weight = tap_weight(tap, i);
        if (weight == 0) continue;
        const A* from = reduced + (b * p.height + y) * p.w;
        for (int64_t j = 0; j < p.w; ++j) grad.data[j] += weight * from[j];
      }
      const int64_t at = b * 3 * pixels + i * p.w;
      const A *dot = moments + at, *ff = dot + pixels, *gg = ff + pixels;
      A *other = coefficients + at, *own_f = other + pixels, *own_g = own_f + pixels;
      for (int64_t j = 0; j < p.w; ++j)
        cosine_factors(grad.data[j], dot[j], ff[j], gg[j], other + j, own_f + j, own_g + j);
    }
  });
}

template <class T, class A> void image_gradients(const TargetBackwardParams& q, const Parallel& pool) {
  const TargetParams& p = q.forward;
  const bool features = q.reduced != nullptr, images = q.grad_reference != nullptr || q.grad_distorted != nullptr;
  const int64_t pixels = p.height * p.width, grain = grain_of(4 * p.width);
  const BackwardRows<T, A> rows{
      q, p, static_cast<const A*>(q.grad), static_cast<const A*>(p.out), static_cast<const A*>(p.raw),
      static_cast<const A*>(p.bounds), static_cast<A*>(p.scratch),
      p.batch * 3 * pixels * int64_t(sizeof(T)) >= kStreamBytes, features, images};
  // Whole images per thread where there are enough, so that gradient and map are still cached for the second look.
  if (pixels <= (256 << 10) && p.batch >= pool.threads && (p.batch % pool.threads == 0 || p.batch >= 4 * pool.threads)) {
    return parallel_for(pool, p.batch, grain_of(4 * pixels), [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        if (rows.bounded()) rows.sum(b * p.height, (b + 1) * p.height);
        rows.make(b * p.height, (b + 1) * p.height, rows.finish(b));
      }
    });
  }
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t first = b * p.height;
    if (rows.bounded()) parallel_for(pool, p.height, grain, [&](int64_t a, int64_t z) { rows.sum(first + a, first + z); });
    const Slope<A> s = rows.finish(b);
    parallel_for(pool, p.height, grain, [&](int64_t a, int64_t z) { rows.make(first + a, first + z, s); });
  }
}

}  // namespace

void target_backward(const TargetBackwardParams& q, const Parallel& pool) {
  const TargetParams& p = q.forward;
  const auto run = [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accum_t<T>;
    image_gradients<T, A>(q, pool);
    if (q.reduced == nullptr) return;
    distance_gradient<A>(q, pool);
    for_features<A>(p, [&](auto features) { cosine_backward<typename decltype(features)::type, A>(q, pool); });
  };
  if (p.image_type == DType::u8) run(Tag<uint8_t>{});  // only the features have a gradient
  else for_float(p.image_type, run);
}

}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
