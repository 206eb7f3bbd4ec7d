// sde_step forward and backward: one pass each over the images; backward recomputes the mean.
#include "../math/sde_step.h"
#include "primitives.cuh"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

// One expression for drawing, re-scoring and backward: they must round the mean alike, or the first ratio is not 1.
template <class A> __device__ inline A mean_of(A x, A v, A a, A b) { return multiply_add(a, x, b * v); }

// Threads of a block: with positions, one for each pack of those that a block takes.
template <bool kPositions, int N> constexpr int kSdeThreads = kPositions ? int(kSdePositions) / N : kThreads;

// What a thread takes of a sample: packs of N at first, first + step(), … below end. Of a chunk those that its block's other
// threads leave; with positions the same pack of each channel.
template <bool kPositions, int N> struct Part {
  int64_t sample, first, end, positions;
  __device__ explicit Part(const SdeParams& p) : positions(p.positions) {
    const unsigned parts = unsigned(sde_parts(p.size, p.positions));  // no more than there are blocks
    sample = blockIdx.x / parts;
    if constexpr (kPositions) {
      first = blockIdx.x % parts * kSdePositions + threadIdx.x * N;
      end = first < positions ? p.size : 0;
    } else {
      const int64_t chunk = blockIdx.x % parts * kSdeChunk;
      first = chunk + threadIdx.x * N, end = min_of(p.size, chunk + kSdeChunk);
    }
  }
  __device__ int64_t step() const { return kPositions ? positions : int64_t(kThreads * N); }
  __device__ int64_t left(int64_t i) const { return kPositions ? positions - first : end - i; }  // of the pack at i
  __device__ bool steps_aligned() const { return !kPositions || positions % N == 0; }
};

// The statistics of a sample from its sums Σ (x' - mean)² and Σ (v - v_reference)².
template <class A>
__device__ void write_scores(const SdeParams& p, const Step& step, int64_t sample, double square, double gap) {
  const Score score = score_of(p, step, square, gap);
  if (p.positions == 0) static_cast<A*>(p.log_prob)[sample] = A(score.log_prob);
  static_cast<A*>(p.std)[sample] = A(step.std);
  if (p.kl != nullptr) static_cast<A*>(p.kl)[sample] = A(score.kl);
}

// Merges the sums of a sample's chunks, in a fixed order. By one warp.
template <class A> __device__ void finish(const SdeParams& p, int64_t sample) {
  const int64_t parts = sde_parts(p.size, p.positions);
  const double* partial = p.partial + 2 * sample * parts;
  double square = 0, gap = 0;
  for (int64_t c = threadIdx.x % kWarp; c < parts; c += kWarp) square += partial[2 * c], gap += partial[2 * c + 1];
  const Step step = coefficients(p, sample);  // while the sums are on their way
  square = team_reduce(square, kWarp, Sum()), gap = team_reduce(gap, kWarp, Sum());
  if (threadIdx.x % kWarp == 0) write_scores<A>(p, step, sample, square, gap);
}

template <class A> __global__ void __launch_bounds__(kThreads, 4) sde_finish_kernel(SdeParams p) {
  const int64_t sample = blockIdx.x * int64_t(kThreads / kWarp) + threadIdx.x / kWarp;
  if (sample < p.batch) finish<A>(p, sample);
}

// The reference, or in its absence the velocity: loads that all threads make are in flight together, those behind a branch
// come later; one more of what is on its way costs no traffic.
template <class V, class A> __device__ Array<V, A> reference_of(const SdeParams& p, bool wanted) {
  const Image& image = wanted ? p.reference : p.velocity;
  return {image.data, image.type};
}

template <class T, class A, int N> using PackOf = Pack<typename Array<T, A>::Element, N>;

// V: dtype of velocity and reference; X: of sample, noise, next_sample and what is written.
template <class V, class X, class A, int N, bool kPositions>
__global__ void __launch_bounds__(kSdeThreads<kPositions, N>, (kPositions ? 3 : 4) * kThreads / kSdeThreads<kPositions, N>)
    sde_step_fwd_kernel(SdeParams p) {
  FINPERCEP_SHARED(Step, shared_step, 1);
  FINPERCEP_SHARED(Density, shared_density, 1);
  const Part<kPositions, N> part(p);
  const Array<V, A> velocity(p.velocity.data, p.velocity.type), reference = reference_of<V, A>(p, p.kl != nullptr);
  const Array<X, A> sample(p.sample.data, p.sample.type), drawn(p.drawn, p.sample.type), mean(p.mean, p.sample.type);
  const bool draws = p.noise.data != nullptr;
  const Array<X, A> other(draws ? p.noise.data : p.next_sample.data, draws ? p.noise.type : p.next_sample.type);
  const int64_t base = part.sample * p.size;
  const bool all_aligned = velocity.template aligned_at<N>(base) && sample.template aligned_at<N>(base) &&
                           other.template aligned_at<N>(base) && reference.template aligned_at<N>(base) &&
                           part.steps_aligned();
  PackOf<V, A, N> vs, references;
  PackOf<X, A, N> xs, others;
  const auto read = [&](int64_t i) {
    const int64_t at = base + i, left = part.left(i);
    if (i >= part.end) return;
    read_batch(all_aligned && left >= N, [&](auto whole) {
      vs = velocity.template load<N>(at, left, whole);
      xs = sample.template load<N>(at, left, whole);
      others = other.template load<N>(at, left, whole);
      references = reference.template load<N>(at, left, whole);
    });
  };
  int64_t i = part.first;
  read(i);  // on its way while the coefficients are worked out
  if (threadIdx.x == 0) {
    shared_step[0] = coefficients(p, part.sample);
    if constexpr (kPositions) shared_density[0] = density_of(p, shared_step[0]);
  }
  __syncthreads();
  const A a = A(shared_step[0].a), b = A(shared_step[0].b), spread = A(shared_step[0].spread);
  A squares[kPositions ? N : 1] = {}, gap = 0;
  for (; i < part.end; i += part.step()) {
    const int64_t at = base + i, left = part.left(i);
    A means[N], outcomes[N];
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const A v = A(widen(vs.at[k])), apart = v - A(widen(references.at[k]));
      means[k] = mean_of(A(widen(xs.at[k])), v, a, b);
      outcomes[k] = A(widen(others.at[k]));
      if (draws) outcomes[k] = sample.rounded(multiply_add(spread, outcomes[k], means[k]));  // scored as it will be stored
      const A away = outcomes[k] - means[k];
      if (k >= left) continue;
      squares[kPositions ? k : 0] += away * away;
      gap += apart * apart;
    }
    if (draws) drawn.store(at, left, outcomes);
    if (p.mean != nullptr) mean.store(at, left, means);
    read(i + part.step());
  }
  A square = 0;
  if constexpr (kPositions) {
    const Density density = shared_density[0];
#pragma unroll
    for (int k = 0; k < N; ++k) squares[k] = A(density.of(double(squares[k])));
    store_pack(static_cast<A*>(p.log_prob) + part.sample * p.positions + part.first, part.left(i), squares);
  } else {
    square = block_reduce(squares[0], Sum());
  }
  gap = block_reduce<kSdeThreads<kPositions, N>>(gap, Sum());
  if (threadIdx.x > 0) return;
  if (sde_parts(p.size, p.positions) == 1) return write_scores<A>(p, shared_step[0], part.sample, double(square), double(gap));
  double* partial = p.partial + 2 * int64_t(blockIdx.x);  // a launch of its own merges them
  partial[0] = double(square), partial[1] = double(gap);
}

template <class V, class X, class A, int N, bool kPositions>
__global__ void __launch_bounds__(kSdeThreads<kPositions, N>,
                                  (std::is_same_v<V, Any> ? 3 : 4) * kThreads / kSdeThreads<kPositions, N>)
    sde_step_bwd_kernel(SdeBackwardParams q) {
  FINPERCEP_SHARED(Weights<A>, shared_weights, 1);
  FINPERCEP_SHARED(A, shared_mean, 2);
  const SdeParams& p = q.forward;
  const Part<kPositions, N> part(p);
  if (threadIdx.x == 0) {
    const Step step = coefficients(p, part.sample);
    shared_mean[0] = A(step.a), shared_mean[1] = A(step.b);
    shared_weights[0] = weights<A>(q, step, part.sample);
  }
  __syncthreads();
  const A a = shared_mean[0], b = shared_mean[1];
  const Weights<A> w = shared_weights[0];
  const bool scores = q.grad_log_prob != nullptr, diverges = q.grad_kl != nullptr;
  const Array<V, A> velocity(p.velocity.data, p.velocity.type), reference = reference_of<V, A>(p, diverges);
  const Array<V, A> grad(q.grad_velocity, p.velocity.type);
  const Array<X, A> sample(p.sample.data, p.sample.type), next_sample(p.next_sample.data, p.next_sample.type);
  const Array<X, A> grad_drawn(q.grad_drawn.data, q.grad_drawn.type), grad_mean(q.grad_mean.data, q.grad_mean.type);
  const int64_t base = part.sample * p.size;
  const bool all_aligned = velocity.template aligned_at<N>(base) && reference.template aligned_at<N>(base) &&
                           sample.template aligned_at<N>(base) && next_sample.template aligned_at<N>(base) &&
                           part.steps_aligned();
  A slopes[kPositions ? N : 1] = {w.outcome};
  if constexpr (kPositions) {
    if (scores) {
      const A* upstream = static_cast<const A*>(q.grad_log_prob) + part.sample * p.positions + part.first;
      const auto pack = load_pack<N>(upstream, part.left(0));
#pragma unroll
      for (int k = 0; k < N; ++k) slopes[k] = w.outcome * pack.at[k];
    }
  }
  for (int64_t i = part.first; i < part.end; i += part.step()) {
    const int64_t at = base + i, left = part.left(i);
    const bool all_whole = all_aligned && left >= N;
    A results[N] = {};
    PackOf<V, A, N> vs, references;
    if (scores) {
      PackOf<X, A, N> xs, outcomes;
      read_batch(all_whole, [&](auto whole) {
        vs = velocity.template load<N>(at, left, whole);
        xs = sample.template load<N>(at, left, whole);
        outcomes = next_sample.template load<N>(at, left, whole);
        references = reference.template load<N>(at, left, whole);
      });
#pragma unroll
      for (int k = 0; k < N; ++k)
        results[k] = slopes[kPositions ? k : 0] *
                     (A(widen(outcomes.at[k])) - mean_of(A(widen(xs.at[k])), A(widen(vs.at[k])), a, b));
    } else if (diverges) {
      read_batch(all_whole, [&](auto whole) {
        vs = velocity.template load<N>(at, left, whole);
        references = reference.template load<N>(at, left, whole);
      });
    }
    if (diverges) {
#pragma unroll
      for (int k = 0; k < N; ++k) results[k] += w.gap * (A(widen(vs.at[k])) - A(widen(references.at[k])));
    }
    if (q.grad_drawn.data != nullptr) {
      const auto pack = grad_drawn.template load<N>(at, left);
#pragma unroll
      for (int k = 0; k < N; ++k) results[k] += w.pathwise * A(widen(pack.at[k]));
    }
    if (q.grad_mean.data != nullptr) {
      const auto pack = grad_mean.template load<N>(at, left);
#pragma unroll
      for (int k = 0; k < N; ++k) results[k] += w.pathwise * A(widen(pack.at[k]));
    }
    grad.store(at, left, results);
  }
}

// f(Tag<V>{}, Tag<X>{}, Tag<A>{}, pack): one dtype for all; half-precision velocities beside fp32 images, as autocast gives
// them; else Any. `velocities` have the first dtype, `images` the second. The latter two take packs as large as the type
// they sum in: the order of a sum, and with it a log-probability, is then that of tensors converted first.
template <class F>
void with_types(const SdeParams& p, std::initializer_list<Image> velocities, std::initializer_list<Image> images, const F& f) {
  const DType v = p.velocity.type, x = p.sample.type;
  bool known = true;
  for (const Image& image : velocities) known = known && (image.data == nullptr || image.type == v);
  for (const Image& image : images) known = known && (image.data == nullptr || image.type == x);
  if (known && v == x)
    return for_float(x, [&](auto tag) {
      using T = typename decltype(tag)::type;
      f(tag, tag, Tag<accum_t<T>>{}, std::integral_constant<int, kPack<T>>{});
    });
  if (known && x == DType::f32 && v == DType::bf16)
    return f(Tag<bf16>{}, Tag<float>{}, Tag<float>{}, std::integral_constant<int, kPack<float>>{});
  if (known && x == DType::f32 && v == DType::f16)
    return f(Tag<half>{}, Tag<float>{}, Tag<float>{}, std::integral_constant<int, kPack<float>>{});
  if (p.wide) return f(Tag<Any>{}, Tag<Any>{}, Tag<double>{}, std::integral_constant<int, kPack<double>>{});
  f(Tag<Any>{}, Tag<Any>{}, Tag<float>{}, std::integral_constant<int, kPack<float>>{});
}

// f(true_type) for positions, f(false_type) for samples
template <class F> void with_positions(const SdeParams& p, const F& f) {
  if (p.positions > 0) f(std::true_type());
  else f(std::false_type());
}

}  // namespace

void sde_step_forward(const SdeParams& p, const Stream& stream) {
  const int64_t parts = sde_parts(p.size, p.positions);
  with_types(p, {p.reference}, {p.noise, p.next_sample}, [&](auto v, auto x, auto a, auto pack) {
    using A = typename decltype(a)::type;
    with_positions(p, [&](auto positions) {
      constexpr int kSize = decltype(pack)::value;
      constexpr bool kPositions = decltype(positions)::value;
      const auto kernel = sde_step_fwd_kernel<typename decltype(v)::type, typename decltype(x)::type, A, kSize, kPositions>;
      launch(stream, kernel, p.batch * parts, kSdeThreads<kPositions, kSize>, 0, p);
    });
    if (parts > 1) launch(stream, sde_finish_kernel<A>, ceil_div(p.batch, kThreads / kWarp), kThreads, 0, p);
  });
}

void sde_step_backward(const SdeBackwardParams& q, const Stream& stream) {
  const SdeParams& p = q.forward;
  with_types(p, {p.reference}, {p.next_sample, q.grad_drawn, q.grad_mean}, [&](auto v, auto x, auto a, auto pack) {
    using A = typename decltype(a)::type;
    with_positions(p, [&](auto positions) {
      constexpr int kSize = decltype(pack)::value;
      constexpr bool kPositions = decltype(positions)::value;
      const auto kernel = sde_step_bwd_kernel<typename decltype(v)::type, typename decltype(x)::type, A, kSize, kPositions>;
      launch(stream, kernel, p.batch * sde_parts(p.size, p.positions), kSdeThreads<kPositions, kSize>, 0, q);
    });
  });
}

}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
