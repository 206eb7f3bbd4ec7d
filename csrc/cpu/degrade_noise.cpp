// Gaussian and Poisson noise by a hash of each value's place, one pass over each sample. Compiled once per SIMD level.
#include "../include/degrade.h"

#include "simd.h"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

// NaN becomes 0: what is made from it is an index below.
inline float unit(float x) { return x > 0 ? (x < 1 ? x : 1) : 0; }

inline int32_t level_of(float x) { return int32_t(255 * unit(x) + 0x1p23f - 0x1p23f); }  // halves to even

// finpercep.data.random_bits.hash_bits of the places first, first + 3, …
inline void hash_row(uint32_t first, const int32_t* key, uint32_t* __restrict bits, int64_t n) {
  const uint32_t before = uint32_t(key[0]), between = uint32_t(key[1]);
  for (int64_t x = 0; x < n; ++x) {
    uint32_t z = (first + 3 * uint32_t(x)) ^ before;
    z ^= z >> 16;
    z *= 0x7FEB352Du;
    z ^= z >> 15;
    z += between;
    z *= 0x846CA68Bu;
    bits[x] = z ^ z >> 16;
  }
}

struct Place {
  const float* planes[3];
  float* out[3];
  int64_t height, width;
};

inline uint32_t first_of(const NoiseParams& p, int64_t i, int64_t c, int64_t y, int64_t width) {
  return uint32_t(p.grey[i] ? 0 : c) + 3 * uint32_t(y) * uint32_t(width);
}

void gaussian_row(const float* from, const uint32_t* bits, const float* quantile, float sigma, float* __restrict to,
                  int64_t n) {
  for (int64_t x = 0; x < n; ++x) to[x] = unit(from[x] + quantile[int32_t(bits[x] >> 16)] * sigma);
}

// `chance` and `alias` are those of the sample's number of levels.
void poisson_row(const float* from, const uint32_t* bits, const int32_t* levels, const float* chance, const int32_t* alias,
                 int32_t outcomes, float unit_count, float scale, float* __restrict to, int64_t n) {
  for (int64_t x = 0; x < n; ++x) {
    const int32_t column = int32_t(bits[x] >> 23) & (outcomes - 1), entry = levels[x] * outcomes + column;
    const float fraction = float(int32_t(bits[x] & 0x7FFFFF)) * 0x1p-23f;
    const int32_t other = alias[entry];
    const float count = float(fraction < chance[entry] ? column : other);
    to[x] = unit(from[x] + (count * unit_count - float(levels[x]) / 255) * scale);
  }
}

void add_gaussian(const NoiseParams& p, int64_t i, const Place& at, uint32_t* bits) {
  const float sigma = float(p.strength[i] / 255);
  for (int64_t c = 0; c < 3; ++c)
    for (int64_t y = 0; y < at.height; ++y) {
      hash_row(first_of(p, i, c, y, at.width), p.key + 2 * i, bits, at.width);
      gaussian_row(at.planes[c] + y * p.columns, bits, p.quantile, sigma, at.out[c] + y * p.columns, at.width);
    }
}

// Levels of one row: of the channel, or of the grey image.
void levels_of(const NoiseParams& p, int64_t i, int64_t c, int64_t y, const Place& at, int32_t* __restrict levels) {
  if (!p.grey[i]) {
    const float* from = at.planes[c] + y * p.columns;
    for (int64_t x = 0; x < at.width; ++x) levels[x] = level_of(from[x]);
    return;
  }
  const float *r = at.planes[0] + y * p.columns, *g = at.planes[1] + y * p.columns, *b = at.planes[2] + y * p.columns;
  for (int64_t x = 0; x < at.width; ++x)
    levels[x] = level_of(unit(r[x]) * 0.2989f + unit(g[x]) * 0.587f + unit(b[x]) * 0.114f);
}

void add_poisson(const NoiseParams& p, int64_t i, const Place& at, uint32_t* bits, int32_t* levels) {
  bool present[256] = {};
  for (int64_t c = 0; c < (p.grey[i] ? 1 : 3); ++c)
    for (int64_t y = 0; y < at.height; ++y) {
      levels_of(p, i, c, y, at, levels);
      for (int64_t x = 0; x < at.width; ++x) present[levels[x]] = true;
    }
  int distinct = 0, exponent = 0;
  for (bool there : present) distinct += there;
  while ((1 << exponent) < distinct) ++exponent;
  const float* chance = p.chance + exponent * 256 * p.outcomes;
  const int32_t* alias = p.alias + exponent * 256 * p.outcomes;
  const float scale = float(p.strength[i]), unit_count = 1 / float(1 << exponent);
  for (int64_t c = 0; c < 3; ++c)
    for (int64_t y = 0; y < at.height; ++y) {
      levels_of(p, i, c, y, at, levels);
      hash_row(first_of(p, i, c, y, at.width), p.key + 2 * i, bits, at.width);
      poisson_row(at.planes[c] + y * p.columns, bits, levels, chance, alias, int32_t(p.outcomes), unit_count, scale,
                  at.out[c] + y * p.columns, at.width);
    }
}

// Beyond a sample its last pixel goes on.
void fill_rest(const NoiseParams& p, const Place& at) {
  for (float* out : at.out) {
    for (int64_t y = 0; y < at.height; ++y)
      for (int64_t x = at.width; x < p.columns; ++x) out[y * p.columns + x] = out[y * p.columns + at.width - 1];
    for (int64_t y = at.height; y < p.rows; ++y)
      __builtin_memcpy(out + y * p.columns, out + (at.height - 1) * p.columns, p.columns * sizeof(float));
  }
}

}  // namespace

void degrade_noise(const NoiseParams& p, const Parallel& pool) {
  parallel_for(pool, p.batch, 1, [&](int64_t begin, int64_t end) {
    Scratch<uint32_t> bits(p.columns);
    Scratch<int32_t> levels(p.columns);
    for (int64_t i = begin; i < end; ++i) {
      Place at{{}, {}, p.height[i], p.width[i]};
      for (int64_t c = 0; c < 3; ++c) {
        at.planes[c] = p.images + (3 * i + c) * p.rows * p.columns;
        at.out[c] = p.out + (3 * i + c) * p.rows * p.columns;
      }
      p.gaussian[i] ? add_gaussian(p, i, at, bits.data) : add_poisson(p, i, at, bits.data, levels.data);
      fill_rest(p, at);
    }
  });
}

}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
