// modulate forward: a block downsamples the map for its tile of cells, then passes over their tokens, once.
#include "../include/modulate.h"
#include "../math/gate.h"
#include "../math/resample.h"
#include "modulate_sides.cuh"
#include "primitives.cuh"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

// Cells [i0, i1) x [j0, j1) of image b; `index` numbers the tiles of an image.
struct Tile {
  int64_t b;
  int index, i0, i1, j0, j1;
  __device__ explicit Tile(const ModulateParams& p) {
    const int segments = int(modulate_segments(p.w)), band = int(modulate_band(p.h, p.w));
    const int tiles = int(modulate_splits(p.h, p.w));
    b = blockIdx.x / tiles, index = int(blockIdx.x % tiles);
    i0 = index / segments * band, i1 = min_of(int(p.h), i0 + band);
    j0 = index % segments * int(kModulateSegment), j1 = min_of(int(p.w), j0 + int(kModulateSegment));
  }
};

// Sum over a window of `rows` x `columns` by `lanes` threads; this one takes every lanes-th element in row-major order.
template <class A, class M> __device__ A window_sum(const M* row, int64_t width, int rows, int columns, int lane, int lanes) {
  const int count = rows * columns, down = lanes / columns, along = lanes % columns;
  int x = lane % columns;
  row += lane / columns * width;
  A sum = 0;
#pragma unroll 4
  for (int k = lane; k < count; k += lanes) {
    sum += A(widen(row[x]));
    x += along;
    row += (down + (x >= columns)) * width;
    x -= x >= columns ? columns : 0;
  }
  return sum;
}

template <class A, class M> __device__ A bilinear_cell(const M* image, const Sides& s, int i, int j) {
  const Tap<A, int> ty = bilinear_tap<A>(i, s.h, s.height), tx = bilinear_tap<A>(j, s.w, s.width);
  const M *upper = image + ty.lower * int64_t(s.width), *lower = image + ty.upper * int64_t(s.width);
  const A top = (1 - tx.frac) * A(widen(upper[tx.lower])) + tx.frac * A(widen(upper[tx.upper]));
  const A bottom = (1 - tx.frac) * A(widen(lower[tx.lower])) + tx.frac * A(widen(lower[tx.upper]));
  return (1 - ty.frac) * top + ty.frac * bottom;
}

// d of the tile's cells, to global memory.
template <class M, class A> __device__ void downsample(const ModulateParams& p, const Tile& tile) {
  const Sides s(p);
  const M* image = static_cast<const M*>(p.map) + tile.b * p.height * p.width;
  A* d = static_cast<A*>(p.d) + tile.b * p.h * p.w;
  const int cells = tile.j1 - tile.j0;
  const int lanes = cells > 16 ? 8 : (cells > 8 ? 16 : 32);  // per cell
  const int lane = int(threadIdx.x) % lanes, j = tile.j0 + int(threadIdx.x) / lanes;
  const bool mine = j < tile.j1;
  const int x0 = window_begin(j, s.w, s.width), columns = window_end(j, s.w, s.width) - x0;
  for (int i = tile.i0; i < tile.i1; ++i) {
    A value = 0;
    if (p.resample == Resample::area) {
      const int y0 = window_begin(i, s.h, s.height), rows = window_end(i, s.h, s.height) - y0;
      if (mine) value = window_sum<A>(image + y0 * p.width + x0, p.width, rows, columns, lane, lanes);
      value = team_reduce(value, lanes, Sum()) / A(rows * columns);
    } else if (mine && lane == 0) {
      value = bilinear_cell<A>(image, s, i, j);
    }
    if (mine && lane == 0) d[i * p.w + j] = value;
  }
}

template <class T, class M, class A> __global__ void __launch_bounds__(kThreads, 4) modulate_fwd_kernel(ModulateParams p) {
  constexpr int N = kPack<T>, kBatch = 4;  // loads on the way at once
  const Tile tile(p);
  downsample<M, A>(p, tile);
  __syncthreads();
  const T* features = static_cast<const T*>(p.features);
  T* out = static_cast<T*>(p.out);
  const int lanes = lanes_for(p.channels, N, kWarp), lane = int(threadIdx.x) % lanes, step = lanes * N;
  const bool all_whole = p.channels % N == 0 && aligned<N>(features);
  for (int i = tile.i0; i < tile.i1; ++i)
    for (int j = tile.j0 + int(threadIdx.x) / lanes; j < tile.j1; j += kThreads / lanes) {
      const int64_t token = (tile.b * p.h + i) * p.w + j, row = token * p.channels;
      const A weight = gate_weight(p.gate, static_cast<const A*>(p.d)[token]);
      const auto scale = [&](const Pack<T, N>& pack, int64_t c) {
        A values[N];
#pragma unroll
        for (int k = 0; k < N; ++k) values[k] = A(widen(pack.at[k])) * weight;
        store_pack<N>(out + row + c, p.channels - c, values);
      };
      if (!all_whole) {
        for (int64_t c = lane * N; c < p.channels; c += step) scale(load_pack<N>(features + row + c, p.channels - c), c);
        continue;
      }
      for (int64_t c = lane * N; c < p.channels; c += kBatch * step) {
        Pack<T, N> packs[kBatch];
#pragma unroll
        for (int u = 0; u < kBatch; ++u)
          if (c + u * step < p.channels) packs[u] = load_whole<N>(features + row + c + u * step);
#pragma unroll
        for (int u = 0; u < kBatch; ++u)
          if (c + u * step < p.channels) scale(packs[u], c + u * step);
      }
    }
}

// partial[b, tile, c] = Σ over the tile's tokens of weight · feature
template <class T, class M, class A>
__global__ void __launch_bounds__(kThreads, 3) modulate_pool_fwd_kernel(ModulateParams p) {
  constexpr int N = kPack<T>, kBatch = 4;
  FINPERCEP_SHARED(A, sums, N * kThreads);
  const Tile tile(p);
  downsample<M, A>(p, tile);
  __syncthreads();
  const T* features = static_cast<const T*>(p.features);
  A* partial = static_cast<A*>(p.partial) + (tile.b * modulate_splits(p.h, p.w) + tile.index) * p.channels;
  const int lanes = lanes_for(p.channels, N, kThreads), lane = int(threadIdx.x) % lanes, groups = kThreads / lanes;
  const int group = int(threadIdx.x) / lanes;
  const bool all_whole = p.channels % N == 0 && aligned<N>(features);
  for (int64_t first = 0; first < p.channels; first += lanes * N) {
    const int64_t c = first + lane * N, left = p.channels - c;
    A sum[N] = {};
    const auto weight_of = [&](int64_t token) { return gate_weight(p.gate, static_cast<const A*>(p.d)[token]); };
    const auto add = [&](const Pack<T, N>& pack, A weight) {
#pragma unroll
      for (int k = 0; k < N; ++k) sum[k] += A(widen(pack.at[k])) * weight;
    };
    for (int i = tile.i0; i < tile.i1 && left > 0; ++i) {
      const int64_t tokens = (tile.b * p.h + i) * p.w;  // of the row
      if (!all_whole) {
        for (int j = tile.j0 + group; j < tile.j1; j += groups)
          add(load_pack<N>(features + (tokens + j) * p.channels + c, left), weight_of(tokens + j));
        continue;
      }
      for (int j = tile.j0 + group; j < tile.j1; j += kBatch * groups) {
        Pack<T, N> packs[kBatch];
        A weights[kBatch];
#pragma unroll
        for (int u = 0; u < kBatch; ++u) {
          const int64_t token = tokens + j + u * groups;
          if (j + u * groups < tile.j1)
            packs[u] = load_whole<N>(features + token * p.channels + c), weights[u] = weight_of(token);
        }
#pragma unroll
        for (int u = 0; u < kBatch; ++u)
          if (j + u * groups < tile.j1) add(packs[u], weights[u]);
      }
    }
#pragma unroll
    for (int k = 0; k < N; ++k) sums[k * kThreads + threadIdx.x] = sum[k];
    __syncthreads();
    if (group == 0 && left > 0) {
      for (int g = 1; g < groups; ++g)
#pragma unroll
        for (int k = 0; k < N; ++k) sum[k] += sums[k * kThreads + g * lanes + lane];
      store_pack<N>(partial + c, left, sum);
    }
    __syncthreads();
  }
}

// out[b, c] = mean: a warp's width of channels, each by eight threads.
template <class T, class A> __global__ void __launch_bounds__(kThreads, 4) modulate_pool_finish_kernel(ModulateParams p) {
  FINPERCEP_SHARED(A, sums, kThreads);
  const int64_t slabs = ceil_div(p.channels, kWarp), b = blockIdx.x / slabs, splits = modulate_splits(p.h, p.w);
  const int64_t c = blockIdx.x % slabs * kWarp + threadIdx.x % kWarp;
  const A* partial = static_cast<const A*>(p.partial) + b * splits * p.channels + c;
  A sum = 0;
  if (c < p.channels)
#pragma unroll 4
    for (int64_t s = threadIdx.x / kWarp; s < splits; s += kThreads / kWarp) sum += partial[s * p.channels];
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x >= kWarp || c >= p.channels) return;
  for (int g = 1; g < kThreads / kWarp; ++g) sum += sums[g * kWarp + threadIdx.x];
  static_cast<T*>(p.out)[b * p.channels + c] = narrow<T>(sum / A(p.h * p.w));
}

}  // namespace

void modulate_forward(const ModulateParams& p, const Stream& stream) {
  check_sides(p);
  const int64_t tiles = p.batch * modulate_splits(p.h, p.w);
  for_float(p.feature_type, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accum_t<T>;
    const bool same = p.map_type == p.feature_type;  // else the binding made it the accumulation type
    const auto scale = same ? modulate_fwd_kernel<T, T, A> : modulate_fwd_kernel<T, A, A>;
    const auto pool = same ? modulate_pool_fwd_kernel<T, T, A> : modulate_pool_fwd_kernel<T, A, A>;
    launch(stream, p.pool ? pool : scale, tiles, kThreads, 0, p);
    if (!p.pool) return;
    launch(stream, modulate_pool_finish_kernel<T, A>, p.batch * ceil_div(p.channels, kWarp), kThreads, 0, p);
  });
}

}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
