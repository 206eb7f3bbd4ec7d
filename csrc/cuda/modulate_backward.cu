// modulate backward: one pass over grad and features for both gradients, then each map pixel gathers from its cells.
#include "../include/modulate.h"
#include "../math/gate.h"
#include "../math/resample.h"
#include "modulate_sides.cuh"
#include "primitives.cuh"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

constexpr int kTokens = 2;     // that a warp passes over, one after the other
constexpr int kMostRows = 32;  // of the map's gradient, by one thread

// grad_features = grad · weight, grad_d = slope · Σ_c grad · feature; a warp, or less of one, per token.
template <class T, class A>
__global__ void __launch_bounds__(kThreads, 3) modulate_bwd_kernel(ModulateBackwardParams p, Divider by_tokens) {
  constexpr int N = kPack<T>, kBatch = 4;  // loads on the way at once, of each of two tensors
  const ModulateParams& q = p.forward;
  const int channels = int(q.channels), tokens = int(q.h * q.w), all = int(q.batch) * tokens;
  const Teams teams(channels, N, kWarp);
  const int first = teams.lane() * N, step = teams.lanes * N;
  const A* d = static_cast<const A*>(q.d);
  const bool need_features = p.grad_features != nullptr, need_d = p.grad_d != nullptr;
  const A share = q.pool ? A(1) / A(tokens) : A(1), slope = gate_slope<A>(q.gate) * share;
  const A zero = gate_weight(q.gate, A(0)) * share;  // the weight where d is 0
  const bool whole = channels % N == 0 && aligned<N>(static_cast<const T*>(q.features), static_cast<const T*>(p.grad),
                                                     static_cast<const T*>(p.grad_features));
  A sum, result[N];
  const auto pass = [&](const Pack<T, N>& upstream, const Pack<T, N>& values, A weight) {
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const A g = A(widen(upstream.at[k]));
      result[k] = g * weight;
      sum += g * A(widen(values.at[k]));
    }
  };
#pragma unroll 1
  for (int n = 0; n < kTokens; ++n) {
    const int token = (int(blockIdx.x) * kTokens + n) * teams.count() + teams.index();
    const bool mine = token < all;  // no early return: all lanes take part in the sum
    const int64_t row = int64_t(token) * channels;
    const T* grad = static_cast<const T*>(p.grad) + (q.pool ? int64_t(by_tokens(token)) * channels : row);
    T* grad_features = static_cast<T*>(p.grad_features) + row;
    // Not wanted: grad once more. Loads behind a branch would come after the others; one that is on its way costs nothing.
    const T* features = need_d ? static_cast<const T*>(q.features) + row : grad;
    sum = 0;
    int c = first;
    for (; mine && whole && c < channels; c += kBatch * step) {
      Held<T, N> grads[kBatch], values[kBatch];
      const A at = d[token];  // here and not above: the other loads need not wait for it
#pragma unroll
      for (int u = 0; u < kBatch; ++u)
        if (c + u * step < channels) grads[u].load(grad + c + u * step), values[u].load(features + c + u * step);
      const A weight = multiply_add(slope, at, zero);
#pragma unroll
      for (int u = 0; u < kBatch; ++u)
        if (c + u * step < channels) {
          pass(grads[u].pack(), values[u].pack(), weight);
          if (need_features) store_whole<N>(grad_features + c + u * step, result);
        }
    }
#pragma unroll 1
    for (; mine && c < channels; c += step) {
      const int64_t left = channels - c;
      pass(load_pack<N>(grad + c, left), load_pack<N>(features + c, left), multiply_add(slope, d[token], zero));
      if (need_features) store_pack<N>(grad_features + c, left, result);
    }
    if (!need_d) continue;
    sum = team_reduce(sum, teams.lanes, Sum());
    if (mine && teams.lane() == 0) static_cast<A*>(p.grad_d)[token] = sum * slope;
  }
}

// The cells [first, last) along a side whose windows contain a pixel, and the pixels [it, until) that have the same.
struct Cover {
  int first, last, until;
  __device__ Cover(const Side& s, int pixel) : first(s.cover_begin(pixel)), last(s.cover_end(pixel)) {
    until = s.window_end(first);  // the first cell leaves, or the next one enters
    if (last < s.cells) until = min_of(until, s.window_begin(last));
  }
};

// Gradient of the pixels x..x+N of a row that these rows of cells cover: constant between the windows' edges.
template <class A, int N>
__device__ void area_gradient(const Sides& s, const A* grad_d, const Cover& rows, int x, A (&values)[N]) {
  const int end = min_of(s.x.size, x + N);
  for (int at = x; at < end;) {
    const Cover columns(s.x, at);
    A value = 0;
    for (int i = rows.first; i < rows.last; ++i) {
      A sum = 0;
      for (int j = columns.first; j < columns.last; ++j)
        sum += grad_d[i * int64_t(s.x.cells) + j] / A(s.x.window_end(j) - s.x.window_begin(j));
      value += sum / A(s.y.window_end(i) - s.y.window_begin(i));
    }
#pragma unroll
    for (int k = 0; k < N; ++k)
      if (x + k >= at && x + k < columns.until) values[k] = value;
    at = columns.until;
  }
}

template <class A, int N> __device__ void bilinear_gradient(const Sides& s, const A* grad_d, int y, int x, A (&values)[N]) {
  const int begin = touch_begin(x, s.x.cells, s.x.size), end = touch_end(min_of(s.x.size, x + N) - 1, s.x.cells, s.x.size);
  for (int i = touch_begin(y, s.y.cells, s.y.size); i < touch_end(y, s.y.cells, s.y.size); ++i) {
    const A down = tap_weight(bilinear_tap<A>(i, s.y.cells, s.y.size), y);
    if (down == 0) continue;
    for (int j = begin; j < end; ++j) {
      const Tap<A, int> tap = bilinear_tap<A>(j, s.x.cells, s.x.size);
      const A value = down * grad_d[i * int64_t(s.x.cells) + j];
#pragma unroll
      for (int k = 0; k < N; ++k) values[k] += value * tap_weight(tap, x + k);
    }
  }
}

// Into how many groups the rows of an image fall: those of a cell, mostly, which have the same gradients, or fewer.
__host__ __device__ inline int row_groups(const ModulateParams& p) {
  return int(max_of(min_of(p.h, p.height), ceil_div(p.height, kMostRows)));
}

// A thread computes the gradients of a pack of pixels once for all rows of the group that have the same.
template <class M, class A>
__global__ void __launch_bounds__(kThreads, sizeof(A) == sizeof(double) ? 2 : 3)
    modulate_map_bwd_kernel(ModulateBackwardParams p, Sides s) {
  constexpr int N = kPack<M>;
  const ModulateParams& q = p.forward;
  const Teams teams(s.x.size, N, kThreads);
  const int groups = row_groups(q);
  const int64_t index = int64_t(blockIdx.x) * teams.count() + teams.index(), b = index / groups;
  if (b >= q.batch) return;
  const int group = int(index - b * groups);
  const int y0 = int(window_begin<int64_t>(group, groups, s.y.size));
  const int y1 = int(window_begin<int64_t>(group + 1, groups, s.y.size));
  const A* grad_d = static_cast<const A*>(p.grad_d) + b * q.h * q.w;
  M* grad_map = static_cast<M*>(p.grad_map) + b * q.height * q.width;
  for (int x = teams.lane() * N; x < s.x.size; x += teams.lanes * N)
    for (int y = y0, same = y0; y < y1; y = same) {  // rows [y, same) have the same gradients
      A values[N] = {};
      if (q.resample == Resample::area) {
        const Cover rows(s.y, y);
        area_gradient(s, grad_d, rows, x, values);
        same = min_of(y1, rows.until);
      } else {
        bilinear_gradient(s, grad_d, y, x, values);
        same = y + 1;
      }
      for (int i = y; i < same; ++i) store_pack<N>(grad_map + int64_t(i) * s.x.size + x, s.x.size - x, values);
    }
}

}  // namespace

void modulate_backward(const ModulateBackwardParams& p, const Stream& stream) {
  const ModulateParams& q = p.forward;
  check_sides(q);
  const Sides sides(q);
  for_float(q.feature_type, [&](auto feature_tag) {
    using T = typename decltype(feature_tag)::type;
    using A = accum_t<T>;
    const int tokens = kTokens * (kThreads / lanes_for(q.channels, kPack<T>, kWarp));  // of a block
    launch(stream, modulate_bwd_kernel<T, A>, ceil_div(q.batch * q.h * q.w, tokens), kThreads, 0, p, Divider(q.h * q.w));
    if (p.grad_map == nullptr) return;
    for_float(q.map_type, [&](auto map_tag) {
      using M = typename decltype(map_tag)::type;
      const int teams = kThreads / lanes_for(q.width, kPack<M>, kThreads);  // of a block, a group of rows each
      launch(stream, modulate_map_bwd_kernel<M, A>, ceil_div(q.batch * row_groups(q), teams), kThreads, 0, p, sides);
    });
  });
}

}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
