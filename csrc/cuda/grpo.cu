// grpo_loss forward (loss and statistics in one pass; one launch where one block is enough) and backward.
#include "../include/grpo.h"

#include "primitives.cuh"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

__device__ inline float exponential(float x) { return expf(x); }
__device__ inline double exponential(double x) { return exp(x); }

template <class A> struct Region {  // where the ratio is trusted
  A low, high;
  __device__ explicit Region(const GrpoParams& p) : low(A(1 - p.clip_low)), high(A(1 + p.clip_high)) {}
  __device__ A clipped(A ratio) const {  // NaN stays
    const A floored = ratio < low ? low : ratio;
    return floored > high ? high : floored;
  }
};

template <class T, class A> struct Inputs {
  Array<T, A> log_prob, old_log_prob, advantages, kl;
  // What is read as packs. In the place of what is not there, or not one number an element: the log-probabilities once
  // more. Loads behind a branch would come after the others, one of what is on its way costs no traffic.
  Array<T, A> packed_advantages, packed_kl;
  int64_t steps;
  __device__ explicit Inputs(const GrpoParams& p)
      : log_prob(p.log_prob, p.log_prob_type), old_log_prob(p.old_log_prob, p.old_type),
        advantages(p.advantages, p.advantage_type), kl(p.kl, p.kl_type),
        packed_advantages(p.steps == 1 ? advantages : log_prob), packed_kl(p.kl != nullptr ? kl : log_prob),
        steps(p.steps) {}
  template <int N> __device__ bool aligned_for() const {
    return log_prob.template aligned_at<N>(0) && old_log_prob.template aligned_at<N>(0) &&
           packed_advantages.template aligned_at<N>(0) && packed_kl.template aligned_at<N>(0);
  }
  template <int N> struct Packs {
    Pack<typename Array<T, A>::Element, N> fresh, old, given, apart;
  };
  template <int N> __device__ Packs<N> read(int64_t at, int64_t left, bool all_whole) const {
    Packs<N> packs;
    read_batch(all_whole, [&](auto whole) {
      packs.fresh = log_prob.template load<N>(at, left, whole), packs.old = old_log_prob.template load<N>(at, left, whole);
      packs.given = packed_advantages.template load<N>(at, left, whole);
      packs.apart = packed_kl.template load<N>(at, left, whole);
    });
    return packs;
  }
  // divergence: what stands there when there is no KL means nothing
  template <int N>
  __device__ void unpack(const Packs<N>& packs, int64_t at, int64_t left, A (&log_ratio)[N], A (&advantage)[N],
                         A (&divergence)[N]) const {
#pragma unroll
    for (int k = 0; k < N; ++k) {
      log_ratio[k] = A(widen(packs.fresh.at[k])) - A(widen(packs.old.at[k]));
      advantage[k] = A(widen(packs.given.at[k])), divergence[k] = A(widen(packs.apart.at[k]));
    }
    if (steps == 1) return;
    int64_t sample = at / steps, step = at - sample * steps;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      advantage[k] = k < left ? advantages.one(sample) : A(0);
      if (++step == steps) step = 0, ++sample;
    }
  }
};

enum : int { kPolicy, kDivergence, kRatio, kSmallest, kLargest, kBelow, kAbove, kSquares };  // as GrpoParams::stats

template <class V> __device__ inline V merged(int stat, V a, V b) {
  return stat == kSmallest ? Lowest()(a, b) : (stat == kLargest ? Highest()(a, b) : a + b);
}

// Merges the statistics of all threads, in a fixed order and with one barrier; thread s of the block gets statistic s.
template <class V> __device__ V block_stats(V (&mine)[kGrpoStats]) {
  constexpr int kWarps = kThreads / kWarp;
  FINPERCEP_SHARED(V, parts, kGrpoStats * kWarps);
#pragma unroll
  for (int s = 0; s < kGrpoStats; ++s) {
    mine[s] = team_reduce(mine[s], kWarp, [&](V a, V b) { return merged(s, a, b); });
    if (threadIdx.x % kWarp == 0) parts[s * kWarps + threadIdx.x / kWarp] = mine[s];
  }
  __syncthreads();
  const int stat = int(threadIdx.x);
  if (stat >= kGrpoStats) return V(0);
  V total = parts[stat * kWarps];
#pragma unroll
  for (int k = 1; k < kWarps; ++k) total = merged(stat, total, parts[stat * kWarps + k]);
  return total;
}

// Writes loss and statistics from the sums over all elements, one each in the first threads of a warp. share: 1 / count, from
// the host, as a division in double takes a while.
template <class A> __device__ void write_results(const GrpoParams& p, double total, double share) {
  const int stat = int(threadIdx.x);
  if (stat != kSmallest && stat != kLargest) total *= share;
  if (stat == kSquares) total *= 0.5;
  const double divergence = __shfl_sync(kAllLanes, total, kDivergence);
  if (stat < kGrpoStats) static_cast<A*>(p.stats)[stat] = A(total);
  if (stat == kPolicy) *static_cast<A*>(p.loss) = A(p.kl != nullptr ? total + p.beta * divergence : total);
}

// Merges the statistics of chunks, in a fixed order.
template <class A> __global__ void __launch_bounds__(kThreads, 3) grpo_finish_kernel(GrpoParams p, double share) {
  double total[kGrpoStats] = {0, 0, 0, infinity<double>(), 0, 0, 0, 0};
#pragma unroll 2
  for (int64_t c = threadIdx.x; c < grpo_chunks(p.count); c += kThreads)
#pragma unroll
    for (int s = 0; s < kGrpoStats; ++s) total[s] = merged(s, total[s], p.partial[c * kGrpoStats + s]);
  const double sum = block_stats(total);
  if (threadIdx.x < kWarp) write_results<A>(p, sum, share);
}

template <class T, class A, int N>
__global__ void __launch_bounds__(kThreads, 3) grpo_fwd_kernel(GrpoParams p, double share) {
  const Inputs<T, A> in(p);
  const bool all_aligned = in.template aligned_for<N>();
  const Region<A> region(p);
  const int64_t chunk = grpo_chunk(p.count), begin = blockIdx.x * chunk, end = min_of(p.count, begin + chunk);
  A policy = 0, divergence = 0, ratios = 0, low = infinity<A>(), high = 0, below = 0, above = 0, squares = 0;
  typename Inputs<T, A>::template Packs<N> next;
  const auto read = [&](int64_t at) {
    if (at < end) next = in.template read<N>(at, end - at, all_aligned && end - at >= N);
  };
  // The packs after these are on their way while these are worked on, unless that takes too many registers.
  constexpr bool kAhead = N <= 4;
  int64_t at = begin + threadIdx.x * N;
  if (kAhead) read(at);
  for (; at < end; at += kThreads * N) {
    const int64_t left = end - at;
    if (!kAhead) read(at);
    const auto packs = next;
    if (kAhead) read(at + kThreads * N);
    A log_ratio[N], advantage[N], apart[N];
    in.unpack(packs, at, left, log_ratio, advantage, apart);
    if (p.kl != nullptr) {
#pragma unroll
      for (int k = 0; k < N; ++k) divergence += apart[k];  // zero beyond the end
    }
#pragma unroll
    for (int k = 0; k < N; ++k) {
      if (k >= left) continue;
      const A ratio = exponential(log_ratio[k]), free = advantage[k] * ratio, held = advantage[k] * region.clipped(ratio);
      policy -= held < free ? held : free;  // the smaller gain; NaN stays NaN
      ratios += ratio;
      low = Lowest()(low, ratio), high = Highest()(high, ratio);
      below += ratio < region.low ? A(1) : A(0);
      above += ratio > region.high ? A(1) : A(0);
      squares += log_ratio[k] * log_ratio[k];
    }
  }
  A mine[kGrpoStats] = {policy, divergence, ratios, low, high, below, above, squares};
  const double total = double(block_stats(mine));
  if (threadIdx.x >= kWarp) return;
  if (grpo_chunks(p.count) == 1) return write_results<A>(p, total, share);
  if (threadIdx.x < kGrpoStats) p.partial[blockIdx.x * kGrpoStats + threadIdx.x] = total;  // a launch of its own merges them
}

// A pack for each thread.
template <class T, class A, int N>
__global__ void __launch_bounds__(kThreads, 4) grpo_bwd_kernel(GrpoBackwardParams q, double share) {
  const GrpoParams& p = q.forward;
  const Inputs<T, A> in(p);
  const Array<T, A> grad(q.grad_log_prob, p.log_prob_type);
  const int64_t at = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * N, left = p.count - at;
  if (left <= 0) return;
  const A incoming = *static_cast<const A*>(q.grad_loss);  // asked for first, needed last
  const auto packs = in.template read<N>(at, left, in.template aligned_for<N>() && left >= N);
  A log_ratio[N], advantage[N], unused[N], results[N];
  in.unpack(packs, at, left, log_ratio, advantage, unused);
  const Region<A> region(p);
  const A scale = A(-double(incoming) * share);
#pragma unroll
  for (int k = 0; k < N; ++k) {
    const A ratio = exponential(log_ratio[k]), free = advantage[k] * ratio;
    results[k] = advantage[k] * region.clipped(ratio) < free ? A(0) : scale * free;  // none where the clip is the smaller gain
  }
  grad.store(at, left, results);
}

// f(Tag<T>{}, Tag<A>{}, pack) for a common dtype of all tensors, else for Any.
template <class F> void with_types(const GrpoParams& p, const F& f) {
  const bool alike = p.old_type == p.log_prob_type && p.advantage_type == p.log_prob_type &&
                     (p.kl == nullptr || p.kl_type == p.log_prob_type);
  if (alike)
    for_float(p.log_prob_type, [&](auto tag) {
      using T = typename decltype(tag)::type;
      f(tag, Tag<accum_t<T>>{}, std::integral_constant<int, kPack<T>>{});
    });
  else if (p.wide) f(Tag<Any>{}, Tag<double>{}, std::integral_constant<int, kPack<double>>{});
  else f(Tag<Any>{}, Tag<float>{}, std::integral_constant<int, kPack<float>>{});
}

}  // namespace

void grpo_loss_forward(const GrpoParams& p, const Stream& stream) {
  const double share = 1 / double(p.count);
  with_types(p, [&](auto tag, auto sum_tag, auto pack) {
    using T = typename decltype(tag)::type;
    using A = typename decltype(sum_tag)::type;
    launch(stream, grpo_fwd_kernel<T, A, decltype(pack)::value>, grpo_chunks(p.count), kThreads, 0, p, share);
    if (grpo_chunks(p.count) > 1) launch(stream, grpo_finish_kernel<A>, 1, kThreads, 0, p, share);
  });
}

void grpo_loss_backward(const GrpoBackwardParams& q, const Stream& stream) {
  with_types(q.forward, [&](auto tag, auto sum_tag, auto pack) {
    using T = typename decltype(tag)::type;
    using A = typename decltype(sum_tag)::type;
    constexpr int kAtOnce = decltype(pack)::value;
    const int64_t blocks = ceil_div(q.forward.count, kThreads * kAtOnce);
    launch(stream, grpo_bwd_kernel<T, A, kAtOnce>, blocks, kThreads, 0, q, 1 / double(q.forward.count));
  });
}

}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
