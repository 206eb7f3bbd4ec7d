// modulate backward: one pass over grad and features for both gradients, then each map pixel gathers from its cells.
#include "../include/modulate.h"
#include "../math/gate.h"
#include "../math/resample.h"
#include "modulate_sides.cuh"
#include "primitives.cuh"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

// grad_features = grad · weight, grad_d = slope · Σ_c grad · feature; a warp, or less of one, per token.
template <class T, class A> __global__ void __launch_bounds__(kThreads, 4) modulate_bwd_kernel(ModulateBackwardParams p) {
  constexpr int N = kPack<T>, kBatch = 2;
  const ModulateParams& q = p.forward;
  const int64_t tokens = q.h * q.w;
  const int lanes = lanes_for(q.channels, N, kWarp), lane = int(threadIdx.x) % lanes, step = lanes * N;
  const int64_t token = blockIdx.x * int64_t(kThreads / lanes) + threadIdx.x / lanes, row = token * q.channels;
  const bool mine = token < q.batch * tokens;  // no early return: all lanes take part in the sum
  const T* grad = static_cast<const T*>(p.grad) + (q.pool ? token / tokens * q.channels : row);
  T* grad_features = static_cast<T*>(p.grad_features) + row;
  const A share = q.pool ? A(1) / A(tokens) : A(1);
  const A weight = mine ? gate_weight(q.gate, static_cast<const A*>(q.d)[token]) * share : A(0);
  const bool need_features = p.grad_features != nullptr, need_d = p.grad_d != nullptr;
  // Not wanted: grad once more. Loads behind a branch would come after the others, one of what is on its way costs nothing.
  const T* features = need_d ? static_cast<const T*>(q.features) + row : grad;
  const bool all_whole = q.channels % N == 0 && aligned<N>(static_cast<const T*>(q.features), static_cast<const T*>(p.grad));
  A sum = 0;
  const auto pass = [&](const Pack<T, N>& upstream, const Pack<T, N>& values, int64_t c) {
    A result[N];
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const A g = A(widen(upstream.at[k]));
      result[k] = g * weight;
      sum += g * A(widen(values.at[k]));
    }
    if (need_features) store_pack<N>(grad_features + c, q.channels - c, result);
  };
  for (int64_t c = lane * N; mine && !all_whole && c < q.channels; c += step)
    pass(load_pack<N>(grad + c, q.channels - c), load_pack<N>(features + c, q.channels - c), c);
  for (int64_t c = lane * N; mine && all_whole && c < q.channels; c += kBatch * step) {
    Pack<T, N> grads[kBatch], values[kBatch];
#pragma unroll
    for (int u = 0; u < kBatch; ++u)
      if (c + u * step < q.channels)
        grads[u] = load_whole<N>(grad + c + u * step), values[u] = load_whole<N>(features + c + u * step);
#pragma unroll
    for (int u = 0; u < kBatch; ++u)
      if (c + u * step < q.channels) pass(grads[u], values[u], c + u * step);
  }
  if (!need_d) return;
  sum = team_reduce(sum, lanes, Sum());
  if (mine && lane == 0) static_cast<A*>(p.grad_d)[token] = sum * gate_slope<A>(q.gate) * share;
}

// Gradient of the pixels (y, x..x+N) from the cells whose windows cover them: constant between the windows' edges.
template <class A, int N> __device__ void area_gradient(const Sides& s, const A* grad_d, int y, int x, A (&values)[N]) {
  const int top = cover_begin(y, s.h, s.height), bottom = cover_end(y, s.h, s.height), end = min_of(s.width, x + N);
  for (int at = x; at < end;) {
    const int first = cover_begin(at, s.w, s.width), last = cover_end(at, s.w, s.width);
    A value = 0;
    for (int i = top; i < bottom; ++i) {
      A sum = 0;
      for (int j = first; j < last; ++j)
        sum += grad_d[i * int64_t(s.w) + j] / A(window_end(j, s.w, s.width) - window_begin(j, s.w, s.width));
      value += sum / A(window_end(i, s.h, s.height) - window_begin(i, s.h, s.height));
    }
    const int leaves = window_end(first, s.w, s.width);  // its first cell does, at this pixel; the next one enters:
    const int until = last < s.w ? min_of(leaves, window_begin(last, s.w, s.width)) : leaves;
#pragma unroll
    for (int k = 0; k < N; ++k)
      if (x + k >= at && x + k < until) values[k] = value;
    at = until;
  }
}

template <class A, int N> __device__ void bilinear_gradient(const Sides& s, const A* grad_d, int y, int x, A (&values)[N]) {
  const int begin = touch_begin(x, s.w, s.width), end = touch_end(min_of(s.width, x + N) - 1, s.w, s.width);
  for (int i = touch_begin(y, s.h, s.height); i < touch_end(y, s.h, s.height); ++i) {
    const A down = tap_weight(bilinear_tap<A>(i, s.h, s.height), y);
    if (down == 0) continue;
    for (int j = begin; j < end; ++j) {
      const Tap<A, int> tap = bilinear_tap<A>(j, s.w, s.width);
      const A value = down * grad_d[i * int64_t(s.w) + j];
#pragma unroll
      for (int k = 0; k < N; ++k) values[k] += value * tap_weight(tap, x + k);
    }
  }
}

template <class M, class A>
__global__ void __launch_bounds__(kThreads, sizeof(A) == sizeof(double) ? 2 : 3) modulate_map_bwd_kernel(ModulateBackwardParams p) {
  constexpr int N = kPack<M>;
  const ModulateParams& q = p.forward;
  const Sides s(q);
  const int64_t packs = ceil_div(q.width, N), index = blockIdx.x * int64_t(kThreads) + threadIdx.x, row = index / packs;
  if (row >= q.batch * q.height) return;
  const int x = int(index - row * packs) * N;
  const int64_t b = row / q.height;
  const int y = int(row - b * q.height);
  const A* grad_d = static_cast<const A*>(p.grad_d) + b * q.h * q.w;
  A values[N] = {};
  if (q.resample == Resample::area) area_gradient(s, grad_d, y, x, values);
  else bilinear_gradient(s, grad_d, y, x, values);
  store_pack<N>(static_cast<M*>(p.grad_map) + row * q.width + x, q.width - x, values);
}

}  // namespace

void modulate_backward(const ModulateBackwardParams& p, const Stream& stream) {
  const ModulateParams& q = p.forward;
  check_sides(q);
  for_float(q.feature_type, [&](auto feature_tag) {
    using T = typename decltype(feature_tag)::type;
    using A = accum_t<T>;
    const int tokens = kThreads / lanes_for(q.channels, kPack<T>, kWarp);  // of a block
    launch(stream, modulate_bwd_kernel<T, A>, ceil_div(q.batch * q.h * q.w, tokens), kThreads, 0, p);
    if (p.grad_map == nullptr) return;
    for_float(q.map_type, [&](auto map_tag) {
      using M = typename decltype(map_tag)::type;
      const int64_t packs = q.batch * q.height * ceil_div(q.width, kPack<M>);
      launch(stream, modulate_map_bwd_kernel<M, A>, ceil_div(packs, kThreads), kThreads, 0, p);
    });
  });
}

}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
