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

// squares[i] += (outcome - mean)² of each position, gaps += (v - reference)²: one channel of a row of positions.
template <bool kReference, class T, class Outcome, class A>
__attribute__((noinline)) void position_block(const T* x, const T* v, const Outcome* outcome, const T* reference, A a, A b,
                                              int64_t n, A* squares, LaneSum<A>& gaps) {
  const auto add = [&](const vec<A>& square, const vec<A>& sample, const vec<A>& velocity, const vec<A>& end) -> vec<A> {
    const vec<A> away = end - mean_of(sample, velocity, a, b);
    return square + away * away;
  };
  vec<A> gap{};
  int64_t i = 0;
  for (; i + lanes_of<A> <= n; i += lanes_of<A>) {
    prefetch_ahead<1536>(x + i), prefetch_ahead<1536>(v + i), prefetch_ahead<1536>(outcome + i);
    const vec<A> velocity = load_wide<A>(v + i);
    store_vec(squares + i, add(load_wide<A>(squares + i), load_wide<A>(x + i), velocity, load_wide<A>(outcome + i)));
    if constexpr (kReference) {
      prefetch_ahead<1536>(reference + i);
      const vec<A> apart = velocity - load_wide<A>(reference + i);
      gap += apart * apart;
    }
  }
  if (const int64_t rest = n - i; rest > 0) {
    const vec<A> velocity = load_rest<A>(v + i, rest);
    const vec<A> sum = add(load_rest<A>(squares + i, rest), load_rest<A>(x + i, rest), velocity, load_rest<A>(outcome + i, rest));
    store_rest(squares + i, sum, rest);
    if constexpr (kReference) {
      const vec<A> apart = velocity - load_rest<A>(reference + i, rest);
      gap += apart * apart;
    }
  }
  if constexpr (kReference) gaps.add(gap);
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

// One block of images: what is to be stored of it is, and score(x, v, outcome, reference) sums; reference may be null.
template <class T, class A, class Score>
void forward_block(const SdeParams& p, const Step& step, int64_t offset, int64_t n, bool stream, const Score& score) {
  A xs[kBlock], vs[kBlock], other[kBlock], references[kBlock], out[kBlock];
  const A a = A(step.a), b = A(step.b);
  const T* x = load<T>(p.sample, offset, xs, n);
  const T* v = load<T>(p.velocity, offset, vs, n);
  const T* reference = p.reference.data != nullptr ? load<T>(p.reference, offset, references, n) : nullptr;
  if (p.noise.data != nullptr) {
    draw_block(x, v, load<T>(p.noise, offset, other, n), a, b, A(step.spread), out, n);
    round_any(p.sample.type, out, n);  // scored as it will be stored
    store_any(p.drawn, p.sample.type, offset, out, n, stream);
    score(x, v, out, reference);
  } else {
    score(x, v, load<T>(p.next_sample, offset, other, n), reference);
  }
  if (p.mean != nullptr) {
    mean_block(x, v, a, b, other, n);
    store_any(p.mean, p.sample.type, offset, other, n, stream);
  }
}

// One chunk of one sample; sums[0] = Σ (x' - mean)², sums[1] = Σ (v - v_reference)²
template <class T, class A>
void forward_chunk(const SdeParams& p, const Step& step, int64_t begin, int64_t count, bool stream, double* sums) {
  const A a = A(step.a), b = A(step.b);
  LaneSum<A> squares, gaps;
  for (int64_t offset = begin; offset < begin + count; offset += kBlock) {
    const int64_t n = min_of(kBlock, begin + count - offset);
    forward_block<T, A>(p, step, offset, n, stream, [&](const T* x, const T* v, const auto* outcome, const T* reference) {
      if (reference != nullptr) score_block<true>(x, v, outcome, reference, a, b, n, squares, gaps);
      else score_block<false>(x, v, outcome, reference, a, b, n, squares, gaps);
    });
  }
  sums[0] = squares.total(), sums[1] = gaps.total();
}

// A row of n positions of one sample through all channels: their log_prob; sums[1] = Σ (v - v_reference)²
template <class T, class A>
void forward_positions(const SdeParams& p, const Step& step, int64_t sample, int64_t first, int64_t n, bool stream,
                       double* sums) {
  static_assert(kSdePositions <= kBlock, "one block of each channel");
  const A a = A(step.a), b = A(step.b);
  A squares[kSdePositions] = {};
  LaneSum<A> gaps;
  for (int64_t at = first; at < p.size; at += p.positions)
    forward_block<T, A>(p, step, sample * p.size + at, n, stream,
                        [&](const T* x, const T* v, const auto* outcome, const T* reference) {
                          if (reference != nullptr) position_block<true>(x, v, outcome, reference, a, b, n, squares, gaps);
                          else position_block<false>(x, v, outcome, reference, a, b, n, squares, gaps);
                        });
  const Density density = density_of(p, step);
  A* log_prob = static_cast<A*>(p.log_prob) + sample * p.positions + first;
  for (int64_t i = 0; i < n; ++i) log_prob[i] = A(density.of(double(squares[i])));
  sums[0] = 0, sums[1] = gaps.total();
}

template <class A> void finish_sample(const SdeParams& p, int64_t sample) {
  const Step step = coefficients(p, sample);
  const int64_t parts = sde_parts(p.size, p.positions);
  double square = 0, gap = 0;
  for (int64_t c = 0; c < parts; ++c) {
    square += p.partial[2 * (sample * parts + c)];
    gap += p.partial[2 * (sample * parts + c) + 1];
  }
  const Score score = score_of(p, step, square, gap);
  if (p.positions == 0) static_cast<A*>(p.log_prob)[sample] = A(score.log_prob);
  static_cast<A*>(p.std)[sample] = A(step.std);
  if (p.kl != nullptr) static_cast<A*>(p.kl)[sample] = A(score.kl);
}

// body(part, sample, first, count) for the parts of all samples: `count` numbers, or positions, from `first` on.
template <class F> void for_parts(const SdeParams& p, const Parallel& pool, const F& body) {
  const int64_t parts = sde_parts(p.size, p.positions);
  const int64_t width = p.positions > 0 ? kSdePositions : kSdeChunk, whole = p.positions > 0 ? p.positions : p.size;
  const int64_t grain = p.positions > 0 ? grain_of(min_of(width, whole) * (p.size / p.positions)) : 2;
  parallel_for(pool, p.batch * parts, grain, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = (part % parts) * width;
      body(part, part / parts, first, min_of(width, whole - first));
    }
  });
}

template <class T, class A> void forward_as(const SdeParams& p, const Parallel& pool) {
  const bool stream = p.batch * p.size * bytes_of(p.sample.type) >= kStreamBytes;
  for_parts(p, pool, [&](int64_t part, int64_t sample, int64_t first, int64_t count) {
    const Step step = coefficients(p, sample);
    double* sums = p.partial + 2 * part;
    if (p.positions > 0) forward_positions<T, A>(p, step, sample, first, count, stream, sums);
    else forward_chunk<T, A>(p, step, sample * p.size + first, count, stream, sums);
  });
  for (int64_t sample = 0; sample < p.batch; ++sample) finish_sample<A>(p, sample);
}

template <class A> void forward(const SdeParams& p, const Parallel& pool) {
  for_shared<A>({p.velocity, p.noise, p.next_sample, p.reference}, p.sample.type,
                [&](auto tag) { forward_as<typename decltype(tag)::type, A>(p, pool); });
}

// ---- backward -----------------------------------------------------------------------------------------------------

// slopes: what (x' - mean) is multiplied by at each position; without kPositions w.outcome everywhere.
template <bool kPositions, class T, class A>
void gradient_block(const T* x, const T* v, const T* outcome, const T* reference, A a, A b, const Weights<A>& w,
                    const A* slopes, A* grad, int64_t n) {
  const auto gradient = [&](const auto& slope, const vec<A>& sample, const vec<A>& velocity, const vec<A>& end,
                            const vec<A>& other) -> vec<A> {
    return slope * (end - mean_of(sample, velocity, a, b)) + w.gap * (velocity - other);
  };
  const auto slope_of = [&](int64_t at) {
    if constexpr (kPositions) return load_wide<A>(slopes + at);
    else return w.outcome;
  };
  const auto slope_of_rest = [&](int64_t at, int64_t count) {
    if constexpr (kPositions) return load_rest<A>(slopes + at, count);
    else return w.outcome;
  };
  int64_t i = 0;
  for (; i + lanes_of<A> <= n; i += lanes_of<A>) {
    prefetch_ahead(x + i), prefetch_ahead(v + i), prefetch_ahead(outcome + i), prefetch_ahead(reference + i);
    store_vec(grad + i, gradient(slope_of(i), load_wide<A>(x + i), load_wide<A>(v + i), load_wide<A>(outcome + i),
                                 load_wide<A>(reference + i)));
  }
  const int64_t rest = n - i;
  if (rest == 0) return;
  store_rest(grad + i, gradient(slope_of_rest(i, rest), load_rest<A>(x + i, rest), load_rest<A>(v + i, rest),
                                load_rest<A>(outcome + i, rest), load_rest<A>(reference + i, rest)), rest);
}

template <bool kPositions, class T, class A>
void backward_block(const SdeBackwardParams& q, const Step& step, const Weights<A>& w, const A* slopes, int64_t offset,
                    int64_t n, bool stream) {
  const SdeParams& p = q.forward;
  A xs[kBlock], vs[kBlock], other[kBlock], references[kBlock], grad[kBlock];
  const T* v = load<T>(p.velocity, offset, vs, n);
  const T* reference = q.grad_kl != nullptr ? load<T>(p.reference, offset, references, n) : v;
  if (q.grad_log_prob != nullptr) {
    const T *x = load<T>(p.sample, offset, xs, n), *outcome = load<T>(p.next_sample, offset, other, n);
    gradient_block<kPositions>(x, v, outcome, reference, A(step.a), A(step.b), w, slopes, grad, n);
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

template <class T, class A>
void backward_chunk(const SdeBackwardParams& q, const Step& step, const Weights<A>& w, int64_t begin, int64_t count,
                    bool stream) {
  for (int64_t offset = begin; offset < begin + count; offset += kBlock)
    backward_block<false, T, A>(q, step, w, nullptr, offset, min_of(kBlock, begin + count - offset), stream);
}

template <class T, class A>
void backward_positions(const SdeBackwardParams& q, const Step& step, const Weights<A>& w, int64_t sample, int64_t first,
                        int64_t n, bool stream) {
  const SdeParams& p = q.forward;
  A slopes[kSdePositions];
  if (q.grad_log_prob != nullptr) {
    const A* upstream = static_cast<const A*>(q.grad_log_prob) + sample * p.positions + first;
    for (int64_t i = 0; i < n; ++i) slopes[i] = w.outcome * upstream[i];
  }
  for (int64_t at = first; at < p.size; at += p.positions)
    backward_block<true, T, A>(q, step, w, slopes, sample * p.size + at, n, stream);
}

template <class T, class A> void backward_as(const SdeBackwardParams& q, const Parallel& pool) {
  const SdeParams& p = q.forward;
  const bool stream = p.batch * p.size * bytes_of(p.velocity.type) >= kStreamBytes;
  for_parts(p, pool, [&](int64_t, int64_t sample, int64_t first, int64_t count) {
    const Step step = coefficients(p, sample);
    const Weights<A> w = weights<A>(q, step, sample);
    if (p.positions > 0) backward_positions<T>(q, step, w, sample, first, count, stream);
    else backward_chunk<T>(q, step, w, sample * p.size + first, count, stream);
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
