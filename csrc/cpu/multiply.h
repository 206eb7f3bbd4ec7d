// Small matrix products whose sums stay in registers: kRowsAtOnce rows of A times a panel of kPanel columns of B.
#pragma once
#include "vec.h"

#define FINPERCEP_UNROLL _Pragma("GCC unroll 12")

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

constexpr int kPanel = 16;
constexpr int kVectors = kPanel / lanes_of<float>;  // in a row of a panel
constexpr int kRowsAtOnce = 12 / kVectors;          // twelve sums: enough to hide an addition's latency, few enough to fit

// How many rows a product of `rows` rows computes: buffers have room for them.
constexpr int64_t whole_rows(int64_t rows) { return (rows + kRowsAtOnce - 1) / kRowsAtOnce * kRowsAtOnce; }

// out = A·B: A (whole_rows(rows),depth) with rows `a_stride` and neighbors in a row `a_step` apart, B (depth,kPanel), out
// (whole_rows(rows),kPanel) with rows `out_stride` apart. Each number is added up in the order of depth.
inline void multiply_panel(const float* a, int64_t a_stride, const float* b, int64_t rows, int64_t depth, float* out,
                           int64_t out_stride, int64_t a_step = 1) {
  using V = vec<float>;
  for (int64_t row = 0; row < rows; row += kRowsAtOnce) {
    const float* from = a + row * a_stride;
    float* to = out + row * out_stride;
    V sum[kRowsAtOnce][kVectors];
    // Unrolled by request: a loop over the sums that is left keeps them in memory.
    FINPERCEP_UNROLL for (int r = 0; r < kRowsAtOnce; ++r)
      FINPERCEP_UNROLL for (int v = 0; v < kVectors; ++v) sum[r][v] = V{};
    for (int64_t k = 0; k < depth; ++k) {
      V columns[kVectors];
      FINPERCEP_UNROLL for (int v = 0; v < kVectors; ++v)
        columns[v] = load_vec<V>(b + k * kPanel + v * lanes_of<float>);
      FINPERCEP_UNROLL for (int r = 0; r < kRowsAtOnce; ++r)
        FINPERCEP_UNROLL for (int v = 0; v < kVectors; ++v) sum[r][v] += from[r * a_stride + k * a_step] * columns[v];
    }
    FINPERCEP_UNROLL for (int r = 0; r < kRowsAtOnce; ++r)
      FINPERCEP_UNROLL for (int v = 0; v < kVectors; ++v)
        store_vec(to + r * out_stride + v * lanes_of<float>, sum[r][v]);
  }
}

}  // namespace
}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
