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

// Running sums of the statistics, for numbers (F = A) or for vectors of them.
template <class F, class A> struct Sums {
  F policy{}, ratio{}, below{}, above{}, square{}, low = F{} + A(__builtin_inf()), high{};

  inline void add(const F& log_ratio, const F& advantage, const Region<A>& region) {
    const F zero{}, one = zero + A(1), r = exp_of(log_ratio);
    const F floor = zero + region.low, ceiling = zero + region.high;
    F clipped = r < floor ? floor : r;
    clipped = r > ceiling ? ceiling : clipped;
    const F free = advantage * r, held = advantage * clipped;
    policy += held < free ? held : free;  // the smaller gain; NaN stays NaN
    ratio += r;
    below += r < floor ? one : zero;
    above += r > ceiling ? one : zero;
    square += log_ratio * log_ratio;
    low = r < low ? r : low;
    high = r > high ? r : high;
  }
};

inline float lane(float x, int) { return x; }
inline double lane(double x, int) { return x; }
template <class V> inline auto lane(const V& x, int k) { return x[k]; }

// Adds to the chunk's result, in the order of GrpoParams::stats; kl is left alone.
template <class F, class A> void flush(const Sums<F, A>& sums, int lanes, double* out) {
  for (int k = 0; k < lanes; ++k) {
    out[0] -= double(lane(sums.policy, k)), out[2] += double(lane(sums.ratio, k));
    out[3] = min_of(out[3], double(lane(sums.low, k))), out[4] = max_of(out[4], double(lane(sums.high, k)));
    out[5] += double(lane(sums.below, k)), out[6] += double(lane(sums.above, k));
    out[7] += double(lane(sums.square, k)) / 2;
  }
}

template <class A> void forward_chunk(const GrpoParams& p, int64_t begin, int64_t count, double* out) {
  const Region<A> region(p);
  Inputs<A> in;
  Sums<vec<A>, A> sums;
  Sums<A, A> rest;
  double kl = 0;
  for (int64_t offset = begin; offset < begin + count; offset += kBlock) {
    const int64_t n = min_of(kBlock, begin + count - offset);
    in.load(p, offset, n);
    int64_t i = 0;
    for (; i + lanes_of<A> <= n; i += lanes_of<A>) {
      prefetch_ahead(in.log_prob + i), prefetch_ahead(in.old_log_prob + i), prefetch_ahead(in.advantage + i);
      const vec<A> log_ratio = load_vec<vec<A>>(in.log_prob + i) - load_vec<vec<A>>(in.old_log_prob + i);
      sums.add(log_ratio, load_vec<vec<A>>(in.advantage + i), region);
    }
    for (; i < n; ++i) rest.add(in.log_prob[i] - in.old_log_prob[i], in.advantage[i], region);
    if (p.kl != nullptr) {
      A buffer[kBlock];
      kl += double(sum_block(load_any(p.kl, p.kl_type, offset, buffer, n), n));
    }
  }
  for (int k = 0; k < kGrpoStats; ++k) out[k] = 0;
  out[1] = kl, out[3] = __builtin_inf();
  flush(sums, lanes_of<A>, out);
  flush(rest, 1, out);
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

// No gradient where the clipped term is the smaller gain.
template <class F, class A> inline F gradient(const F& log_ratio, const F& advantage, const Region<A>& region, A scale) {
  const F zero{}, r = exp_of(log_ratio), floor = zero + region.low, ceiling = zero + region.high;
  F clipped = r < floor ? floor : r;
  clipped = r > ceiling ? ceiling : clipped;
  const F free = advantage * r, held = advantage * clipped;
  return held < free ? zero : scale * free;
}

template <class A> void backward_chunk(const GrpoBackwardParams& q, A scale, int64_t begin, int64_t count, bool stream) {
  const GrpoParams& p = q.forward;
  const Region<A> region(p);
  Inputs<A> in;
  A grad[kBlock];
  for (int64_t offset = begin; offset < begin + count; offset += kBlock) {
    const int64_t n = min_of(kBlock, begin + count - offset);
    in.load(p, offset, n);
    int64_t i = 0;
    for (; i + lanes_of<A> <= n; i += lanes_of<A>) {
      prefetch_ahead(in.log_prob + i), prefetch_ahead(in.old_log_prob + i), prefetch_ahead(in.advantage + i);
      const vec<A> log_ratio = load_vec<vec<A>>(in.log_prob + i) - load_vec<vec<A>>(in.old_log_prob + i);
      store_vec(grad + i, gradient(log_ratio, load_vec<vec<A>>(in.advantage + i), region, scale));
    }
    for (; i < n; ++i) grad[i] = gradient(in.log_prob[i] - in.old_log_prob[i], in.advantage[i], region, scale);
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
