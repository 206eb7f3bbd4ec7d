// JPEG round trips, 4:2:0, sixteen rows at a time; finpercep/data/diff_jpeg.py is the definition. Compiled once per SIMD
// level.
#include "../include/degrade.h"

#include "vec.h"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

using V = Vector<float, 32>::type;  // one row of a block

// The orthonormal 8-point DCT-II: row u, column x.
alignas(32) constexpr float kCosines[8][8] = {
    {0.353553391f, 0.353553391f, 0.353553391f, 0.353553391f, 0.353553391f, 0.353553391f, 0.353553391f, 0.353553391f},
    {0.490392640f, 0.415734806f, 0.277785117f, 0.097545161f, -0.097545161f, -0.277785117f, -0.415734806f, -0.490392640f},
    {0.461939766f, 0.191341716f, -0.191341716f, -0.461939766f, -0.461939766f, -0.191341716f, 0.191341716f, 0.461939766f},
    {0.415734806f, -0.097545161f, -0.490392640f, -0.277785117f, 0.277785117f, 0.490392640f, 0.097545161f, -0.415734806f},
    {0.353553391f, -0.353553391f, -0.353553391f, 0.353553391f, 0.353553391f, -0.353553391f, -0.353553391f, 0.353553391f},
    {0.277785117f, -0.490392640f, 0.097545161f, 0.415734806f, -0.415734806f, -0.097545161f, 0.490392640f, -0.277785117f},
    {0.191341716f, -0.461939766f, 0.461939766f, -0.191341716f, -0.191341716f, 0.461939766f, -0.461939766f, 0.191341716f},
    {0.097545161f, -0.277785117f, 0.415734806f, -0.490392640f, 0.490392640f, -0.415734806f, 0.277785117f, -0.097545161f},
};
struct Transposed {
  alignas(32) float at[8][8];
  constexpr Transposed() : at() {
    for (int u = 0; u < 8; ++u)
      for (int x = 0; x < 8; ++x) at[x][u] = kCosines[u][x];
  }
};
constexpr Transposed kTransposed{};

template <class X> inline X nearest(X x) { return (x + 0x1.8p23f) - 0x1.8p23f; }  // halves to even; |x| < 2^22
inline float within(float x, float high) { return x < 0 ? 0 : x > high ? high : x; }

// out = left · in · right, all 8 x 8.
inline void transform(const float (*left)[8], const float* in, const float (*right)[8], float* out) {
  float rows[64];
  for (int u = 0; u < 8; ++u) {
    V sum{};
    for (int y = 0; y < 8; ++y) sum += left[u][y] * load_vec<V>(in + 8 * y);
    store_vec(rows + 8 * u, sum);
  }
  for (int u = 0; u < 8; ++u) {
    V sum{};
    for (int x = 0; x < 8; ++x) sum += rows[8 * u + x] * load_vec<V>(right[x]);
    store_vec(out + 8 * u, sum);
  }
}

// Eight rows of a plane: cosine transform, quantization, and back to whole levels in [0, 255].
__attribute__((noinline)) void blocks_round_trip(float* plane, int64_t width, const float* table) {
  float block[64], frequencies[64];
  for (int64_t x = 0; x < width; x += 8) {
    for (int y = 0; y < 8; ++y) store_vec(block + 8 * y, load_vec<V>(plane + y * width + x) - 128.0f);
    transform(kCosines, block, kTransposed.at, frequencies);
    for (int u = 0; u < 64; u += 8) {
      const V step = load_vec<V>(table + u);
      store_vec(frequencies + u, nearest(load_vec<V>(frequencies + u) / step) * step);
    }
    transform(kTransposed.at, frequencies, kCosines, block);
    for (int y = 0; y < 8; ++y)
      for (int k = 0; k < 8; ++k) plane[y * width + x + k] = within(nearest(block[8 * y + k] + 128), 255);
  }
}

// One row of a sample to Y, Cb, Cr, the last pixel repeated up to `width`.
void to_ycc(const JpegParams& p, const float* image, int64_t y, int64_t width, float* luma, float* blue, float* red) {
  const float* r = image + min_of(y, p.rows - 1) * p.columns;
  const float *g = r + p.rows * p.columns, *b = g + p.rows * p.columns;
  for (int64_t x = 0; x < p.columns; ++x) {
    const float red8 = nearest(within(r[x], 1) * 255), green8 = nearest(within(g[x], 1) * 255),
                blue8 = nearest(within(b[x], 1) * 255);
    luma[x] = nearest(0.299f * red8 + 0.587f * green8 + 0.114f * blue8);
    blue[x] = nearest(-0.168735892f * red8 - 0.331264108f * green8 + 0.5f * blue8 + 128);
    red[x] = nearest(0.5f * red8 - 0.418687589f * green8 - 0.081312411f * blue8 + 128);
  }
  float* rows[] = {luma, blue, red};
  for (float* row : rows)
    for (int64_t x = p.columns; x < width; ++x) row[x] = row[p.columns - 1];
}

// Means of 2 x 2, halves rounded down and up in turn along the row.
void downsample(const float* above, const float* below, int64_t width, float* to) {
  for (int64_t x = 0; x < width / 2; ++x) {
    const float mean = 0.25f * (above[2 * x] + above[2 * x + 1] + below[2 * x] + below[2 * x + 1]);
    to[x] = nearest(mean + (x % 2 ? 0.125f : -0.125f));
  }
}

// One row of a chroma plane (height,width) at twice the size, minus 128: 9/16, 3/16, 3/16, 1/16 of its four nearest.
void upsample(const float* plane, int64_t height, int64_t width, int64_t row, float* mixed, float* to) {
  const int64_t at = row / 2, other = min_of(max_of(row % 2 ? at + 1 : at - 1, int64_t(0)), height - 1);
  const float *near = plane + at * width, *far = plane + other * width;
  for (int64_t x = 0; x < width; ++x) mixed[x + 1] = 0.75f * near[x] + 0.25f * far[x];
  mixed[0] = mixed[1], mixed[width + 1] = mixed[width];
  for (int64_t x = 0; x < width; ++x) {
    const float mine = 0.75f * mixed[x + 1] - 128;
    to[2 * x] = nearest(mine + 0.25f * mixed[x] + 0x1p-5f);
    to[2 * x + 1] = nearest(mine + 0.25f * mixed[x + 2] - 0x1p-5f);
  }
}

void to_rgb(const float* luma, const float* blue, const float* red, int64_t n, int64_t plane, float* out) {
  for (int64_t x = 0; x < n; ++x) {
    out[x] = within(nearest(luma[x] + 1.402f * red[x]), 255) / 255;
    out[plane + x] = within(nearest(luma[x] - 0.344136286f * blue[x] - 0.714136286f * red[x]), 255) / 255;
    out[2 * plane + x] = within(nearest(luma[x] + 1.772f * blue[x]), 255) / 255;
  }
}

void jpeg_sample(const JpegParams& p, int64_t i, float* scratch) {
  const int64_t height = (p.rows + 15) / 16 * 16, width = (p.columns + 15) / 16 * 16, plane = p.rows * p.columns;
  const float* image = p.images + 3 * i * plane;
  float* out = p.out + 3 * i * plane;
  float* luma = scratch;                                   // (height,width)
  float* small[2] = {luma + height * width, luma + height * width * 5 / 4};  // (height/2,width/2)
  float* chroma = luma + height * width * 3 / 2;           // (2 rows,2 planes,width), and a row of upsampling
  for (int64_t top = 0; top < height; top += 16) {
    for (int64_t y = top; y < top + 16; y += 2) {
      for (int64_t k = 0; k < 2; ++k)
        to_ycc(p, image, y + k, width, luma + (y + k) * width, chroma + 2 * k * width, chroma + (2 * k + 1) * width);
      for (int64_t c = 0; c < 2; ++c)
        downsample(chroma + c * width, chroma + (2 + c) * width, width, small[c] + y / 2 * (width / 2));
    }
    for (int64_t y = top; y < top + 16; y += 8) blocks_round_trip(luma + y * width, width, p.luma + 64 * i);
    for (float* half : small) blocks_round_trip(half + top / 2 * (width / 2), width / 2, p.chroma + 64 * i);
  }
  for (int64_t y = 0; y < p.rows; ++y) {
    for (int64_t c = 0; c < 2; ++c) upsample(small[c], height / 2, width / 2, y, chroma + 2 * width, chroma + c * width);
    to_rgb(luma + y * width, chroma, chroma + width, p.columns, plane, out + y * p.columns);
  }
}

}  // namespace

void degrade_jpeg(const JpegParams& p, const Parallel& pool) {
  const int64_t height = (p.rows + 15) / 16 * 16, width = (p.columns + 15) / 16 * 16;
  parallel_for(pool, p.batch, 1, [&](int64_t begin, int64_t end) {
    Scratch<float> scratch(height * width * 3 / 2 + 4 * width);
    for (int64_t i = begin; i < end; ++i) jpeg_sample(p, i, scratch.data);
  });
}

}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
