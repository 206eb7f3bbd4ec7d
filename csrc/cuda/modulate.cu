// modulate forward: a block downsamples the map for a run of cells, then passes over their tokens, once. Pooled, a launch
// downsamples the whole map, and in a second one each block averages some channels over all tokens of an image.
#include "../include/modulate.h"
#include "../math/gate.h"
#include "../math/resample.h"
#include "modulate_sides.cuh"
#include "primitives.cuh"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

constexpr int kSegment = 32;   // the most cells of a block
constexpr int kSlab = 8;       // the most threads side by side when pooling, with a pack of channels each: 128 bytes
constexpr int kMapRows = 8;    // rows of the map that a thread reads at once where it reads nothing else
constexpr int kPoolBatch = 8;  // tokens that a thread reads at once when pooling

// Cells [j0, j1) in row i of the grid of image b; `token` is the first one's.
struct Tile {
  int64_t b, token;
  int i, j0, j1;
  __device__ Tile(const ModulateParams& p, const Sides& s) {
    const unsigned segments = unsigned(ceil_div(p.w, kSegment));
    const int row = int(blockIdx.x / segments), image = s.y.by_cells(row);
    b = image, i = row - image * s.y.cells;
    j0 = int(blockIdx.x % segments) * kSegment, j1 = min_of(s.x.cells, j0 + kSegment);
    token = int64_t(row) * s.x.cells + j0;
  }
};

// Mean of the map over the window of each cell. All rows of the windows are the same: threads sum them by columns, then a
// team of threads sums the columns of a cell.
template <int kRows, class M, class A> __device__ void area(const M* image, const Sides& s, const Tile& tile, A* cells) {
  constexpr int N = kPack<M> < 4 ? kPack<M> : 4, kColumns = N * kThreads;
  FINPERCEP_SHARED(A, columns, kColumns);
  const bool whole = s.x.size % N == 0 && aligned<N>(image);
  const int y0 = s.y.window_begin(tile.i), y1 = s.y.window_end(tile.i);
  // So many cells span at most kColumns columns; of one that is wider, columns share a sum.
  const int fit = s.x.cells < s.x.size ? max_of(1, min_of(kSegment, s.x.by_size((kColumns - N - 2) * s.x.cells))) : kSegment;
  for (int j = tile.j0; j < tile.j1; j += fit) {
    const int count = min_of(fit, tile.j1 - j);
    const int x0 = s.x.window_begin(j), x1 = s.x.window_end(j + count - 1), base = x0 / N * N;
    const Teams teams(x1 - base, N, kThreads);  // each takes a part of the rows
    const int width = teams.lanes * N, parts = teams.count();
    A sums[N] = {};
    for (int x = base + teams.lane() * N; x < x1; x += width) {
      A column[N] = {};
      const auto add = [&](const Pack<M, N>& pack) {
#pragma unroll
        for (int k = 0; k < N; ++k) column[k] += A(widen(pack.at[k]));
      };
      int y = y0 + teams.index();
      for (; whole && y < y1; y += kRows * parts) {
        Held<M, N> packs[kRows];
#pragma unroll
        for (int u = 0; u < kRows; ++u)
          if (y + u * parts < y1) packs[u].load(image + ((y + u * parts) * s.x.size + x));
#pragma unroll
        for (int u = 0; u < kRows; ++u)
          if (y + u * parts < y1) add(packs[u].pack());
      }
#pragma unroll 1
      for (; y < y1; y += parts) add(load_pack<N>(image + (y * s.x.size + x), s.x.size - x));
#pragma unroll
      for (int k = 0; k < N; ++k) sums[k] += x + k >= x0 && x + k < x1 ? column[k] : A(0);
    }
#pragma unroll
    for (int k = 0; k < N; ++k) columns[int(threadIdx.x) * N + k] = sums[k];
    __syncthreads();
    const Teams per_cell(count > 16 ? 8 : (count > 8 ? 16 : kWarp), 1, kWarp);
    const int lane = per_cell.lane(), cell = j + per_cell.index();
    const bool mine = cell < j + count;
    const int known = min_of(cell, s.x.cells - 1), left = s.x.window_begin(known), right = s.x.window_end(known);
    const int first = count == 1 ? 0 : left - base, last = count == 1 ? width : right - base;
    A sum = 0;
    for (int g = 0; mine && g < parts; ++g)
      for (int x = first + lane; x < last; x += per_cell.lanes) sum += columns[g * width + x];
    sum = team_reduce(sum, per_cell.lanes, Sum());
    if (mine && lane == 0) cells[cell - tile.j0] = sum / A((y1 - y0) * (right - left));
    __syncthreads();
  }
}

template <class A, class M> __device__ A bilinear_cell(const M* image, const Sides& s, int i, int j) {
  const Tap<A, int> ty = bilinear_tap<A>(i, s.y.cells, s.y.size), tx = bilinear_tap<A>(j, s.x.cells, s.x.size);
  const M *upper = image + ty.lower * int64_t(s.x.size), *lower = image + ty.upper * int64_t(s.x.size);
  const A top = (1 - tx.frac) * A(widen(upper[tx.lower])) + tx.frac * A(widen(upper[tx.upper]));
  const A bottom = (1 - tx.frac) * A(widen(lower[tx.lower])) + tx.frac * A(widen(lower[tx.upper]));
  return (1 - ty.frac) * top + ty.frac * bottom;
}

// d of the tile's cells, to shared and to global memory.
template <int kRows, class M, class A>
__device__ void downsample(const ModulateParams& p, const Sides& s, const Tile& tile, A* cells) {
  const M* image = static_cast<const M*>(p.map) + tile.b * p.height * p.width;
  const int j = tile.j0 + int(threadIdx.x);
  if (p.resample == Resample::area) {
    area<kRows>(image, s, tile, cells);
  } else {
    if (j < tile.j1) cells[threadIdx.x] = bilinear_cell<A>(image, s, tile.i, j);
    __syncthreads();
  }
  if (j < tile.j1) static_cast<A*>(p.d)[tile.token + threadIdx.x] = cells[threadIdx.x];
}

template <class T, class M, class A>
__global__ void __launch_bounds__(kThreads, 4) modulate_fwd_kernel(ModulateParams p, Sides s) {
  constexpr int N = kPack<T>, kBatch = 4;  // loads on the way at once
  FINPERCEP_SHARED(A, cells, kSegment);
  const Tile tile(p, s);
  const int64_t row = tile.token * p.channels;
  const T* features = static_cast<const T*>(p.features) + row;
  T* out = static_cast<T*>(p.out) + row;
  const int channels = int(p.channels), count = tile.j1 - tile.j0;
  const Teams teams(channels, N, kWarp);  // a token each
  const int first = teams.lane() * N, step = teams.lanes * N;
  const bool whole = channels % N == 0 && aligned<N>(features, out);
  int j = teams.index(), c = first;
  Held<T, N> packs[kBatch];
  const auto read = [&] {
    const T* from = features + int64_t(j) * channels + c;
#pragma unroll
    for (int u = 0; u < kBatch; ++u)
      if (c + u * step < channels) packs[u].load(from + u * step);
  };
  A weight, values[N];
  const auto scale = [&](const Pack<T, N>& pack) {
#pragma unroll
    for (int k = 0; k < N; ++k) values[k] = A(widen(pack.at[k])) * weight;
  };
  if (whole && j < count) read();  // the first features are on their way while the map is downsampled
  downsample<kBatch, M>(p, s, tile, cells);
  while (whole && j < count) {
    weight = gate_weight(p.gate, cells[j]);
    T* to = out + int64_t(j) * channels + c;
#pragma unroll
    for (int u = 0; u < kBatch; ++u)
      if (c + u * step < channels) scale(packs[u].pack()), store_whole<N>(to + u * step, values);
    c += kBatch * step;
    if (c >= channels) c = first, j += teams.count();
    if (j < count) read();
  }
  for (; j < count; j += teams.count()) {
    weight = gate_weight(p.gate, cells[j]);
    for (int at = c; at < channels; at += step) {
      const int64_t from = int64_t(j) * channels + at, left = channels - at;
      scale(load_pack<N>(features + from, left)), store_pack<N>(out + from, left, values);
    }
  }
}

template <class M, class A>
__global__ void __launch_bounds__(kThreads, 3) modulate_downsample_kernel(ModulateParams p, Sides s) {
  FINPERCEP_SHARED(A, cells, kSegment);
  downsample<kMapRows, M>(p, s, Tile(p, s), cells);
}

// out[b, c] = mean over all tokens of weight · feature; a block takes up to kSlab packs of channels.
template <class T, class A>
__global__ void __launch_bounds__(kThreads, sizeof(A) == sizeof(double) ? 2 : 3) modulate_pool_fwd_kernel(ModulateParams p) {
  constexpr int N = kPack<T>, kWidth = kSlab * N, kWarps = kThreads / kWarp;
  FINPERCEP_SHARED(A, sums, kWarps * kWidth);
  const int channels = int(p.channels), tokens = int(p.h * p.w);
  const Teams teams(channels, N, kSlab);  // each takes a part of the tokens
  const int width = teams.lanes * N, parts = teams.count();
  const unsigned slabs = unsigned(ceil_div(channels, width));
  const int64_t b = blockIdx.x / slabs;
  const int begin = int(blockIdx.x % slabs) * width, c = begin + teams.lane() * N, left = channels - c;
  const T* features = static_cast<const T*>(p.features) + b * tokens * channels + c;
  const A* d = static_cast<const A*>(p.d) + b * tokens;
  const bool whole = channels % N == 0 && aligned<N>(static_cast<const T*>(p.features));
  A sum[N] = {};
  const A zero = gate_weight(p.gate, A(0)), slope = gate_slope<A>(p.gate);  // one multiply-add, no branch for each weight
  const auto add = [&](const Pack<T, N>& pack, A at) {
    const A weight = multiply_add(slope, at, zero);
#pragma unroll
    for (int k = 0; k < N; ++k) sum[k] += A(widen(pack.at[k])) * weight;
  };
  int t = teams.index();
  for (; whole && left > 0 && t < tokens; t += kPoolBatch * parts) {
    Held<T, N> packs[kPoolBatch];
    A weights[kPoolBatch];
#pragma unroll
    for (int u = 0; u < kPoolBatch; ++u)
      if (t + u * parts < tokens)
        packs[u].load(features + int64_t(t + u * parts) * channels), weights[u] = d[t + u * parts];
#pragma unroll
    for (int u = 0; u < kPoolBatch; ++u)
      if (t + u * parts < tokens) add(packs[u].pack(), weights[u]);
  }
#pragma unroll 1
  for (; !whole && left > 0 && t < tokens; t += parts) add(load_pack<N>(features + int64_t(t) * channels, left), d[t]);
  for (int step = teams.lanes; step < kWarp; step *= 2)
#pragma unroll
    for (int k = 0; k < N; ++k) sum[k] += __shfl_xor_sync(kAllLanes, sum[k], step);
  if (int(threadIdx.x) % kWarp < teams.lanes)
#pragma unroll
    for (int k = 0; k < N; ++k) sums[int(threadIdx.x) / kWarp * kWidth + teams.lane() * N + k] = sum[k];
  __syncthreads();
  const int channel = begin + int(threadIdx.x);
  if (int(threadIdx.x) >= width || channel >= channels) return;
  A total = 0;
#pragma unroll
  for (int g = 0; g < kWarps; ++g) total += sums[g * kWidth + threadIdx.x];
  static_cast<T*>(p.out)[b * channels + channel] = narrow<T>(total / A(tokens));
}

}  // namespace

void modulate_forward(const ModulateParams& p, const Stream& stream) {
  check_sides(p);
  const Sides sides(p);
  const int64_t tiles = p.batch * p.h * ceil_div(p.w, kSegment);
  for_float(p.feature_type, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accum_t<T>;
    const bool same = p.map_type == p.feature_type;  // else the binding made it the accumulation type
    const auto scale = same ? modulate_fwd_kernel<T, T, A> : modulate_fwd_kernel<T, A, A>;
    const auto only_map = same ? modulate_downsample_kernel<T, A> : modulate_downsample_kernel<A, A>;
    launch(stream, p.pool ? only_map : scale, tiles, kThreads, 0, p, sides);
    if (!p.pool) return;
    const int64_t slab = lanes_for(p.channels, kPack<T>, kSlab) * kPack<T>;
    launch(stream, modulate_pool_fwd_kernel<T, A>, p.batch * ceil_div(p.channels, slab), kThreads, 0, p);
  });
}

}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
