// Filtering each sample with its own kernel: direct, kRows x kColumns vectors of results in registers. Compiled once per
// SIMD level.
#include "../include/degrade.h"

#include "vec.h"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

using V = vec<float>;
constexpr int kLanes32 = lanes_of<float>;
constexpr int kRows = 4;
#if defined(__AVX512F__)
constexpr int kColumns = 4;
#else
constexpr int kColumns = 2;
#endif

// Weights of less are left out: they sum up to 441 · 1e-8 at most, and subnormal numbers are slow.
constexpr float kLeast = 1e-8f;

// The part of a kernel that counts: `side` rows and columns, with kRows - 1 rows of zeros before and after. In row i of
// the image, counted from where the first result's kernel begins, columns [from[i], to[i]) count for one of kRows results.
struct Weights {
  const float* data;
  const int64_t *from, *to;
  int64_t side;
};

// kRows x (columns vectors) results; `in` is where the kernel of the first one begins.
template <int kWide>
__attribute__((noinline)) void filter_block(const float* in, int64_t stride, Weights w, float* out, int64_t out_stride) {
  V sum[kRows][kWide] = {};
  for (int64_t i = 0; i < w.side + kRows - 1; ++i) {
    const float* row = in + i * stride;
    const float* weight = w.data + (i + kRows - 1) * w.side;
    for (int64_t x = w.from[i]; x < w.to[i]; ++x) {
      V pixels[kWide];
      for (int j = 0; j < kWide; ++j) pixels[j] = load_vec<V>(row + x + j * kLanes32);
      for (int r = 0; r < kRows; ++r)
        for (int j = 0; j < kWide; ++j) sum[r][j] += weight[x - r * w.side] * pixels[j];
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int j = 0; j < kWide; ++j) store_vec(out + r * out_stride + j * kLanes32, sum[r][j]);
}

void filter_few(const float* in, int64_t stride, Weights w, float* out, int64_t out_stride, int64_t rows, int64_t columns) {
  const float* kernel = w.data + (kRows - 1) * w.side;
  for (int64_t y = 0; y < rows; ++y)
    for (int64_t x = 0; x < columns; ++x) {
      float sum = 0;
      for (int64_t i = 0; i < w.side; ++i)
        for (int64_t j = 0; j < w.side; ++j) sum += kernel[i * w.side + j] * in[(y + i) * stride + x + j];
      out[y * out_stride + x] = sum;
    }
}

// The last block of a row or column overlaps the one before: what both compute is the same.
template <int kWide> void filter_rows(const float* in, int64_t stride, Weights w, float* out, int64_t width) {
  constexpr int64_t kStep = kWide * kLanes32;
  for (int64_t x = 0; x < width; x += kStep) {
    const int64_t at = min_of(x, width - kStep);
    filter_block<kWide>(in + at, stride, w, out + at, width);
  }
}

void filter_plane(const float* in, int64_t stride, Weights w, float* out, int64_t height, int64_t width) {
  if (height < kRows || width < kLanes32) return filter_few(in, stride, w, out, width, height, width);
  for (int64_t y = 0; y < height; y += kRows) {
    const int64_t at = min_of(y, height - kRows);
    const float* from = in + at * stride;
    float* to = out + at * width;
    width < kColumns * kLanes32 ? filter_rows<1>(from, stride, w, to, width)
                                : filter_rows<kColumns>(from, stride, w, to, width);
  }
}

// Brings a kernel (side,side) into the form above; `data`, `from` and `to` have room for the whole of it.
Weights trim(const float* kernel, int64_t side, float* data, int64_t* from, int64_t* to) {
  const int64_t center = side / 2;
  int64_t reach = 0;
  for (int64_t y = -center; y <= center; ++y)
    for (int64_t x = -center; x <= center; ++x) {
      const float weight = kernel[(y + center) * side + x + center];
      if (weight > kLeast || weight < -kLeast) reach = max_of(reach, max_of(max_of(y, -y), max_of(x, -x)));
    }
  const int64_t kept = 2 * reach + 1, rows = kept + 2 * (kRows - 1);
  for (int64_t k = 0; k < rows * kept; ++k) data[k] = 0;
  for (int64_t i = 0; i < kept + kRows - 1; ++i) from[i] = kept, to[i] = 0;
  for (int64_t y = 0; y < kept; ++y)
    for (int64_t x = 0; x < kept; ++x) {
      const float weight = kernel[(y + center - reach) * side + x + center - reach];
      if (!(weight > kLeast || weight < -kLeast)) continue;
      data[(y + kRows - 1) * kept + x] = weight;
      for (int64_t i = y; i < y + kRows; ++i) from[i] = min_of(from[i], x), to[i] = max_of(to[i], x + 1);
    }
  return {data, from, to, kept};
}

}  // namespace

void degrade_filter(const FilterParams& p, const Parallel& pool) {
  const int64_t stride = p.width + p.side - 1, plane = (p.height + p.side - 1) * stride;
  parallel_for(pool, p.batch * p.channels, 1, [&](int64_t begin, int64_t end) {
    const int64_t rows = p.side + 2 * (kRows - 1);
    Scratch<float> data(rows * p.side);
    Scratch<int64_t> ranges(2 * rows);
    for (int64_t i = begin; i < end; ++i) {
      const float* kernel = p.kernels + i / p.channels * p.side * p.side;
      const Weights w = trim(kernel, p.side, data.data, ranges.data, ranges.data + rows);
      const int64_t skip = (p.side - w.side) / 2;
      filter_plane(p.padded + i * plane + skip * (stride + 1), stride, w, p.out + i * p.height * p.width, p.height, p.width);
    }
  });
}

}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
