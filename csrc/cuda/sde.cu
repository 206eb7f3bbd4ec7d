// sde_step forward and backward: one pass each over the images; backward recomputes the mean.
#include "../math/sde_step.h"
#include "primitives.cuh"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

// One expression for drawing, re-scoring and backward: they must round the mean alike, or the first ratio is not 1.
template <class A> __device__ inline A mean_of(A x, A v, A a, A b) { return multiply_add(a, x, b * v); }

// The part of a sample that a block takes.
struct Part {
  int64_t sample, first, end;  // positions in the sample
  __device__ explicit Part(const SdeParams& p) {
    const int64_t chunks = sde_chunks(p.size);
    sample = blockIdx.x / chunks, first = blockIdx.x % chunks * kSdeChunk;
    end = min_of(p.size, first + kSdeChunk);
  }
};

// Merges the sums of a sample's chunks, in a fixed order. By one warp.
template <class A> __device__ void finish(const SdeParams& p, int64_t sample) {
  const int64_t chunks = sde_chunks(p.size);
  const double* partial = p.partial + 2 * sample * chunks;
  double square = 0, gap = 0;
  for (int64_t c = threadIdx.x % kWarp; c < chunks; c += kWarp) square += partial[2 * c], gap += partial[2 * c + 1];
  square = team_reduce(square, kWarp, Sum()), gap = team_reduce(gap, kWarp, Sum());
  if (threadIdx.x % kWarp > 0) return;
  const Step step = coefficients(p, sample);
  const Score score = score_of(p, step, square, gap);
  static_cast<A*>(p.log_prob)[sample] = A(score.log_prob);
  static_cast<A*>(p.std)[sample] = A(step.std);
  if (p.kl != nullptr) static_cast<A*>(p.kl)[sample] = A(score.kl);
}

template <class A> __global__ void __launch_bounds__(kThreads, 1) sde_finish_kernel(SdeParams p) {
  const int64_t sample = blockIdx.x * int64_t(kThreads / kWarp) + threadIdx.x / kWarp;
  if (sample < p.batch) finish<A>(p, sample);
}

// V: dtype of velocity and reference; X: of sample, noise, next_sample and what is written.
template <class V, class X, class A, int N> __global__ void __launch_bounds__(kThreads, 1) sde_step_fwd_kernel(SdeParams p) {
  FINPERCEP_SHARED(Step, shared_step, 1);
  const Part part(p);
  if (threadIdx.x == 0) shared_step[0] = coefficients(p, part.sample);
  __syncthreads();
  const A a = A(shared_step[0].a), b = A(shared_step[0].b), spread = A(shared_step[0].spread);
  const Array<V, A> velocity(p.velocity.data, p.velocity.type), reference(p.reference.data, p.reference.type);
  const Array<X, A> sample(p.sample.data, p.sample.type), drawn(p.drawn, p.sample.type), mean(p.mean, p.sample.type);
  const bool draws = p.noise.data != nullptr;
  const Array<X, A> other(draws ? p.noise.data : p.next_sample.data, draws ? p.noise.type : p.next_sample.type);
  A square = 0, gap = 0;
  for (int64_t i = part.first + threadIdx.x * N; i < part.end; i += kThreads * N) {
    const int64_t at = part.sample * p.size + i, left = part.end - i;
    const auto vs = velocity.template load<N>(at, left);
    const auto xs = sample.template load<N>(at, left);
    const auto others = other.template load<N>(at, left);
    auto references = vs;
    if (p.kl != nullptr) references = reference.template load<N>(at, left);
    A means[N], outcomes[N];
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const A v = A(widen(vs.at[k])), apart = v - A(widen(references.at[k]));
      means[k] = mean_of(A(widen(xs.at[k])), v, a, b);
      outcomes[k] = A(widen(others.at[k]));
      if (draws) outcomes[k] = sample.rounded(multiply_add(spread, outcomes[k], means[k]));  // scored as it will be stored
      const A away = outcomes[k] - means[k];
      if (k >= left) continue;
      square += away * away;
      gap += apart * apart;
    }
    if (draws) drawn.store(at, left, outcomes);
    if (p.mean != nullptr) mean.store(at, left, means);
  }
  square = block_reduce(square, Sum()), gap = block_reduce(gap, Sum());
  if (threadIdx.x == 0) p.partial[2 * int64_t(blockIdx.x)] = double(square), p.partial[2 * int64_t(blockIdx.x) + 1] = double(gap);
  if (sde_chunks(p.size) > 1) return;  // a launch of its own merges them
  __syncthreads();
  if (threadIdx.x < kWarp) finish<A>(p, part.sample);
}

template <class V, class X, class A, int N>
__global__ void __launch_bounds__(kThreads, 1) sde_step_bwd_kernel(SdeBackwardParams q) {
  FINPERCEP_SHARED(Weights<A>, shared_weights, 1);
  FINPERCEP_SHARED(A, shared_mean, 2);
  const SdeParams& p = q.forward;
  const Part part(p);
  if (threadIdx.x == 0) {
    const Step step = coefficients(p, part.sample);
    shared_mean[0] = A(step.a), shared_mean[1] = A(step.b);
    shared_weights[0] = weights<A>(q, step, part.sample);
  }
  __syncthreads();
  const A a = shared_mean[0], b = shared_mean[1];
  const Weights<A> w = shared_weights[0];
  const Array<V, A> velocity(p.velocity.data, p.velocity.type), reference(p.reference.data, p.reference.type);
  const Array<V, A> grad(q.grad_velocity, p.velocity.type);
  const Array<X, A> sample(p.sample.data, p.sample.type), next_sample(p.next_sample.data, p.next_sample.type);
  const Array<X, A> grad_drawn(q.grad_drawn.data, q.grad_drawn.type), grad_mean(q.grad_mean.data, q.grad_mean.type);
  const bool scores = q.grad_log_prob != nullptr, diverges = q.grad_kl != nullptr;
  for (int64_t i = part.first + threadIdx.x * N; i < part.end; i += kThreads * N) {
    const int64_t at = part.sample * p.size + i, left = part.end - i;
    A results[N] = {};
    if (scores || diverges) {
      const auto vs = velocity.template load<N>(at, left);
      if (scores) {
        const auto xs = sample.template load<N>(at, left);
        const auto outcomes = next_sample.template load<N>(at, left);
#pragma unroll
        for (int k = 0; k < N; ++k)
          results[k] = w.outcome * (A(widen(outcomes.at[k])) - mean_of(A(widen(xs.at[k])), A(widen(vs.at[k])), a, b));
      }
      if (diverges) {
        const auto references = reference.template load<N>(at, left);
#pragma unroll
        for (int k = 0; k < N; ++k) results[k] += w.gap * (A(widen(vs.at[k])) - A(widen(references.at[k])));
      }
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

}  // namespace

void sde_step_forward(const SdeParams& p, const Stream& stream) {
  const int64_t chunks = sde_chunks(p.size);
  with_types(p, {p.reference}, {p.noise, p.next_sample}, [&](auto v, auto x, auto a, auto pack) {
    using A = typename decltype(a)::type;
    const auto kernel = sde_step_fwd_kernel<typename decltype(v)::type, typename decltype(x)::type, A, decltype(pack)::value>;
    launch(stream, kernel, p.batch * chunks, kThreads, 0, p);
    if (chunks > 1) launch(stream, sde_finish_kernel<A>, ceil_div(p.batch, kThreads / kWarp), kThreads, 0, p);
  });
}

void sde_step_backward(const SdeBackwardParams& q, const Stream& stream) {
  const SdeParams& p = q.forward;
  with_types(p, {p.reference}, {p.next_sample, q.grad_drawn, q.grad_mean}, [&](auto v, auto x, auto a, auto pack) {
    using A = typename decltype(a)::type;
    const auto kernel = sde_step_bwd_kernel<typename decltype(v)::type, typename decltype(x)::type, A, decltype(pack)::value>;
    launch(stream, kernel, p.batch * sde_chunks(p.size), kThreads, 0, q);
  });
}

}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
