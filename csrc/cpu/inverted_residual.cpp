// Inverted residual blocks whose wide activations never leave the cache. Compiled once per SIMD level.
//
// A ring of rows of expanded activations moves down the image; what it holds is filtered and projected at once. Threads
// get ranges of output rows: those at a range's edge are expanded by both neighbors, to the same bits.
#include "../include/inverted_residual.h"

#include "multiply.h"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

using V = vec<float>;
constexpr int kLanesOfVector = lanes_of<float>;
constexpr int kSums = 12;                     // of a product, in registers
constexpr int kFiltered = 8 / kVectors;       // pixels whose filtered sums are in registers
constexpr int64_t kPixels = 96;               // expanded at once: they and the weights of a panel fit L1
constexpr int64_t kFilteredBytes = 64 << 10;  // of filtered activations that are projected at once, if those are ...
constexpr int64_t kLeastPixels = 24;          // ... this many: weights are read once for all of them
constexpr int64_t kStepPixels = 64;           // of a step down the image, for the same reason
constexpr int64_t kRingBytes = 320 << 10;     // of the rows that are kept; where they are more columns are divided ...
constexpr int64_t kLeastColumns = 64;         // ... but not into fewer: kernel - stride columns are expanded twice

inline int64_t panels_of(int64_t channels) { return (channels + kPanel - 1) / kPanel; }

inline V relu6(V v) {  // NaN stays NaN: x86 gives the second operand then
  const V zero = {}, six = zero + 6.0f;
#if defined(__AVX512F__) || !defined(__x86_64__)
  v = v < zero ? zero : v;
  return v > six ? six : v;
#elif defined(__AVX2__)
  return _mm256_min_ps(six, _mm256_max_ps(zero, v));
#else
  return _mm_min_ps(six, _mm_max_ps(zero, v));
#endif
}

// ---- weights ----------------------------------------------------------------------------------------------------

// Panels (depth,kPanel) of a matrix (channels,depth), zeros where a channel is not there.
void pack(const float* weight, int64_t channels, int64_t depth, float* packed, const Parallel& pool) {
  parallel_for(pool, panels_of(channels), grain_of(depth * kPanel), [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      const float* from = weight + panel * kPanel * depth;
      float* to = packed + panel * kPanel * depth;
      const int64_t there = min_of(int64_t(kPanel), channels - panel * kPanel);
      int64_t k = 0;
#if defined(__x86_64__)
      for (; there == kPanel && k + 4 <= depth; k += 4)  // small images wait for this
        for (int c = 0; c < kPanel; c += 4) {
          __m128 square[4];
          for (int i = 0; i < 4; ++i) square[i] = _mm_loadu_ps(from + (c + i) * depth + k);
          _MM_TRANSPOSE4_PS(square[0], square[1], square[2], square[3]);
          for (int i = 0; i < 4; ++i) _mm_storeu_ps(to + (k + i) * kPanel + c, square[i]);
        }
#endif
      for (; k < depth; ++k)
        for (int c = 0; c < kPanel; ++c) to[k * kPanel + c] = c < there ? from[c * depth + k] : 0.0f;
    }
  });
}

struct Weights {
  Scratch<float> expand, expand_bias, filter, filter_bias, project, project_bias;

  Weights(const InvertedResidualParams& p, const Parallel& pool)
      : expand(p.expand_weight ? panels_of(p.hidden) * kPanel * p.inputs : 0),
        expand_bias(panels_of(p.hidden) * kPanel),
        filter(panels_of(p.hidden) * kPanel * p.kernel * p.kernel),
        filter_bias(panels_of(p.hidden) * kPanel),
        project(panels_of(p.outputs) * kPanel * p.hidden),
        project_bias(panels_of(p.outputs) * kPanel) {
    if (p.expand_weight) {
      pack(p.expand_weight, p.hidden, p.inputs, expand.data, pool);
      pack(p.expand_bias, p.hidden, 1, expand_bias.data, pool);
    }
    pack(p.filter_weight, p.hidden, p.kernel * p.kernel, filter.data, pool);
    pack(p.filter_bias, p.hidden, 1, filter_bias.data, pool);
    pack(p.project_weight, p.outputs, p.hidden, project.data, pool);
    pack(p.project_bias, p.outputs, 1, project_bias.data, pool);
  }
};

// ---- products -----------------------------------------------------------------------------------------------------

// Panels of half the width take twice the rows, so that a remainder of channels costs half.
constexpr int kHalf = kVectors > 1 ? kVectors / 2 : 1;
template <int kWide> constexpr int kRowsOf = kSums / kWide;

// What becomes of a product: + bias, then clamped or + `beside`. `there` numbers of row i go to out + at[i].
struct Finish {
  const float *bias, *beside;  // beside + at[i], or nullptr
  float* out;
  const int64_t* at;
  int64_t there;
};

inline void write(const Finish& f, int64_t at, V v, int64_t first) {
  if (first + kLanesOfVector <= f.there) {
    if (f.beside) v += load_vec<V>(f.beside + at + first);
    return store_vec(f.out + at + first, v);
  }
  for (int64_t c = first; c < f.there; ++c) f.out[at + c] = v[c - first] + (f.beside ? f.beside[at + c] : 0.0f);
}

// A·B + bias for A (rows,depth), rows `stride` apart, and kWide vectors of columns of B (depth,kPanel), finished while in
// registers, of which there would be too few if this were inlined. Reads whole blocks of kRowsOf<kWide> rows of A.
template <int kWide, bool kClamp>
__attribute__((noinline)) void multiply(const float* a, int64_t stride, const float* b, int64_t rows, int64_t depth,
                                        const Finish& f) {
  constexpr int kRows = kRowsOf<kWide>;
  for (int64_t row = 0; row < rows; row += kRows) {
    const float* from[kRows];
    V sum[kRows][kWide];
    FINPERCEP_UNROLL for (int r = 0; r < kRows; ++r) {
      from[r] = a + (row + r) * stride;
      FINPERCEP_UNROLL for (int v = 0; v < kWide; ++v) sum[r][v] = load_vec<V>(f.bias + v * kLanesOfVector);
    }
    for (int64_t k = 0; k < depth; ++k) {
      V columns[kWide];
      FINPERCEP_UNROLL for (int v = 0; v < kWide; ++v) columns[v] = load_vec<V>(b + k * kPanel + v * kLanesOfVector);
      FINPERCEP_UNROLL for (int r = 0; r < kRows; ++r)
        FINPERCEP_UNROLL for (int v = 0; v < kWide; ++v) sum[r][v] += from[r][k] * columns[v];
    }
    FINPERCEP_UNROLL for (int r = 0; r < kRows; ++r) {
      if (row + r == rows) return;
      FINPERCEP_UNROLL for (int v = 0; v < kWide; ++v) {
        if (kClamp) store_vec(f.out + f.at[row + r] + v * kLanesOfVector, relu6(sum[r][v]));
        else write(f, f.at[row + r], sum[r][v], v * kLanesOfVector);
      }
    }
  }
}

// ---- where things are -------------------------------------------------------------------------------------------

// Output columns [first,first+columns) and the columns [from,to) of x that they see. Rows of the ring begin with column
// `origin` of x; they are zero where x has no column.
struct Tile {
  int64_t first, columns, origin, from, to;
};

struct Plan {
  int64_t panels, before;         // of hidden channels; rows and columns of zeros before the image
  int64_t tiles, columns, pitch;  // columns of a tile, and of the ring for it
  int64_t rows, ring, filtered;   // rows of a step, rows of the ring, pixels projected at once

  explicit Plan(const InvertedResidualParams& p) {
    panels = panels_of(p.hidden);
    before = (p.kernel > p.stride ? p.kernel - p.stride : 0) / 2;
    const int64_t column = panels * kPanel * int64_t(sizeof(float)) * p.kernel * p.stride;
    const int64_t most = max_of(kLeastColumns, kRingBytes / column);
    tiles = (p.out_width + most - 1) / most;
    columns = (p.out_width + tiles - 1) / tiles;
    pitch = (columns + kFiltered - 2) * p.stride + p.kernel;  // filter_run computes whole blocks
    rows = max_of(int64_t(1), min_of(p.out_height, kStepPixels / columns));
    ring = p.kernel + (rows - 1) * p.stride;
    const int64_t fit = kFilteredBytes / (panels * kPanel * int64_t(sizeof(float)));
    filtered = max_of(kLeastPixels, min_of(kPixels, fit / kSums * kSums));
  }
  Tile tile(const InvertedResidualParams& p, int64_t i) const {
    Tile t;
    t.first = i * columns, t.columns = min_of(columns, p.out_width - t.first);
    t.origin = t.first * p.stride - before;
    t.from = max_of(int64_t(0), t.origin), t.to = min_of(p.width, t.origin + (t.columns - 1) * p.stride + p.kernel);
    return t;
  }
};

// Splits pixels [begin,begin+count) of rows of `width` into f(row, column, pixels, how many came before).
template <class F> inline void for_runs(int64_t begin, int64_t count, int64_t width, const F& f) {
  for (int64_t done = 0; done < count;) {
    const int64_t row = (begin + done) / width, column = (begin + done) % width;
    const int64_t run = min_of(count - done, width - column);
    f(row, column, run, done);
    done += run;
  }
}

// `count` pixels of one panel, filtered: rows[ky] is where the first one's kernel begins. Computes whole blocks.
template <int kKernel, int kStride>
__attribute__((noinline)) void filter_run(const float* const* rows, const float* weight, const float* bias,
                                          int64_t count, float* out, int64_t out_stride) {
  for (int64_t i = 0; i < count; i += kFiltered) {
    V sum[kFiltered][kVectors];
    for (int j = 0; j < kFiltered; ++j)
      for (int v = 0; v < kVectors; ++v) sum[j][v] = load_vec<V>(bias + v * kLanesOfVector);
    for (int ky = 0; ky < kKernel; ++ky) {
      const float* row = rows[ky] + i * kStride * kPanel;
      for (int kx = 0; kx < kKernel; ++kx) {
        V w[kVectors];
        const float* own = weight + (ky * kKernel + kx) * kPanel;
        for (int v = 0; v < kVectors; ++v) w[v] = load_vec<V>(own + v * kLanesOfVector);
        for (int j = 0; j < kFiltered; ++j)
          for (int v = 0; v < kVectors; ++v)
            sum[j][v] += load_vec<V>(row + (j * kStride + kx) * kPanel + v * kLanesOfVector) * w[v];
      }
    }
    for (int j = 0; j < kFiltered; ++j)
      for (int v = 0; v < kVectors; ++v) store_vec(out + (i + j) * out_stride + v * kLanesOfVector, relu6(sum[j][v]));
  }
}

// ---- one range of rows ------------------------------------------------------------------------------------------

class Range {
 public:
  Range(const InvertedResidualParams& p, const Plan& plan, const Weights& weights)
      : p_(p), plan_(plan), weights_(weights), gathered_(kPixels * p.inputs),
        ring_(plan.panels * plan.ring * plan.pitch * kPanel), zeros_(plan.pitch * kPanel),
        filtered_((plan.filtered + kFiltered) * plan.panels * kPanel) {
    clear(gathered_, kPixels * p.inputs);
    clear(zeros_, plan.pitch * kPanel);
    clear(filtered_, (plan.filtered + kFiltered) * plan.panels * kPanel);
  }

  // Output rows [begin,end) of an image.
  void run(int64_t image, int64_t begin, int64_t end) {
    x_ = p_.x + image * p_.height * p_.width * p_.inputs;
    out_ = p_.out + image * p_.out_height * p_.out_width * p_.outputs;
    for (int64_t i = 0; i < plan_.tiles; ++i) {
      const Tile tile = plan_.tile(p_, i);
      clear(ring_, plan_.panels * plan_.ring * plan_.pitch * kPanel);  // columns beyond the image stay zero
      int64_t next = max_of(int64_t(0), begin * p_.stride - plan_.before);
      for (int64_t y = begin; y < end; y += plan_.rows) {
        const int64_t rows = min_of(plan_.rows, end - y);
        const int64_t to = min_of(p_.height, (y + rows - 1) * p_.stride - plan_.before + p_.kernel);
        if (next < to) expand(tile, next, to);
        next = max_of(next, to);
        project(tile, y, rows);
      }
    }
  }

 private:
  static void clear(const Scratch<float>& scratch, int64_t n) { __builtin_memset(scratch.data, 0, n * sizeof(float)); }

  float* slot(int64_t panel, int64_t row) const {
    return ring_.data + (panel * plan_.ring + row % plan_.ring) * plan_.pitch * kPanel;
  }

  void expand(const Tile& t, int64_t from, int64_t to) {
    const int64_t width = t.to - t.from, pixels = (to - from) * width;
    for (int64_t begin = 0; begin < pixels; begin += kPixels) {
      const int64_t count = min_of(kPixels, pixels - begin);
      for_runs(begin, count, width, [&](int64_t row, int64_t column, int64_t run, int64_t done) {
        __builtin_memcpy(gathered_.data + done * p_.inputs,
                         x_ + ((from + row) * p_.width + t.from + column) * p_.inputs, run * p_.inputs * sizeof(float));
        const int64_t first = (from + row) % plan_.ring * plan_.pitch + t.from - t.origin + column;
        for (int64_t i = 0; i < run; ++i) at_[done + i] = (first + i) * kPanel;
      });
      for (int64_t panel = 0; panel < plan_.panels; ++panel)
        p_.expand_weight ? multiply_pixels(panel, count) : copy_pixels(panel, count);
    }
  }

  void multiply_pixels(int64_t panel, int64_t count) const {
    const float* weight = weights_.expand.data + panel * kPanel * p_.inputs;
    const Finish f{weights_.expand_bias.data + panel * kPanel, nullptr, slot(panel, 0), at_, kPanel};
    multiply<kVectors, true>(gathered_.data, p_.inputs, weight, count, p_.inputs, f);
  }

  // Without expansion: the panel's own channels of x.
  void copy_pixels(int64_t panel, int64_t count) const {
    const int64_t there = min_of(int64_t(kPanel), p_.inputs - panel * kPanel);
    float* to = slot(panel, 0);
    for (int64_t i = 0; i < count; ++i) {
      const float* from = gathered_.data + i * p_.inputs + panel * kPanel;
      if (there == kPanel) __builtin_memcpy(to + at_[i], from, kPanel * sizeof(float));
      else __builtin_memcpy(to + at_[i], from, there * sizeof(float));
    }
  }

  void filter(int64_t panel, int64_t y, int64_t column, int64_t count, float* to) const {
    const float* rows[5];
    for (int64_t ky = 0; ky < p_.kernel; ++ky) {
      const int64_t row = y * p_.stride - plan_.before + ky;
      rows[ky] = (row >= 0 && row < p_.height ? slot(panel, row) : zeros_.data) + column * p_.stride * kPanel;
    }
    const float* weight = weights_.filter.data + panel * kPanel * p_.kernel * p_.kernel;
    const float* bias = weights_.filter_bias.data + panel * kPanel;
    const int64_t stride = plan_.panels * kPanel;
    if (p_.kernel == 3)
      p_.stride == 1 ? filter_run<3, 1>(rows, weight, bias, count, to, stride)
                     : filter_run<3, 2>(rows, weight, bias, count, to, stride);
    else
      p_.stride == 1 ? filter_run<5, 1>(rows, weight, bias, count, to, stride)
                     : filter_run<5, 2>(rows, weight, bias, count, to, stride);
  }

  void project(const Tile& t, int64_t y, int64_t rows) {
    const int64_t pixels = rows * t.columns, stride = plan_.panels * kPanel;
    for (int64_t begin = 0; begin < pixels; begin += plan_.filtered) {
      const int64_t count = min_of(plan_.filtered, pixels - begin);
      for_runs(begin, count, t.columns, [&](int64_t row, int64_t column, int64_t run, int64_t done) {
        for (int64_t panel = 0; panel < plan_.panels; ++panel)
          filter(panel, y + row, column, run, filtered_.data + done * stride + panel * kPanel);
        const int64_t first = (y + row) * p_.out_width + t.first + column;
        for (int64_t i = 0; i < run; ++i) at_[done + i] = (first + i) * p_.outputs;
      });
      for (int64_t first = 0; first < p_.outputs; first += kPanel) {
        const int64_t there = min_of(int64_t(kPanel), p_.outputs - first);
        const float* beside = p_.skip ? x_ + first : nullptr;  // of the result's shape
        const Finish f{weights_.project_bias.data + first, beside, out_ + first, at_, there};
        const float* weight = weights_.project.data + first * p_.hidden;
        if (2 * there > kPanel) multiply<kVectors, false>(filtered_.data, stride, weight, count, p_.hidden, f);
        else multiply<kHalf, false>(filtered_.data, stride, weight, count, p_.hidden, f);
      }
    }
  }

  const InvertedResidualParams& p_;
  const Plan& plan_;
  const Weights& weights_;
  // Pixels of x (kPixels,inputs); expanded rows (panels,ring,pitch,kPanel); such a row of zeros; (pixels,hidden).
  Scratch<float> gathered_, ring_, zeros_, filtered_;
  int64_t at_[kPixels];  // where each pixel's result goes
  const float* x_ = nullptr;
  float* out_ = nullptr;
};

}  // namespace

void inverted_residual(const InvertedResidualParams& p, const Parallel& pool) {
  const Plan plan(p);
  const Weights weights(p, pool);
  const int64_t grain = max_of(p.kernel, grain_of(p.out_width * p.hidden));
  parallel_for(pool, p.batch * p.out_height, grain, [&](int64_t begin, int64_t end) {
    Range range(p, plan, weights);
    for (int64_t at = begin; at < end;) {
      const int64_t image = at / p.out_height, first = at % p.out_height;
      const int64_t rows = min_of(p.out_height - first, end - at);
      range.run(image, first, first + rows);
      at += rows;
    }
  });
}

}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
