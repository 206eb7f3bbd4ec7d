// 3 x 3 convolutions by Winograd's F(4 x 4, 3 x 3) (Lavin and Gray, 2016, at the points 0, ±1, ±2, ∞): 36 products give 4 x 4
// results that take 144 directly. Compiled once per SIMD level.
#include "../include/conv3x3.h"

#include "multiply.h"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

using V = vec<float>;
constexpr int kLanes32 = lanes_of<float>;
constexpr int kSide = 6, kOut = 4, kPoints = kSide * kSide;  // of a tile of the image, and of the results that it gives
constexpr int kTiles = 24;          // in a block, whose products then stay in L2

static_assert(kPanel == kConvPanel && kPoints == kConvPoints && kTiles % kRowsAtOnce == 0, "blocks of whole products");

// One side of a tile of the image -> points.
inline void to_points(const V* d, V* out) {
  const V even = d[4] - 4 * d[2], odd = d[3] - 4 * d[1], even2 = d[4] - d[2], odd2 = 2 * (d[3] - d[1]);
  out[0] = 4 * d[0] - 5 * d[2] + d[4];
  out[1] = even + odd;
  out[2] = even - odd;
  out[3] = even2 + odd2;
  out[4] = even2 - odd2;
  out[5] = 4 * d[1] - 5 * d[3] + d[5];
}

// Points -> one side of a tile of results.
inline void from_points(const V* m, V* out) {
  const V sum = m[1] + m[2], difference = m[1] - m[2], sum2 = m[3] + m[4], difference2 = m[3] - m[4];
  out[0] = m[0] + sum + sum2;
  out[1] = difference + 2 * difference2;
  out[2] = sum + 4 * sum2;
  out[3] = difference + 8 * difference2 + m[5];
}

// Three weights of each of kLanes32 outputs -> points.
inline void weights_to_points(const V* g, V* out) {
  const V ends = g[0] + g[2], ends2 = g[0] + 4 * g[2];
  out[0] = g[0] * 0.25f;
  out[1] = (ends + g[1]) * (-1 / 6.0f);
  out[2] = (ends - g[1]) * (-1 / 6.0f);
  out[3] = (ends2 + 2 * g[1]) * (1 / 24.0f);
  out[4] = (ends2 - 2 * g[1]) * (1 / 24.0f);
  out[5] = g[2];
}

// Where a tile of results lies.
struct Tile {
  int64_t image, y, x;
};

struct Tiling {
  int64_t down, across, count;
  explicit Tiling(const Conv3x3Params& p)
      : down((p.height + kOut - 1) / kOut), across((p.width + kOut - 1) / kOut), count(p.batch * down * across) {}
  Tile at(int64_t i) const {
    return {i / (down * across), i / across % down * kOut, i % across * kOut};
  }
};

// The points of one tile of the image, kTiles apart: products (points, tiles, inputs).
void transform_tile(const Conv3x3Params& p, Tile tile, const float* zeros, float* products) {
  const float* pixels[kPoints];
  for (int i = 0; i < kSide; ++i)
    for (int j = 0; j < kSide; ++j) {
      const int64_t y = tile.y + i - 1, x = tile.x + j - 1;
      const bool inside = y >= 0 && y < p.height && x >= 0 && x < p.width;
      pixels[i * kSide + j] = inside ? p.images + ((tile.image * p.height + y) * p.width + x) * p.inputs : zeros;
    }
  for (int64_t c = 0; c < p.inputs; c += kLanes32) {
    V half[kPoints], side[kSide], points[kSide];
    for (int j = 0; j < kSide; ++j) {
      for (int i = 0; i < kSide; ++i) side[i] = load_vec<V>(pixels[i * kSide + j] + c);
      to_points(side, points);
      for (int i = 0; i < kSide; ++i) half[i * kSide + j] = points[i];
    }
    for (int i = 0; i < kSide; ++i) {
      to_points(half + i * kSide, points);
      for (int j = 0; j < kSide; ++j) store_vec(products + (i * kSide + j) * kTiles * p.inputs + c, points[j]);
    }
  }
}

// kLanes32 channels, from `channel` on, of a tile of results; sums (points, tiles, kPanel) from the tile's first on.
void write_tile(const Conv3x3Params& p, Tile tile, int64_t channel, const float* sums) {
  V half[kOut * kSide], side[kSide], results[kOut];
  for (int j = 0; j < kSide; ++j) {
    for (int i = 0; i < kSide; ++i) side[i] = load_vec<V>(sums + (i * kSide + j) * kTiles * kPanel);
    from_points(side, results);
    for (int i = 0; i < kOut; ++i) half[i * kSide + j] = results[i];
  }
  const V bias = load_vec<V>(p.bias + channel), zero = {};
  const int64_t rows = min_of<int64_t>(kOut, p.height - tile.y), columns = min_of<int64_t>(kOut, p.width - tile.x);
  for (int64_t i = 0; i < rows; ++i) {
    from_points(half + i * kSide, results);
    for (int64_t j = 0; j < columns; ++j) {
      const int64_t at = ((tile.image * p.height + tile.y + i) * p.width + tile.x + j) * p.outputs + channel;
      V result = results[j] + bias;
      if (p.residual != nullptr) result += load_vec<V>(p.residual + at);
      if (p.relu) result = result < zero ? zero : result;  // NaN stays
      store_vec(p.out + at, result);
    }
  }
}

// Tiles [first, first + count), count at most kTiles.
void convolve(const Conv3x3Params& p, const Tiling& tiling, int64_t first, int64_t count, const float* zeros,
              float* products, float* sums) {
  Tile tiles[kTiles];
  for (int64_t t = 0; t < count; ++t) {
    tiles[t] = tiling.at(first + t);
    transform_tile(p, tiles[t], zeros, products + t * p.inputs);
  }
  for (int64_t channel = 0; channel < p.outputs; channel += kPanel) {
    const float* weights = p.weight + channel * kPoints * p.inputs;
    for (int point = 0; point < kPoints; ++point)
      multiply_panel(products + point * kTiles * p.inputs, p.inputs, weights + point * p.inputs * kPanel, count,
                     p.inputs, sums + point * kTiles * kPanel, kPanel);
    for (int64_t t = 0; t < count; ++t)
      for (int lane = 0; lane < kPanel; lane += kLanes32)
        write_tile(p, tiles[t], channel + lane, sums + t * kPanel + lane);
  }
}

}  // namespace

void conv3x3_weight(const Conv3x3WeightParams& p, const Parallel& pool) {
  parallel_for(pool, p.outputs / kPanel, 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel)
      for (int64_t c = 0; c < p.inputs; ++c)
        for (int lane = 0; lane < kPanel; lane += kLanes32) {
          float gathered[9][kLanes32];
          for (int k = 0; k < kLanes32; ++k)
            for (int i = 0; i < 9; ++i)
              gathered[i][k] = p.weight[((panel * kPanel + lane + k) * p.inputs + c) * 9 + i];
          V half[kSide][3], side[3], points[kSide];
          for (int j = 0; j < 3; ++j) {
            for (int i = 0; i < 3; ++i) side[i] = load_vec<V>(gathered[i * 3 + j]);
            weights_to_points(side, points);
            for (int i = 0; i < kSide; ++i) half[i][j] = points[i];
          }
          float* to = p.out + (panel * kPoints * p.inputs + c) * kPanel + lane;
          for (int i = 0; i < kSide; ++i) {
            weights_to_points(half[i], points);
            for (int j = 0; j < kSide; ++j) store_vec(to + (i * kSide + j) * p.inputs * kPanel, points[j]);
          }
        }
  });
}

void conv3x3(const Conv3x3Params& p, const Parallel& pool) {
  const Tiling tiling(p);
  parallel_for(pool, (tiling.count + kTiles - 1) / kTiles, 1, [&](int64_t begin, int64_t end) {
    Scratch<float> zeros(p.inputs), products(kPoints * kTiles * p.inputs), sums(kPoints * kTiles * kPanel);
    for (int64_t c = 0; c < p.inputs; ++c) zeros.data[c] = 0;
    // A product may compute rows behind the last tile, which nobody reads: they must be numbers, not traps.
    for (int64_t i = 0; i < kPoints * kTiles * p.inputs; ++i) products.data[i] = 0;
    for (int64_t block = begin; block < end; ++block)
      convolve(p, tiling, block * kTiles, min_of<int64_t>(kTiles, tiling.count - block * kTiles), zeros.data,
               products.data, sums.data);
  });
}

}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
