// The first layer of the small encoder, row by row of its results: derivatives, their energies, logarithms and the 1x1
// convolution behind them never leave the cache. Compiled once per SIMD level.
#include "../include/energy_stem.h"

#include "log.h"
#include "multiply.h"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

using V = vec<float>;
constexpr int kLanes32 = lanes_of<float>;
constexpr int kColors = 3, kDerivatives = 5, kPerScale = kColors * kDerivatives;

// Opponent colors, as in finpercep/models/filters.py: luminance, and two chroma axes at half weight.
constexpr float kOpponent[kColors][3] = {{0.299f, 0.587f, 0.114f}, {0.5f, -0.25f, -0.25f}, {0.25f, -0.5f, 0.25f}};

inline float opponent(int color, float red, float green, float blue) {
  return kOpponent[color][0] * red + kOpponent[color][1] * green + kOpponent[color][2] * blue;
}

// Room for `n` numbers whose last vector is whole.
constexpr int64_t whole_vectors(int64_t n) { return (n + kLanes32 - 1) / kLanes32 * kLanes32; }

// Row `row` of results: opponent colors of two rows of `half`, and one row of `quarter`.
void shrink_row(const EnergyStemParams& p, int64_t image, int64_t row) {
  const int64_t h = p.height / 2, w = p.width / 2, plane = p.height * p.width;
  const float* pixels = p.images + image * kColors * plane + 4 * row * p.width;
  float* quarter = p.quarter + (image * kColors * h / 2 + row) * (w / 2);
  Scratch<float> means(2 * kColors * w);
  for (int c = 0; c < kColors; ++c)
    for (int i = 0; i < 2; ++i) {
      const float *upper = pixels + c * plane + 2 * i * p.width, *lower = upper + p.width;
      float* mean = means.data + (2 * c + i) * w;
      for (int64_t x = 0; x < w; ++x)
        mean[x] = ((upper[2 * x] + upper[2 * x + 1]) + (lower[2 * x] + lower[2 * x + 1])) * 0.25f;
    }
  for (int c = 0; c < kColors; ++c) {
    const float *upper = means.data + 2 * c * w, *lower = upper + w;
    float* to = quarter + c * (h / 2) * (w / 2);
    for (int64_t x = 0; x < w / 2; ++x)
      to[x] = ((upper[2 * x] + upper[2 * x + 1]) + (lower[2 * x] + lower[2 * x + 1])) * 0.25f;
  }
  for (int c = 0; c < kColors; ++c)
    for (int i = 0; i < 2; ++i) {
      const float *red = means.data + i * w, *green = red + 2 * w, *blue = green + 2 * w;
      float* to = p.half + ((image * kColors + c) * h + 2 * row + i) * w;
      for (int64_t x = 0; x < w; ++x) to[x] = opponent(c, red[x], green[x], blue[x]);
    }
}

// One row of positions: `left`, `middle`, `right` are the columns beside and at each, of three rows.
struct Window {
  const float *left[3], *middle[3], *right[3];
};

// sums[d·stride + x] += |derivative d| at x, for `count` positions; buffers have room for whole vectors.
void add_energies(const Window& at, int64_t count, float* sums, int64_t stride) {
  for (int64_t x = 0; x < count; x += kLanes32) {
    V a[3], b[3], c[3];
    for (int i = 0; i < 3; ++i) {
      a[i] = load_vec<V>(at.left[i] + x);
      b[i] = load_vec<V>(at.middle[i] + x);
      c[i] = load_vec<V>(at.right[i] + x);
    }
    const V rising = c[0] - a[2], falling = c[2] - a[0];  // differences of opposite corners
    const V across = c[1] - a[1], down = b[2] - b[0];
    const V derivatives[kDerivatives] = {
        (falling + rising + 2 * across) * 0.125f,
        (falling - rising + 2 * down) * 0.125f,
        (2 * falling + across + down) * 0.125f,
        (down - across - 2 * rising) * 0.125f,
        ((a[0] + b[0] + c[0]) + (a[1] + c[1]) + (a[2] + b[2] + c[2]) - 8 * b[1]) * 0.0625f,
    };
    for (int d = 0; d < kDerivatives; ++d) {
      const V value = derivatives[d], energy = value < 0.0f ? -value : value;
      store_vec(sums + d * stride + x, load_vec<V>(sums + d * stride + x) + energy);
    }
  }
}

inline int64_t within(int64_t i, int64_t size) { return min_of(max_of(i, int64_t(0)), size - 1); }

// A row with its first and last pixel repeated at both ends.
void copy_row(const float* from, int64_t count, float* to) {
  to[0] = from[0];
  for (int64_t x = 0; x < count; ++x) to[1 + x] = from[x];
  to[1 + count] = from[count - 1];
}

// What a thread works in. Rows have a stride that leaves room for whole vectors behind them.
struct Rows {
  int64_t stride;             // of all rows below, at least width / 2 + 2
  Scratch<float> pixels;      // scale 0: five rows of even, and five of odd columns; else three or four rows
  Scratch<float> sums;        // kDerivatives rows
  Scratch<float> inputs;      // kStemInputs rows
  Scratch<float> results;     // (width / 4, kPanel)
  explicit Rows(const EnergyStemParams& p)
      : stride(whole_vectors(p.width / 2 + 2) + kLanes32), pixels(10 * stride), sums(kDerivatives * stride),
        inputs(kStemInputs * stride), results(whole_rows(p.width / 4) * kPanel) {
    // Vectors and products run over the ends of rows: what lies there must be numbers, not traps.
    for (int64_t i = 0; i < 10 * stride; ++i) pixels.data[i] = 0;
    for (int64_t i = 0; i < kStemInputs * stride; ++i) inputs.data[i] = 0;
  }
};

// Adds pairs of sums into rows of inputs, `factor` times, as logarithms.
void write_logs(const EnergyStemParams& p, const float* sums, int64_t stride, bool pairs, float factor, float* inputs) {
  const int64_t count = p.width / 4;
  for (int d = 0; d < kDerivatives; ++d) {
    const float* from = sums + d * stride;
    float* to = inputs + d * stride;
    if (pairs)
      for (int64_t x = 0; x < count; ++x) to[x] = (from[2 * x] + from[2 * x + 1]) * factor;
    else
      for (int64_t x = 0; x < count; ++x) to[x] = from[x] * factor;
    for (int64_t x = 0; x < count; x += kLanes32)
      store_vec(to + x, log_of(load_vec<V>(to + x) + p.floor) - p.center);
  }
}

// At full size a derivative is taken at every second pixel of every second row.
void full_size(const EnergyStemParams& p, int64_t image, int64_t row, int color, Rows& rows) {
  const int64_t plane = p.height * p.width, w = p.width / 2, stride = rows.stride;
  float *even = rows.pixels.data, *odd = even + 5 * stride;  // odd begins one column to the left of the image
  for (int i = 0; i < 5; ++i) {
    const float* red = p.images + image * kColors * plane + within(4 * row - 1 + i, p.height) * p.width;
    const float *green = red + plane, *blue = green + plane;
    float *to_even = even + i * stride, *to_odd = odd + i * stride + 1;
    for (int64_t x = 0; x < w; ++x) {
      to_even[x] = opponent(color, red[2 * x], green[2 * x], blue[2 * x]);
      to_odd[x] = opponent(color, red[2 * x + 1], green[2 * x + 1], blue[2 * x + 1]);
    }
    to_odd[-1] = to_even[0];
  }
  for (int64_t i = 0; i < kDerivatives * stride; ++i) rows.sums.data[i] = 0;
  for (int line = 0; line < 2; ++line) {
    Window at;
    for (int i = 0; i < 3; ++i) {
      const int64_t start = (2 * line + i) * stride;
      at.left[i] = odd + start, at.middle[i] = even + start, at.right[i] = odd + start + 1;
    }
    add_energies(at, w, rows.sums.data, stride);
  }
  write_logs(p, rows.sums.data, stride, true, 0.25f, rows.inputs.data + color * kDerivatives * stride);
}

// At half size at every pixel, at a quarter, too: `lines` rows of positions of a plane that make up one row of results.
void shrunken(const EnergyStemParams& p, int64_t row, int color, int scale, Rows& rows) {
  const int lines = scale == 1 ? 2 : 1;
  const int64_t w = p.width / (scale == 1 ? 2 : 4), stride = rows.stride;
  for (int64_t i = 0; i < kDerivatives * stride; ++i) rows.sums.data[i] = 0;
  for (int line = 0; line < lines; ++line) {
    Window at;
    for (int i = 0; i < 3; ++i) {
      const float* start = rows.pixels.data + (line + i) * stride;
      at.left[i] = start, at.middle[i] = start + 1, at.right[i] = start + 2;
    }
    add_energies(at, w, rows.sums.data, stride);
  }
  float* to = rows.inputs.data + (scale * kPerScale + color * kDerivatives) * stride;
  write_logs(p, rows.sums.data, stride, lines == 2, lines == 2 ? 0.25f : 1.0f, to);
}

void half_size(const EnergyStemParams& p, int64_t image, int64_t row, int color, Rows& rows) {
  const int64_t h = p.height / 2, w = p.width / 2;
  const float* plane = p.half + (image * kColors + color) * h * w;
  for (int i = 0; i < 4; ++i)
    copy_row(plane + within(2 * row - 1 + i, h) * w, w, rows.pixels.data + i * rows.stride);
  shrunken(p, row, color, 1, rows);
}

void quarter_size(const EnergyStemParams& p, int64_t image, int64_t row, int color, Rows& rows) {
  const int64_t h = p.height / 4, w = p.width / 4;
  const float* planes = p.quarter + image * kColors * h * w;
  for (int i = 0; i < 3; ++i) {
    const float *red = planes + within(row - 1 + i, h) * w, *green = red + h * w, *blue = green + h * w;
    float* to = rows.pixels.data + i * rows.stride;
    for (int64_t x = 0; x < w; ++x) to[1 + x] = opponent(color, red[x], green[x], blue[x]);
    to[0] = to[1], to[1 + w] = to[w];
  }
  shrunken(p, row, color, 2, rows);
}

// A row of results from its inputs; weights (outputs/kPanel, kStemInputs, kPanel).
void mix(const EnergyStemParams& p, const float* weights, int64_t image, int64_t row, Rows& rows) {
  const int64_t count = p.width / 4;
  float* out = p.out + (image * p.height / 4 + row) * count * p.outputs;
  for (int64_t k = 0; k < p.outputs; k += kPanel) {
    multiply_panel<false>(rows.inputs.data, 1, weights + k * kStemInputs, count, kStemInputs, rows.results.data, kPanel,
                          rows.stride);
    for (int64_t x = 0; x < count; ++x)
      for (int lane = 0; lane < kPanel; lane += kLanes32) {
        const V sum = load_vec<V>(rows.results.data + x * kPanel + lane) + load_vec<V>(p.bias + k + lane), zero = {};
        store_vec(out + x * p.outputs + k + lane, sum < zero ? zero : sum);  // NaN stays
      }
  }
}

}  // namespace

void energy_stem(const EnergyStemParams& p, const Parallel& pool) {
  const int64_t h = p.height / 4, w = p.width / 4;
  Scratch<float> weights(p.outputs * kStemInputs);
  for (int64_t k = 0; k < p.outputs; ++k)
    for (int64_t c = 0; c < kStemInputs; ++c)
      weights.data[(k / kPanel * kStemInputs + c) * kPanel + k % kPanel] = p.weight[k * kStemInputs + c];
  parallel_for(pool, p.batch * h, grain_of(48 * w), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) shrink_row(p, i / h, i % h);
  });
  parallel_for(pool, p.batch * h, grain_of(kStemInputs * w), [&](int64_t begin, int64_t end) {
    Rows rows(p);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / h, row = i % h;
      for (int color = 0; color < kColors; ++color) {
        full_size(p, image, row, color, rows);
        half_size(p, image, row, color, rows);
        quarter_size(p, image, row, color, rows);
        const float* from = p.quarter + ((image * kColors + color) * h + row) * w;
        float* to = rows.inputs.data + (kEnergies + color) * rows.stride;
        for (int64_t x = 0; x < w; ++x) to[x] = from[x] * 4 - 2;
      }
      mix(p, weights.data, image, row, rows);
    }
  });
}

}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
