// grpo_loss forward (loss and statistics in one pass) and backward. Compiled once per SIMD level.
#include "../include/grpo.h"

#include "any_block.h"
#include "exp.h"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

template <class A> struct Region {  // where the ratio is trusted
  A low, high;
  explicit Region(const GrpoParams& p) : low(A(1 - p.clip_low)), high(A(1 + p.clip_high)) {}
};

template <class A> struct Inputs {
  A new_buffer[kBlock], old_buffer[kBlock], advantage_buffer[kBlock];
  const A *log_prob, *old_log_prob, *advantage;

  void load(const GrpoParams& p, int64_t offset, int64_t n) {
    log_prob = load_any(p.log_prob, p.log_prob_type, offset, new_buffer, n);
    old_log_prob = load_any(p.old_log_prob, p.old_type, offset, old_buffer, n);
    if (p.steps == 1) {
      advantage = load_any(p.advantages, p.advantage_type, offset, advantage_buffer, n);
      return;
    }
    for (int64_t i = 0; i < n;) {  // one number for the rest of its row
      const int64_t row = (offset + i) / p.steps, stop = min_of(n, (row + 1) * p.steps - offset);
      A one;
      const A value = *load_any(p.advantages, p.advantage_type, row, &one, 1);
      for (; i < stop; ++i) advantage_buffer[i] = value;
    }
    advantage = advantage_buffer;
  }
};

constexpr int kWidth = 16;  // independent sums per statistic

template <class A> struct Sums {
  A policy[kWidth] = {}, ratio[kWidth] = {}, below[kWidth] = {}, above[kWidth] = {}, square[kWidth] = {};
  A low[kWidth], high[kWidth];

  Sums() {
    for (int k = 0; k < kWidth; ++k) low[k] = A(__builtin_inf()), high[k] = 0;
  }
  inline void add(int k, A log_ratio, A r, A advantage, const Region<A>& region) {
    const A clipped = r < region.low ? region.low : (r > region.high ? region.high : r);
    const A free = advantage * r, held = advantage * clipped;
    policy[k] += held < free ? held : free;  // the smaller gain; NaN stays NaN
    ratio[k] += r;
    below[k] += r < region.low ? A(1) : A(0);
    above[k] += r > region.high ? A(1) : A(0);
    square[k] += log_ratio * log_ratio;
    low[k] = r < low[k] ? r : low[k];
    high[k] = r > high[k] ? r : high[k];
  }
  void write(double* out) const {  // order of GrpoParams::stats, kl left alone
    double p = 0, m = 0, b = 0, a = 0, s = 0, l = double(low[0]), h = double(high[0]);
    for (int k = 0; k < kWidth; ++k) {
      p += double(policy[k]), m += double(ratio[k]), s += double(square[k]);
      b += double(below[k]), a += double(above[k]);
      l = min_of(l, double(low[k])), h = max_of(h, double(high[k]));
    }
    out[0] = -p, out[2] = m, out[3] = l, out[4] = h, out[5] = b, out[6] = a, out[7] = s / 2;
  }
};

template <class A> void forward_chunk(const GrpoParams& p, int64_t begin, int64_t count, double* out) {
  const Region<A> region(p);
  Inputs<A> in;
  Sums<A> sums;
  A log_ratio[kBlock], ratio[kBlock];
  double kl = 0;
  for (int64_t offset = begin; offset < begin + count; offset += kBlock) {
    const int64_t n = min_of(kBlock, begin + count - offset);
    in.load(p, offset, n);
    for (int64_t i = 0; i < n; ++i) log_ratio[i] = in.log_prob[i] - in.old_log_prob[i];
    for (int64_t i = 0; i < n; ++i) ratio[i] = exp_of(log_ratio[i]);
    int64_t i = 0;
    for (; i + kWidth <= n; i += kWidth)
      for (int k = 0; k < kWidth; ++k) sums.add(k, log_ratio[i + k], ratio[i + k], in.advantage[i + k], region);
    for (; i < n; ++i) sums.add(int(i % kWidth), log_ratio[i], ratio[i], in.advantage[i], region);
    if (p.kl != nullptr) {
      A buffer[kBlock];
      kl += double(sum_block(load_any(p.kl, p.kl_type, offset, buffer, n), n));
    }
  }
  sums.write(out);
  out[1] = kl;
}

template <class A> void forward(const GrpoParams& p, const Parallel& pool) {
  const int64_t chunks = grpo_chunks(p.count);
  parallel_for(pool, chunks, 2, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c)
      forward_chunk<A>(p, c * kGrpoChunk, min_of(kGrpoChunk, p.count - c * kGrpoChunk), p.partial + c * kGrpoStats);
  });
  const int summed[] = {0, 1, 2, 5, 6, 7};
  double total[kGrpoStats] = {};
  total[3] = __builtin_inf();
  for (int64_t c = 0; c < chunks; ++c) {
    const double* part = p.partial + c * kGrpoStats;
    for (int k : summed) total[k] += part[k];
    total[3] = min_of(total[3], part[3]), total[4] = max_of(total[4], part[4]);
  }
  for (int k : summed) total[k] /= double(p.count);
  if (total[2] != total[2]) total[3] = total[4] = total[2];  // comparisons skip NaN, a sum does not
  for (int k = 0; k < kGrpoStats; ++k) static_cast<A*>(p.stats)[k] = A(total[k]);
  *static_cast<A*>(p.loss) = A(p.kl != nullptr ? total[0] + p.beta * total[1] : total[0]);
}

template <class A> void backward_chunk(const GrpoBackwardParams& q, A scale, int64_t begin, int64_t count, bool stream) {
  const GrpoParams& p = q.forward;
  const Region<A> region(p);
  Inputs<A> in;
  A grad[kBlock];
  for (int64_t offset = begin; offset < begin + count; offset += kBlock) {
    const int64_t n = min_of(kBlock, begin + count - offset);
    in.load(p, offset, n);
    for (int64_t i = 0; i < n; ++i) {
      const A r = exp_of(in.log_prob[i] - in.old_log_prob[i]);
      const A clipped = r < region.low ? region.low : (r > region.high ? region.high : r);
      const A free = in.advantage[i] * r, held = in.advantage[i] * clipped;
      grad[i] = held < free ? A(0) : scale * free;  // no gradient where the clipped term is the smaller gain
    }
    store_any(q.grad_log_prob, p.log_prob_type, offset, grad, n, stream);
  }
}

template <class A> void backward(const GrpoBackwardParams& q, const Parallel& pool) {
  const GrpoParams& p = q.forward;
  const A scale = A(-double(*static_cast<const A*>(q.grad_loss)) / double(p.count));
  const bool stream = p.count * bytes_of(p.log_prob_type) >= kStreamBytes;
  parallel_for(pool, grpo_chunks(p.count), 2, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c)
      backward_chunk<A>(q, scale, c * kGrpoChunk, min_of(kGrpoChunk, p.count - c * kGrpoChunk), stream);
  });
}

}  // namespace

void grpo_loss_forward(const GrpoParams& p, const Parallel& pool) {
  if (p.wide) forward<double>(p, pool);
  else forward<float>(p, pool);
}

void grpo_loss_backward(const GrpoBackwardParams& q, const Parallel& pool) {
  if (q.forward.wide) backward<double>(q, pool);
  else backward<float>(q, pool);
}

}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
