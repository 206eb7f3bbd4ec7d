// modulate forward: downsample the map, then one pass over the features. Compiled once per SIMD level.
#include "../include/modulate.h"

#include "../math/gate.h"
#include "../math/resample.h"
#include "vec.h"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

// One row of cells by area: columns of the window's rows are summed in L1 first, then split over the cells. d: [w]
template <class T, class A>
void area_row(const T* map, const ModulateParams& p, int64_t i, A* d) {
  const int64_t y0 = window_begin(i, p.h, p.height), y1 = window_end(i, p.h, p.height);
  A columns[kBlock], buffer[kBlock];
  for (int64_t j = 0; j < p.w; ++j) d[j] = 0;
  int64_t first = 0;  // first cell that reaches into the chunk
  for (int64_t x0 = 0; x0 < p.width; x0 += kBlock) {
    const int64_t n = min_of(kBlock, p.width - x0);
    for (int64_t x = 0; x < n; ++x) columns[x] = 0;
    for (int64_t y = y0; y < y1; ++y) {
      const A* row = load_block(map + y * p.width + x0, buffer, n);
      for (int64_t x = 0; x < n; ++x) columns[x] += row[x];
    }
    for (int64_t j = first; j < p.w; ++j) {
      const int64_t begin = window_begin(j, p.w, p.width), end = window_end(j, p.w, p.width);
      if (begin >= x0 + n) break;
      if (end <= x0) { first = j + 1; continue; }
      A sum = 0;
      for (int64_t x = max_of(begin, x0); x < min_of(end, x0 + n); ++x) sum += columns[x - x0];
      d[j] += sum;
    }
  }
  for (int64_t j = 0; j < p.w; ++j) {
    const int64_t count = (y1 - y0) * (window_end(j, p.w, p.width) - window_begin(j, p.w, p.width));
    d[j] /= A(count);
  }
}

template <class T, class A>
void bilinear_row(const T* map, const ModulateParams& p, int64_t i, A* d) {
  const Tap<A> ty = bilinear_tap<A>(i, p.h, p.height);
  const T *upper = map + ty.lower * p.width, *lower = map + ty.upper * p.width;
  for (int64_t j = 0; j < p.w; ++j) {
    const Tap<A> tx = bilinear_tap<A>(j, p.w, p.width);
    const A top = (1 - tx.frac) * A(widen(upper[tx.lower])) + tx.frac * A(widen(upper[tx.upper]));
    const A bottom = (1 - tx.frac) * A(widen(lower[tx.lower])) + tx.frac * A(widen(lower[tx.upper]));
    d[j] = (1 - ty.frac) * top + ty.frac * bottom;
  }
}

template <class T, class A> void downsample(const ModulateParams& p, const Parallel& pool) {
  const T* map = static_cast<const T*>(p.map);
  A* d = static_cast<A*>(p.d);
  parallel_for(pool, p.batch * p.h, grain_of(p.height * p.width / p.h), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* image = map + (row / p.h) * p.height * p.width;
      if (p.resample == Resample::area) area_row(image, p, row % p.h, d + row * p.w);
      else bilinear_row(image, p, row % p.h, d + row * p.w);
    }
  });
}

template <class T, class A> void scale_tokens(const ModulateParams& p, const Parallel& pool) {
  const T* features = static_cast<const T*>(p.features);
  T* out = static_cast<T*>(p.out);
  const A* d = static_cast<const A*>(p.d);
  const int64_t tokens = p.batch * p.h * p.w, channels = p.channels;
  const bool stream = tokens * channels * int64_t(sizeof(T)) >= kStreamBytes;
  parallel_for(pool, tokens, grain_of(channels), [&](int64_t begin, int64_t end) {
    A buffer[kBlock], result[kBlock];
    for (int64_t n = begin; n < end; ++n) {
      const A weight = gate_weight(p.gate, d[n]);
      for (int64_t c = 0; c < channels; c += kBlock) {
        const int64_t m = min_of(kBlock, channels - c);
        const A* f = load_block(features + n * channels + c, buffer, m);
        A* to = out_block(out + n * channels + c, result, stream);
        if (f != buffer)  // else load_block has asked for what follows
          for (int64_t k = 0; k < m; k += 64 / int64_t(sizeof(A))) prefetch_ahead<1280>(f + k);
        for (int64_t k = 0; k < m; ++k) to[k] = f[k] * weight;
        store_block(out + n * channels + c, to, m, stream);
      }
    }
  });
}

// sum[c] += Σ_n weight(n) · f[n, c] over `count` tokens, four at a time: fewer trips of the sums through L1. A token is
// about a page, where the hardware's prefetcher stops, so the next four are asked for here.
template <class T, class A>
void pool_tokens(const T* features, const A* d, Gate gate, int64_t count, int64_t stride, int64_t m, A* sum) {
  constexpr int kLanes = lanes_of<A>;
  A b0[kBlock], b1[kBlock], b2[kBlock], b3[kBlock];
  int64_t n = 0;
  for (; n + 4 <= count; n += 4) {
    const A w0 = gate_weight(gate, d[n]), w1 = gate_weight(gate, d[n + 1]);
    const A w2 = gate_weight(gate, d[n + 2]), w3 = gate_weight(gate, d[n + 3]);
    const T* next = features + (n + 4) * stride;
    const A* f0 = load_block(features + n * stride, b0, m);
    const A* f1 = load_block(features + (n + 1) * stride, b1, m);
    const A* f2 = load_block(features + (n + 2) * stride, b2, m);
    const A* f3 = load_block(features + (n + 3) * stride, b3, m);
    int64_t c = 0;
    for (; c + kLanes <= m; c += kLanes) {
      prefetch_line(next + c), prefetch_line(next + stride + c);
      prefetch_line(next + 2 * stride + c), prefetch_line(next + 3 * stride + c);
      store_vec(sum + c, load_vec<vec<A>>(sum + c) + ((w0 * load_vec<vec<A>>(f0 + c) + w1 * load_vec<vec<A>>(f1 + c)) +
                                                      (w2 * load_vec<vec<A>>(f2 + c) + w3 * load_vec<vec<A>>(f3 + c))));
    }
    for (; c < m; ++c) sum[c] += (w0 * f0[c] + w1 * f1[c]) + (w2 * f2[c] + w3 * f3[c]);
  }
  for (; n < count; ++n) {
    const A w0 = gate_weight(gate, d[n]);
    const A* f0 = load_block(features + n * stride, b0, m);
    for (int64_t c = 0; c < m; ++c) sum[c] += w0 * f0[c];
  }
}

template <class T, class A> void mean_tokens(const ModulateParams& p, const Parallel& pool) {
  const T* features = static_cast<const T*>(p.features);
  const A* d = static_cast<const A*>(p.d);
  A* partial = static_cast<A*>(p.partial);
  const int64_t tokens = p.h * p.w, channels = p.channels, splits = modulate_splits(p.h, p.w);
  parallel_for(pool, p.batch * splits, grain_of(kModulateSplit * channels), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / splits, first = (task % splits) * kModulateSplit;
      const int64_t count = min_of(kModulateSplit, tokens - first), row = b * tokens + first;
      for (int64_t c = 0; c < channels; c += kBlock) {
        const int64_t m = min_of(kBlock, channels - c);
        A sum[kBlock] = {};
        pool_tokens(features + row * channels + c, d + row, p.gate, count, channels, m, sum);
        store_block(partial + task * channels + c, sum, m, false);
      }
    }
  });
  T* out = static_cast<T*>(p.out);
  parallel_for(pool, p.batch, grain_of(splits * channels), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      for (int64_t c = 0; c < channels; ++c) {
        A sum = 0;
        for (int64_t s = 0; s < splits; ++s) sum += partial[(b * splits + s) * channels + c];
        narrow(sum / A(tokens), out + b * channels + c);
      }
  });
}

}  // namespace

void modulate_forward(const ModulateParams& p, const Parallel& pool) {
  for_float(p.feature_type, [&](auto feature_tag) {
    using T = typename decltype(feature_tag)::type;
    using A = accum_t<T>;
    for_float(p.map_type, [&](auto map_tag) { downsample<typename decltype(map_tag)::type, A>(p, pool); });
    if (p.pool) mean_tokens<T, A>(p, pool);
    else scale_tokens<T, A>(p, pool);
  });
}

}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
