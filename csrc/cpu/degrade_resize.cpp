// Resizing each sample by its own factor and mode: rows, then columns, one row in cache. Compiled once per SIMD level.
#include "../include/degrade.h"

#include "simd.h"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

inline int64_t reflected(int64_t at, int64_t size) {
  const int64_t period = max_of(2 * (size - 1), int64_t(1));
  at = (at % period + period) % period;
  return min_of(min_of(at, period - at), size - 1);
}

inline float cubic(float distance) {  // Keys' kernel, a = -0.75
  const float d = distance < 0 ? -distance : distance, a = -0.75f;
  if (d <= 1) return ((a + 2) * d - (a + 3)) * d * d + 1;
  return d < 2 ? a * (((d - 5) * d + 8) * d - 4) : 0;
}

inline int64_t floor_of(float x) {
  const int64_t whole = int64_t(x);
  return whole - (float(whole) > x);
}

// Which input positions make each of `count` output positions, and with which weights: [tap][position].
struct Taps {
  int32_t* index;
  float* weight;
  int64_t count, taps;
};

int64_t taps_needed(int64_t size, int64_t out, ResizeMode mode) {
  if (mode == ResizeMode::bicubic) return 4;
  return mode == ResizeMode::bilinear ? 2 : (size + out - 1) / out + 1;
}

Taps make_taps(int64_t size, int64_t out, ResizeMode mode, const ResizeParams& p, int64_t count, int32_t* index, float* weight) {
  const int64_t most = taps_needed(size, out, mode);
  Taps made{index, weight, count, 1};
  for (int64_t i = 0; i < count; ++i) {
    int64_t at = i - p.border;
    at = p.mirror ? reflected(at, out) : min_of(max_of(at, int64_t(0)), out - 1);
    int64_t start, window = 0;
    float source = (float(at) + 0.5f) * float(size) / float(out) - 0.5f, part = 0;
    if (mode == ResizeMode::area) {
      start = at * size / out;
      window = ((at + 1) * size + out - 1) / out - start;
    } else {
      if (mode == ResizeMode::bilinear && source < 0) source = 0;
      const int64_t whole = floor_of(source);
      part = source - float(whole);
      start = mode == ResizeMode::bilinear ? whole : whole - 1;
    }
    for (int64_t t = 0; t < most; ++t) {
      float w;
      if (mode == ResizeMode::area) w = t < window ? 1 / float(window) : 0;
      else if (mode == ResizeMode::bilinear) w = t == 0 ? 1 - part : part;
      else w = cubic(part + 1 - float(t));
      index[t * count + i] = int32_t(min_of(max_of(start + t, int64_t(0)), size - 1));
      weight[t * count + i] = w;
      if (w != 0) made.taps = max_of(made.taps, t + 1);
    }
  }
  return made;
}

void mix_rows(const float* plane, int64_t stride, int64_t width, const Taps& rows, int64_t row, float* __restrict to) {
  for (int64_t t = 0; t < rows.taps; ++t) {
    const float w = rows.weight[t * rows.count + row];
    const float* from = plane + rows.index[t * rows.count + row] * stride;
    if (t == 0)
      for (int64_t x = 0; x < width; ++x) to[x] = w * from[x];
    else if (w != 0)
      for (int64_t x = 0; x < width; ++x) to[x] += w * from[x];
  }
}

// As it is, but for the border.
void copy_row(const float* from, const ResizeParams& p, int64_t width, const Taps& columns, float* to) {
  for (int64_t x = 0; x < p.border; ++x) to[x] = from[columns.index[x]];
  __builtin_memcpy(to + p.border, from, width * sizeof(float));
  for (int64_t x = p.border + width; x < columns.count; ++x) to[x] = from[columns.index[x]];
}

void mix_columns(const float* from, const Taps& columns, float* __restrict to) {
  for (int64_t t = 0; t < columns.taps; ++t) {
    const float* weight = columns.weight + t * columns.count;
    const int32_t* index = columns.index + t * columns.count;
    if (t == 0)
      for (int64_t x = 0; x < columns.count; ++x) to[x] = weight[x] * from[index[x]];
    else
      for (int64_t x = 0; x < columns.count; ++x) to[x] += weight[x] * from[index[x]];
  }
}

void resize_sample(const ResizeParams& p, int64_t i) {
  const ResizeMode mode = static_cast<ResizeMode>(p.mode[i]);
  const int64_t height = p.height[i], width = p.width[i];
  const int64_t row_taps = p.out_rows * taps_needed(height, p.new_height[i], mode);
  const int64_t column_taps = p.out_columns * taps_needed(width, p.new_width[i], mode);
  Scratch<int32_t> index(row_taps + column_taps);
  Scratch<float> weight(row_taps + column_taps), row(width);
  const Taps rows = make_taps(height, p.new_height[i], mode, p, p.out_rows, index.data, weight.data);
  const Taps columns = make_taps(width, p.new_width[i], mode, p, p.out_columns, index.data + row_taps, weight.data + row_taps);
  const int64_t last = p.border + p.new_height[i] - 1;  // without mirror, the same row from here on
  for (int64_t c = 0; c < p.channels; ++c) {
    const float* plane = p.images + (i * p.channels + c) * p.rows * p.columns;
    float* out = p.out + (i * p.channels + c) * p.out_rows * p.out_columns;
    for (int64_t y = 0; y < p.out_rows; ++y, out += p.out_columns) {
      if (!p.mirror && y > last) {
        __builtin_memcpy(out, out - p.out_columns, p.out_columns * sizeof(float));
        continue;
      }
      if (rows.taps == 1 && columns.taps == 1 && width == p.new_width[i]) {  // the same size: every weight is 1
        copy_row(plane + rows.index[y] * p.columns, p, width, columns, out);
        continue;
      }
      mix_rows(plane, p.columns, width, rows, y, row.data);
      mix_columns(row.data, columns, out);
    }
  }
}

}  // namespace

void degrade_resize(const ResizeParams& p, const Parallel& pool) {
  parallel_for(pool, p.batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) resize_sample(p, i);
  });
}

}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
