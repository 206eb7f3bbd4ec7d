// Feature part of degradation_target: moments and cosine distance at feature resolution, and their gradient.
#pragma once
#include "target_common.h"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

// One pass over both feature maps. Pixels are contiguous, channels strided: the three sums of a block stay in L1.
template <class T, class A> void cosine_forward(const TargetParams& p, const Parallel& pool) {
  const int64_t pixels = p.h * p.w;
  int64_t block = kBlock;  // smaller if that is what it takes to give every thread work; the results do not change
  while (block > 128 && p.batch * ceil_div(pixels, block) < 2 * pool.threads) block /= 2;
  const int64_t blocks = ceil_div(pixels, block);
  const T *f = static_cast<const T*>(p.reference_features), *g = static_cast<const T*>(p.distorted_features);
  A *moments = static_cast<A*>(p.moments), *distance = static_cast<A*>(p.distance);
  parallel_for(pool, p.batch * blocks, grain_of(p.channels * min_of(block, pixels)), [&](int64_t begin, int64_t end) {
    A f_buffer[kBlock], g_buffer[kBlock], dot[kBlock], ff[kBlock], gg[kBlock];
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / blocks, at = (task % blocks) * block, n = min_of(block, pixels - at);
      for (int64_t i = 0; i < n; ++i) dot[i] = ff[i] = gg[i] = 0;
      for (int64_t c = 0; c < p.channels; ++c) {
        const int64_t offset = (b * p.channels + c) * pixels + at;
        const A *x = load_block(f + offset, f_buffer, n), *y = load_block(g + offset, g_buffer, n);
        for (int64_t i = 0; i < n; ++i) {
          dot[i] += x[i] * y[i];
          ff[i] += x[i] * x[i];
          gg[i] += y[i] * y[i];
        }
      }
      A* to = moments + b * 3 * pixels + at;
      for (int64_t i = 0; i < n; ++i) {
        to[i] = dot[i];
        to[pixels + i] = ff[i];
        to[2 * pixels + i] = gg[i];
        distance[b * pixels + at + i] = cosine_distance(dot[i], ff[i], gg[i]);
      }
    }
  });
}

template <class T, class A> void cosine_backward(const TargetBackwardParams& q, const Parallel& pool) {
  const TargetParams& p = q.forward;
  const int64_t pixels = p.h * p.w, planes = p.batch * p.channels;
  const T *f = static_cast<const T*>(p.reference_features), *g = static_cast<const T*>(p.distorted_features);
  T *grad_f = static_cast<T*>(q.grad_reference_features), *grad_g = static_cast<T*>(q.grad_distorted_features);
  const A* coefficients = static_cast<const A*>(q.coefficients);
  const bool stream = planes * pixels * int64_t(sizeof(T)) >= kStreamBytes;
  parallel_for(pool, planes, grain_of(pixels), [&](int64_t begin, int64_t end) {
    A f_buffer[kBlock], g_buffer[kBlock], result[kBlock];
    for (int64_t plane = begin; plane < end; ++plane)
      for (int64_t at = 0; at < pixels; at += kBlock) {
        const int64_t n = min_of(kBlock, pixels - at), offset = plane * pixels + at;
        const A* k = coefficients + plane / p.channels * 3 * pixels + at;
        const A *x = load_block(f + offset, f_buffer, n), *y = load_block(g + offset, g_buffer, n);
        if (grad_f != nullptr) {
          A* to = out_block(grad_f + offset, result, stream);
          for (int64_t i = 0; i < n; ++i) to[i] = k[i] * y[i] + k[pixels + i] * x[i];
          store_block(grad_f + offset, to, n, stream);
        }
        if (grad_g != nullptr) {
          A* to = out_block(grad_g + offset, result, stream);
          for (int64_t i = 0; i < n; ++i) to[i] = k[i] * x[i] + k[2 * pixels + i] * y[i];
          store_block(grad_g + offset, to, n, stream);
        }
      }
  });
}

}  // namespace
}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
