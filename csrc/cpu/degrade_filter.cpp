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

// The part of a kernel that is not 0: `side` rows and columns, with kRows - 1 rows of zeros before and after.
struct Weights {
  const float* data;
  int64_t side;
};

// kRows x (columns vectors) results; `in` is where the kernel of the first one begins.
template <int kWide>
__attribute__((noinline)) void filter_block(const float* in, int64_t stride, Weights w, float* out, int64_t out_stride) {
  V sum[kRows][kWide] = {};
  for (int64_t i = 0; i < w.side + kRows - 1; ++i) {
    const float* row = in + i * stride;
    const float* weight = w.data + (i + kRows - 1) * w.side;
    for (int64_t x = 0; x < w.side; ++x) {
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

}  // namespace

void degrade_filter(const FilterParams& p, const Parallel& pool) {
  const int64_t stride = p.width + p.side - 1, plane = (p.height + p.side - 1) * stride;
  parallel_for(pool, p.batch * p.channels, 1, [&](int64_t begin, int64_t end) {
    Scratch<float> padded((p.side + 2 * (kRows - 1)) * p.side);
    for (int64_t i = begin; i < end; ++i) {
      const float* kernel = p.kernels + i / p.channels * p.side * p.side;
      int64_t reach = 0;
      for (int64_t k = 0; k < p.side * p.side; ++k)
        if (kernel[k] != 0) {
          const int64_t dy = k / p.side - p.side / 2, dx = k % p.side - p.side / 2;
          reach = max_of(reach, max_of(dy < 0 ? -dy : dy, dx < 0 ? -dx : dx));
        }
      const int64_t side = 2 * reach + 1, skip = p.side / 2 - reach;
      for (int64_t k = 0; k < (side + 2 * (kRows - 1)) * side; ++k) padded.data[k] = 0;
      for (int64_t y = 0; y < side; ++y)
        for (int64_t x = 0; x < side; ++x)
          padded.data[(y + kRows - 1) * side + x] = kernel[(y + skip) * p.side + x + skip];
      filter_plane(p.padded + i * plane + skip * (stride + 1), stride, Weights{padded.data, side},
                   p.out + i * p.height * p.width, p.height, p.width);
    }
  });
}

}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
