// modulate backward: one pass over grad and features for both gradients, then the adjoint of the downsampling.
#include "../include/modulate.h"

#include "../math/gate.h"
#include "../math/resample.h"
#include "vec.h"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

// Σ a·b of two streams, both asked for a page ahead.
template <class A> A dot_ahead(const A* a, const A* b, int64_t n) {
  constexpr int kLine = 64 / int(sizeof(A));
  A lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int k = 0; k < kLanes; k += kLine) prefetch_ahead(a + i + k), prefetch_ahead(b + i + k);
    for (int k = 0; k < kLanes; ++k) lanes[k] += a[i + k] * b[i + k];
  }
  for (; i < n; ++i) lanes[i % kLanes] += a[i] * b[i];
  return fold(lanes);
}

template <class T, class A> void token_gradients(const ModulateBackwardParams& p, const Parallel& pool) {
  const ModulateParams& q = p.forward;
  const int64_t tokens = q.h * q.w, channels = q.channels, rows = q.batch * tokens;
  const T *grad = static_cast<const T*>(p.grad), *features = static_cast<const T*>(q.features);
  const A* d = static_cast<const A*>(q.d);
  T* grad_features = static_cast<T*>(p.grad_features);
  A* grad_d = static_cast<A*>(p.grad_d);
  const A share = q.pool ? A(1) / A(tokens) : A(1), slope = gate_slope<A>(q.gate) * share;
  const bool stream = rows * channels * int64_t(sizeof(T)) >= kStreamBytes;
  parallel_for(pool, rows, grain_of(channels), [&](int64_t begin, int64_t end) {
    A grad_buffer[kBlock], feature_buffer[kBlock], result[kBlock];
    for (int64_t n = begin; n < end; ++n) {
      const A weight = gate_weight(q.gate, d[n]) * share;
      A sum = 0;
      for (int64_t c = 0; c < channels; c += kBlock) {
        const int64_t m = min_of(kBlock, channels - c), at = n * channels + c;
        const A* g = load_block(grad + (q.pool ? n / tokens * channels + c : at), grad_buffer, m);
        if (grad_d != nullptr) sum += dot_ahead(g, load_block(features + at, feature_buffer, m), m);
        if (grad_features == nullptr) continue;
        A* to = out_block(grad_features + at, result, stream);
        for (int64_t k = 0; k < m; ++k) to[k] = g[k] * weight;
        store_block(grad_features + at, to, m, stream);
      }
      if (grad_d != nullptr) grad_d[n] = sum * slope;
    }
  });
}

// cells[j]: gradient of the cells above row y, already divided by their areas; then spread over their columns.
template <class A> void area_adjoint_row(const ModulateParams& p, const A* grad_d, int64_t y, A* cells, A* row) {
  for (int64_t j = 0; j < p.w; ++j) cells[j] = 0;
  for (int64_t i = cover_begin(y, p.h, p.height); i < cover_end(y, p.h, p.height); ++i) {
    const A share = A(1) / A(window_end(i, p.h, p.height) - window_begin(i, p.h, p.height));
    for (int64_t j = 0; j < p.w; ++j) cells[j] += grad_d[i * p.w + j] * share;
  }
  for (int64_t x = 0; x < p.width; ++x) row[x] = 0;
  for (int64_t j = 0; j < p.w; ++j) {
    const int64_t begin = window_begin(j, p.w, p.width), end = window_end(j, p.w, p.width);
    const A value = cells[j] / A(end - begin);
    for (int64_t x = begin; x < end; ++x) row[x] += value;
  }
}

template <class A> void bilinear_adjoint_row(const ModulateParams& p, const A* grad_d, int64_t y, A* cells, A* row) {
  for (int64_t j = 0; j < p.w; ++j) cells[j] = 0;
  for (int64_t i = touch_begin(y, p.h, p.height); i < touch_end(y, p.h, p.height); ++i) {
    const Tap<A> tap = bilinear_tap<A>(i, p.h, p.height);
    const A weight = tap_weight(tap, y);
    if (weight == 0) continue;
    for (int64_t j = 0; j < p.w; ++j) cells[j] += grad_d[i * p.w + j] * weight;
  }
  for (int64_t x = 0; x < p.width; ++x) row[x] = 0;
  for (int64_t j = 0; j < p.w; ++j) {
    const Tap<A> tap = bilinear_tap<A>(j, p.w, p.width);
    row[tap.lower] += cells[j] * (1 - tap.frac);
    row[tap.upper] += cells[j] * tap.frac;
  }
}

template <class T, class A> void map_gradient(const ModulateBackwardParams& p, const Parallel& pool) {
  const ModulateParams& q = p.forward;
  T* grad_map = static_cast<T*>(p.grad_map);
  const A* grad_d = static_cast<const A*>(p.grad_d);
  const bool stream = q.batch * q.height * q.width * int64_t(sizeof(T)) >= kStreamBytes;
  parallel_for(pool, q.batch * q.height, grain_of(q.width), [&](int64_t begin, int64_t end) {
    Scratch<A> cells(q.w), row(q.width);
    for (int64_t n = begin; n < end; ++n) {
      const A* image = grad_d + (n / q.height) * q.h * q.w;
      if (q.resample == Resample::area) area_adjoint_row(q, image, n % q.height, cells.data, row.data);
      else bilinear_adjoint_row(q, image, n % q.height, cells.data, row.data);
      store_block(grad_map + n * q.width, row.data, q.width, stream);
    }
  });
}

}  // namespace

void modulate_backward(const ModulateBackwardParams& p, const Parallel& pool) {
  for_float(p.forward.feature_type, [&](auto feature_tag) {
    using T = typename decltype(feature_tag)::type;
    using A = accum_t<T>;
    token_gradients<T, A>(p, pool);
    if (p.grad_map == nullptr) return;
    for_float(p.forward.map_type, [&](auto tag) { map_gradient<typename decltype(tag)::type, A>(p, pool); });
  });
}

}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
