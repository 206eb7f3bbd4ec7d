// sde_step forward and backward: one pass each over the images. Compiled once per SIMD level.
//
// A: the type of the arithmetic. T: the type in which blocks of images are read: a half-precision type that all images
// of a call share is converted in registers; any other mix goes through buffers of A, and T is A.
#include "../math/sde_step.h"

#include "any_block.h"
#include "vec.h"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

// One expression for drawing, re-scoring and backward: they must round the mean alike, or the first ratio is not 1.
template <class F, class A> inline F mean_of(const F& x, const F& v, A a, A b) { return a * x + b * v; }

// The last numbers of a block, fewer than a vector has, as a vector filled up with zeros: they round as the others do.
template <class A, class T> inline vec<A> load_rest(const T* from, int64_t n) {
  T part[lanes_of<A>] = {};
  __builtin_memcpy(part, from, n * sizeof(T));
  return load_wide<A>(part);
}
template <class A> inline void store_rest(A* to, const vec<A>& v, int64_t n) {
  A part[lanes_of<A>];
  store_vec(part, v);
  __builtin_memcpy(to, part, n * sizeof(A));
}

template <class T, class A> void mean_block(const T* x, const T* v, A a, A b, A* mean, int64_t n) {
  for (int64_t i = 0; i < n; ++i) mean[i] = mean_of(widen(x[i]), widen(v[i]), a, b);
}

template <class T, class A>
void draw_block(const T* x, const T* v, const T* noise, A a, A b, A spread, A* out, int64_t n) {
  const auto draw = [&](const vec<A>& sample, const vec<A>& velocity, const vec<A>& normal) -> vec<A> {
    return mean_of(sample, velocity, a, b) + spread * normal;
  };
  int64_t i = 0;
  for (; i + lanes_of<A> <= n; i += lanes_of<A>) {
    prefetch_ahead(x + i), prefetch_ahead(v + i), prefetch_ahead(noise + i);
    store_vec(out + i, draw(load_wide<A>(x + i), load_wide<A>(v + i), load_wide<A>(noise + i)));
  }
  const int64_t rest = n - i;
  if (rest == 0) return;
  store_rest(out + i, draw(load_rest<A>(x + i, rest), load_rest<A>(v + i, rest), load_rest<A>(noise + i, rest)), rest);
}

// Vectors that are added up in the type of the arithmetic, before they go on in double: few, so that the rounding of
// many equal signs does not reach the last place of a log-probability.
constexpr int64_t kRun = 32;

// A chunk's running sum, lane by lane and in double: lanes are added up once per chunk, not once per run.
template <class A> struct LaneSum {
  double lanes[lanes_of<A>] = {};

  void add(const vec<A>& block) {
    A part[lanes_of<A>];
    store_vec(part, block);
    for (int k = 0; k < lanes_of<A>; ++k) lanes[k] += double(part[k]);
  }
  double total() const {
    double sum = 0;
    for (const double lane : lanes) sum += lane;
    return sum;
  }
};

// squares += (outcome - mean)², gaps += (v - reference)²; the four are read side by side, which is faster than one after
// the other.
template <bool kReference, class T, class Outcome, class A>
__attribute__((noinline)) void score_block(const T* x, const T* v, const Outcome* outcome, const T* reference, A a, A b,
                                           int64_t n, LaneSum<A>& squares, LaneSum<A>& gaps) {
  const auto square_of = [&](const vec<A>& sample, const vec<A>& velocity, const vec<A>& end) -> vec<A> {
    const vec<A> away = end - mean_of(sample, velocity, a, b);
    return away * away;
  };
  const auto gap_of = [&](const vec<A>& velocity, const vec<A>& other) -> vec<A> {
    const vec<A> apart = velocity - other;
    return apart * apart;
  };
  int64_t i = 0;
  while (i + lanes_of<A> <= n) {
    vec<A> square{}, gap{};
    for (const int64_t stop = min_of(n, i + kRun * lanes_of<A>); i + lanes_of<A> <= stop; i += lanes_of<A>) {
      prefetch_ahead<1536>(x + i), prefetch_ahead<1536>(v + i), prefetch_ahead<1536>(outcome + i);
      const vec<A> velocity = load_wide<A>(v + i);
      square += square_of(load_wide<A>(x + i), velocity, load_wide<A>(outcome + i));
      if constexpr (kReference) {
        prefetch_ahead<1536>(reference + i);
        gap += gap_of(velocity, load_wide<A>(reference + i));
      }
    }
    squares.add(square);
    if constexpr (kReference) gaps.add(gap);
  }
  if (const int64_t rest = n - i; rest > 0) {
    const vec<A> velocity = load_rest<A>(v + i, rest);
    squares.add(square_of(load_rest<A>(x + i, rest), velocity, load_rest<A>(outcome + i, rest)));
    if constexpr (kReference) gaps.add(gap_of(velocity, load_rest<A>(reference + i, rest)));
  }
}

template <class T, class A> inline const T* load(const Image& image, int64_t offset, A* buffer, int64_t n) {
  if constexpr (sizeof(T) < sizeof(A)) return static_cast<const T*>(image.data) + offset;
  else return load_any(image.data, image.type, offset, buffer, n);
}

// f(Tag<T>{}) for the type of the images' blocks
template <class A, int kCount, class F> void for_shared(const Image (&images)[kCount], DType shared, const F& f) {
  for (const Image& image : images)
    if (image.data != nullptr && image.type != shared) shared = DType::f32;
  if constexpr (sizeof(A) == sizeof(float)) {
    if (shared == DType::bf16) return f(Tag<bf16>{});
    if (shared == DType::f16) return f(Tag<half>{});
  }
  f(Tag<A>{});
}

// One chunk of one sample; sums[0] = Σ (x' - mean)², sums[1] = Σ (v - v_reference)²
template <class T, class A>
void forward_chunk(const SdeParams& p, const Step& step, int64_t begin, int64_t count, bool stream, double* sums) {
  A xs[kBlock], vs[kBlock], other[kBlock], references[kBlock], out[kBlock];
  const A a = A(step.a), b = A(step.b);
  LaneSum<A> squares, gaps;
  for (int64_t offset = begin; offset < begin + count; offset += kBlock) {
    const int64_t n = min_of(kBlock, begin + count - offset);
    const T* x = load<T>(p.sample, offset, xs, n);
    const T* v = load<T>(p.velocity, offset, vs, n);
    const T* reference = p.reference.data != nullptr ? load<T>(p.reference, offset, references, n) : nullptr;
    const auto score = [&](const auto* outcome) {
      if (reference != nullptr) score_block<true>(x, v, outcome, reference, a, b, n, squares, gaps);
      else score_block<false>(x, v, outcome, reference, a, b, n, squares, gaps);
    };
    if (p.noise.data != nullptr) {
      draw_block(x, v, load<T>(p.noise, offset, other, n), a, b, A(step.spread), out, n);
      round_any(p.sample.type, out, n);  // scored as it will be stored
      store_any(p.drawn, p.sample.type, offset, out, n, stream);
      score(out);
    } else {
      score(load<T>(p.next_sample, offset, other, n));
    }
    if (p.mean != nullptr) {
      mean_block(x, v, a, b, other, n);
      store_any(p.mean, p.sample.type, offset, other, n, stream);
    }
  }
  sums[0] = squares.total(), sums[1] = gaps.total();
}

template <class A> void finish_sample(const SdeParams& p, int64_t sample) {
  const Step step = coefficients(p, sample);
  const int64_t chunks = sde_chunks(p.size);
  double square = 0, gap = 0;
  for (int64_t c = 0; c < chunks; ++c) {
    square += p.partial[2 * (sample * chunks + c)];
    gap += p.partial[2 * (sample * chunks + c) + 1];
  }
  const Score score = score_of(p, step, square, gap);
  static_cast<A*>(p.log_prob)[sample] = A(score.log_prob);
  static_cast<A*>(p.std)[sample] = A(step.std);
  if (p.kl != nullptr) static_cast<A*>(p.kl)[sample] = A(score.kl);
}

template <class T, class A> void forward_as(const SdeParams& p, const Parallel& pool) {
  const int64_t chunks = sde_chunks(p.size);
  const bool stream = p.batch * p.size * bytes_of(p.sample.type) >= kStreamBytes;
  parallel_for(pool, p.batch * chunks, 2, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t sample = task / chunks, first = (task % chunks) * kSdeChunk;
      const int64_t count = min_of(kSdeChunk, p.size - first);
      forward_chunk<T, A>(p, coefficients(p, sample), sample * p.size + first, count, stream, p.partial + 2 * task);
    }
  });
  for (int64_t sample = 0; sample < p.batch; ++sample) finish_sample<A>(p, sample);
}

template <class A> void forward(const SdeParams& p, const Parallel& pool) {
  for_shared<A>({p.velocity, p.noise, p.next_sample, p.reference}, p.sample.type,
                [&](auto tag) { forward_as<typename decltype(tag)::type, A>(p, pool); });
}

// ---- backward -----------------------------------------------------------------------------------------------------

template <class T, class A>
void gradient_block(const T* x, const T* v, const T* outcome, const T* reference, A a, A b, const Weights<A>& w,
                    A* grad, int64_t n) {
  const auto gradient = [&](const vec<A>& sample, const vec<A>& velocity, const vec<A>& end,
                            const vec<A>& other) -> vec<A> {
    return w.outcome * (end - mean_of(sample, velocity, a, b)) + w.gap * (velocity - other);
  };
  int64_t i = 0;
  for (; i + lanes_of<A> <= n; i += lanes_of<A>) {
    prefetch_ahead(x + i), prefetch_ahead(v + i), prefetch_ahead(outcome + i), prefetch_ahead(reference + i);
    store_vec(grad + i, gradient(load_wide<A>(x + i), load_wide<A>(v + i), load_wide<A>(outcome + i),
                                 load_wide<A>(reference + i)));
  }
  const int64_t rest = n - i;
  if (rest == 0) return;
  store_rest(grad + i, gradient(load_rest<A>(x + i, rest), load_rest<A>(v + i, rest), load_rest<A>(outcome + i, rest),
                                load_rest<A>(reference + i, rest)), rest);
}

template <class T, class A>
void backward_chunk(const SdeBackwardParams& q, const Step& step, const Weights<A>& w, int64_t begin, int64_t count,
                    bool stream) {
  const SdeParams& p = q.forward;
  A xs[kBlock], vs[kBlock], other[kBlock], references[kBlock], grad[kBlock];
  const A a = A(step.a), b = A(step.b);
  for (int64_t offset = begin; offset < begin + count; offset += kBlock) {
    const int64_t n = min_of(kBlock, begin + count - offset);
    const T* v = load<T>(p.velocity, offset, vs, n);
    const T* reference = q.grad_kl != nullptr ? load<T>(p.reference, offset, references, n) : v;
    if (q.grad_log_prob != nullptr) {
      const T *x = load<T>(p.sample, offset, xs, n), *outcome = load<T>(p.next_sample, offset, other, n);
      gradient_block(x, v, outcome, reference, a, b, w, grad, n);
    } else {
      for (int64_t i = 0; i < n; ++i) grad[i] = w.gap * (widen(v[i]) - widen(reference[i]));
    }
    const Image paths[] = {q.grad_drawn, q.grad_mean};
    for (const Image& path : paths) {
      if (path.data == nullptr) continue;
      const A* upstream = load<A>(path, offset, other, n);
      for (int64_t i = 0; i < n; ++i) grad[i] += w.pathwise * upstream[i];
    }
    store_any(q.grad_velocity, p.velocity.type, offset, grad, n, stream);
  }
}

template <class T, class A> void backward_as(const SdeBackwardParams& q, const Parallel& pool) {
  const SdeParams& p = q.forward;
  const int64_t chunks = sde_chunks(p.size);
  const bool stream = p.batch * p.size * bytes_of(p.velocity.type) >= kStreamBytes;
  parallel_for(pool, p.batch * chunks, 2, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t sample = task / chunks, first = (task % chunks) * kSdeChunk;
      const Step step = coefficients(p, sample);
      const int64_t count = min_of(kSdeChunk, p.size - first);
      backward_chunk<T>(q, step, weights<A>(q, step, sample), sample * p.size + first, count, stream);
    }
  });
}

template <class A> void backward(const SdeBackwardParams& q, const Parallel& pool) {
  const SdeParams& p = q.forward;
  for_shared<A>({p.velocity, p.next_sample, p.reference}, p.sample.type,
                [&](auto tag) { backward_as<typename decltype(tag)::type, A>(q, pool); });
}

}  // namespace

void sde_step_forward(const SdeParams& p, const Parallel& pool) {
  if (p.wide) forward<double>(p, pool);
  else forward<float>(p, pool);
}

void sde_step_backward(const SdeBackwardParams& q, const Parallel& pool) {
  if (q.forward.wide) backward<double>(q, pool);
  else backward<float>(q, pool);
}

}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
