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

static_assert(kPanel == kStemPanel, "results fill whole panels");

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

// The derivatives at kLanes32 positions from x on.
inline void derivatives_at(const Window& at, int64_t x, V* out) {
  V a[3], b[3], c[3];
  for (int i = 0; i < 3; ++i) {
    a[i] = load_vec<V>(at.left[i] + x);
    b[i] = load_vec<V>(at.middle[i] + x);
    c[i] = load_vec<V>(at.right[i] + x);
  }
  const V rising = c[0] - a[2], falling = c[2] - a[0];  // differences of opposite corners
  const V across = c[1] - a[1], down = b[2] - b[0];
  out[0] = (falling + rising + 2 * across) * 0.125f;
  out[1] = (falling - rising + 2 * down) * 0.125f;
  out[2] = (2 * falling + across + down) * 0.125f;
  out[3] = (down - across - 2 * rising) * 0.125f;
  const V m = b[1];  // of differences, so that what is flat gives 0 and not what rounding leaves
  out[4] = (((a[0] - m) + (c[2] - m)) + ((c[0] - m) + (a[2] - m)) + ((a[1] - m) + (c[1] - m)) +
            ((b[0] - m) + (b[2] - m))) * 0.0625f;
}

// sums[d·stride + x] += |derivative d| at x, for `count` positions; buffers have room for whole vectors.
void add_energies(const Window& at, int64_t count, float* sums, int64_t stride) {
  for (int64_t x = 0; x < count; x += kLanes32) {
    V derivatives[kDerivatives];
    derivatives_at(at, x, derivatives);
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
  int64_t stride;         // of all rows below, at least width / 2 + 2
  Scratch<float> pixels;  // at full size five rows of even, and five of odd columns; else three or four rows
  Scratch<float> sums;    // kDerivatives rows
  explicit Rows(const EnergyStemParams& p)
      : stride(whole_vectors(p.width / 2 + 2) + kLanes32), pixels(10 * stride), sums(kDerivatives * stride) {
    clear(pixels.data, 10 * stride);  // vectors run over the ends of rows: what lies there must be numbers, not traps
  }
  static void clear(float* data, int64_t n) { __builtin_memset(data, 0, n * sizeof(float)); }
};

// One color at one scale: where derivatives are taken for a row of results.
struct Positions {
  int lines;      // rows of positions: two, or one at a quarter of the size
  int64_t count;  // in a row
  Window at[2];
};

// At full size a derivative is taken at every second pixel of every second row.
Positions full_size(const EnergyStemParams& p, int64_t image, int64_t row, int color, Rows& rows) {
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
  Positions found{2, w, {}};
  for (int line = 0; line < 2; ++line)
    for (int i = 0; i < 3; ++i) {
      const int64_t start = (2 * line + i) * stride;
      Window& at = found.at[line];
      at.left[i] = odd + start, at.middle[i] = even + start, at.right[i] = odd + start + 1;
    }
  return found;
}

// At every pixel of rows that lie in `pixels` with their ends repeated.
Positions every_pixel(int lines, int64_t count, const Rows& rows) {
  Positions found{lines, count, {}};
  for (int line = 0; line < lines; ++line)
    for (int i = 0; i < 3; ++i) {
      const float* start = rows.pixels.data + (line + i) * rows.stride;
      Window& at = found.at[line];
      at.left[i] = start, at.middle[i] = start + 1, at.right[i] = start + 2;
    }
  return found;
}

Positions half_size(const EnergyStemParams& p, int64_t image, int64_t row, int color, Rows& rows) {
  const int64_t h = p.height / 2, w = p.width / 2;
  const float* plane = p.half + (image * kColors + color) * h * w;
  for (int i = 0; i < 4; ++i)
    copy_row(plane + within(2 * row - 1 + i, h) * w, w, rows.pixels.data + i * rows.stride);
  return every_pixel(2, w, rows);
}

Positions quarter_size(const EnergyStemParams& p, int64_t image, int64_t row, int color, Rows& rows) {
  const int64_t h = p.height / 4, w = p.width / 4;
  const float* planes = p.quarter + image * kColors * h * w;
  for (int i = 0; i < 3; ++i) {
    const float *red = planes + within(row - 1 + i, h) * w, *green = red + h * w, *blue = green + h * w;
    float* to = rows.pixels.data + i * rows.stride;
    for (int64_t x = 0; x < w; ++x) to[1 + x] = opponent(color, red[x], green[x], blue[x]);
    to[0] = to[1], to[1 + w] = to[w];
  }
  return every_pixel(1, w, rows);
}

constexpr int kScales = 3;
constexpr Positions (*kSizes[kScales])(const EnergyStemParams&, int64_t, int64_t, int, Rows&) = {
    full_size, half_size, quarter_size};

// Energies of a row of results, `kDerivatives` rows in rows.sums: means over its positions, width / 4 of them.
void energies_of(const Positions& positions, Rows& rows) {
  Rows::clear(rows.sums.data, kDerivatives * rows.stride);
  for (int line = 0; line < positions.lines; ++line)
    add_energies(positions.at[line], positions.count, rows.sums.data, rows.stride);
  if (positions.lines == 1) return;
  for (int d = 0; d < kDerivatives; ++d) {
    float* row = rows.sums.data + d * rows.stride;
    for (int64_t x = 0; x < positions.count / 2; ++x) row[x] = (row[2 * x] + row[2 * x + 1]) * 0.25f;
  }
}

// The inputs of the 1x1 convolution for a row of results: (kStemInputs, rows.stride).
void inputs_of(const EnergyStemParams& p, int64_t image, int64_t row, Rows& rows, float* inputs) {
  const int64_t h = p.height / 4, w = p.width / 4;
  for (int scale = 0; scale < kScales; ++scale)
    for (int color = 0; color < kColors; ++color) {
      energies_of(kSizes[scale](p, image, row, color, rows), rows);
      for (int d = 0; d < kDerivatives; ++d) {
        const float* from = rows.sums.data + d * rows.stride;
        float* to = inputs + (scale * kPerScale + color * kDerivatives + d) * rows.stride;
        for (int64_t x = 0; x < w; x += kLanes32) store_vec(to + x, log_of(load_vec<V>(from + x) + p.floor) - p.center);
      }
    }
  for (int color = 0; color < kColors; ++color) {
    const float* from = p.quarter + ((image * kColors + color) * h + row) * w;
    float* to = inputs + (kEnergies + color) * rows.stride;
    for (int64_t x = 0; x < w; ++x) to[x] = from[x] * 4 - 2;
  }
}

// A row of results from its inputs; weights (outputs/kPanel, kStemInputs, kPanel), results (width/4, kPanel).
void mix(const EnergyStemParams& p, const float* weights, const float* inputs, int64_t stride, int64_t image, int64_t row,
         float* results) {
  const int64_t count = p.width / 4;
  float* out = p.out + (image * p.height / 4 + row) * count * p.outputs;
  for (int64_t k = 0; k < p.outputs; k += kPanel) {
    multiply_panel(inputs, 1, weights + k * kStemInputs, count, kStemInputs, results, kPanel, stride);
    for (int64_t x = 0; x < count; ++x)
      for (int lane = 0; lane < kPanel; lane += kLanes32) {
        const V sum = load_vec<V>(results + x * kPanel + lane) + load_vec<V>(p.bias + k + lane), zero = {};
        store_vec(out + x * p.outputs + k + lane, sum < zero ? zero : sum);  // NaN stays
      }
  }
}

// ---- backward -----------------------------------------------------------------------------------------------------

// What a row of positions gives to the nine pixels around each: parts[3·i + k], column k - 1, row i - 1.
struct Parts {
  float* row[9];
};

// Up to here a derivative is what rounding leaves of 0, and has no gradient: ENERGY_ZERO of finpercep/models/filters.py.
constexpr float kNothing = 3e-7f;

// `shares`: of each derivative, what one of its energies is worth at a position.
void gradients_of(const Window& at, int64_t count, const float* shares, int64_t stride, const Parts& parts) {
  const V zero = {};
  for (int64_t x = 0; x < count; x += kLanes32) {
    V g[kDerivatives];
    derivatives_at(at, x, g);
    for (int d = 0; d < kDerivatives; ++d) {
      const V share = load_vec<V>(shares + d * stride + x) * (d < 4 ? 0.125f : 0.0625f);
      g[d] = g[d] > kNothing ? share : g[d] < -kNothing ? -share : zero;
    }
    const V falling = g[0] + g[1] + 2 * g[2], rising = g[0] - g[1] - 2 * g[3];
    const V across = 2 * g[0] + g[2] - g[3], down = 2 * g[1] + g[2] + g[3], around = g[4];
    const V all[9] = {around - falling, around - down, around + rising, around - across, -8 * around,
                      around + across,  around - rising, around + down, around + falling};
    for (int i = 0; i < 9; ++i) store_vec(parts.row[i] + x, all[i]);
  }
}

// One color at one scale, a row of results after the other, into `to` (rows,columns) of opponent colors.
void backward_rows(const EnergyStemBackwardParams& p, int64_t image, int color, int scale, float* to) {
  const EnergyStemParams& f = p.forward;
  const int64_t h = f.height / 4, w = f.width / 4, step = scale == 0 ? 4 : scale == 1 ? 2 : 1;
  const int64_t height = step * h, width = step * w;
  Rows rows(f);
  const int64_t stride = rows.stride;
  Scratch<float> shares(kDerivatives * stride), scratch(9 * stride);
  Rows::clear(shares.data, kDerivatives * stride);
  Rows::clear(to, height * width);
  Parts parts;
  for (int i = 0; i < 9; ++i) parts.row[i] = scratch.data + i * stride;
  for (int64_t row = 0; row < h; ++row) {
    const Positions positions = kSizes[scale](f, image, row, color, rows);
    energies_of(positions, rows);
    const float* grad = p.grad + (image * h + row) * w * kStemInputs + scale * kPerScale + color * kDerivatives;
    const int64_t per = positions.lines;  // positions in a row of results, for each
    for (int d = 0; d < kDerivatives; ++d)
      for (int64_t x = 0; x < w; ++x) {
        const float share = grad[x * kStemInputs + d] / (rows.sums.data[d * stride + x] + f.floor) / float(per * per);
        for (int64_t i = 0; i < per; ++i) shares.data[d * stride + per * x + i] = share;
      }
    for (int line = 0; line < positions.lines; ++line) {
      gradients_of(positions.at[line], positions.count, shares.data, stride, parts);
      const int64_t count = positions.count, apart = width / count, center = step * row + apart * line;
      for (int i = 0; i < 3; ++i) {
        float* pixels = to + within(center - 1 + i, height) * width;
        const float *left = parts.row[3 * i], *middle = parts.row[3 * i + 1], *right = parts.row[3 * i + 2];
        for (int64_t x = 0; x < count; ++x) pixels[apart * x] += middle[x];
        for (int64_t x = 1; x < count; ++x) pixels[apart * x - 1] += left[x];
        for (int64_t x = 0; x + 1 < count; ++x) pixels[apart * x + 1] += right[x];
        pixels[0] += left[0];  // what lies beyond the ends are the ends again
        pixels[width - 1] += right[count - 1];
      }
    }
  }
}

// Row `y` of the gradient to images.
void join_row(const EnergyStemBackwardParams& p, int64_t image, int64_t y) {
  const int64_t H = p.forward.height, W = p.forward.width;
  const float* mean_grad = p.grad + (image * H / 4 + y / 4) * (W / 4) * kStemInputs + kEnergies;
  for (int to = 0; to < 3; ++to) {
    float* out = p.out + ((image * 3 + to) * H + y) * W;
    for (int64_t x = 0; x < W; ++x) {
      float sum = mean_grad[x / 4 * kStemInputs + to] * 0.25f;
      for (int color = 0; color < kColors; ++color) {
        const int64_t plane = image * kColors + color;
        sum += kOpponent[color][to] * (p.full_grad[(plane * H + y) * W + x] +
                                       0.25f * p.half_grad[(plane * (H / 2) + y / 2) * (W / 2) + x / 2] +
                                       0.0625f * p.quarter_grad[(plane * (H / 4) + y / 4) * (W / 4) + x / 4]);
      }
      out[x] = sum;
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
    Scratch<float> inputs(kStemInputs * rows.stride), results(whole_rows(w) * kPanel);
    Rows::clear(inputs.data, kStemInputs * rows.stride);
    for (int64_t i = begin; i < end; ++i) {
      inputs_of(p, i / h, i % h, rows, inputs.data);
      mix(p, weights.data, inputs.data, rows.stride, i / h, i % h, results.data);
    }
  });
}

void energy_stem_backward(const EnergyStemBackwardParams& p, const Parallel& pool) {
  const EnergyStemParams& f = p.forward;
  const int64_t h = f.height / 4;
  float* const grads[kScales] = {p.full_grad, p.half_grad, p.quarter_grad};
  parallel_for(pool, f.batch * h, grain_of(12 * f.width), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) shrink_row(f, i / h, i % h);
  });
  // A part is one color at one scale of an image: rows of results share pixels, parts do not.
  parallel_for(pool, f.batch * kScales * kColors, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / (kScales * kColors);
      const int scale = int(i % kScales), color = int(i / kScales % kColors);
      const int64_t plane = f.height * f.width >> (2 * scale);
      backward_rows(p, image, color, scale, grads[scale] + (image * kColors + color) * plane);
    }
  });
  parallel_for(pool, f.batch * f.height, grain_of(12 * f.width), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) join_row(p, i / f.height, i % f.height);
  });
}

}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
