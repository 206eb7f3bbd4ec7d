// group_advantage: blocks of equal size in one pass that stays in L1, or exact int64 ids through a hash table.
// Compiled once per SIMD level.
#include "../include/advantage.h"

#include "any_block.h"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

template <class A> struct Group {
  int64_t finite = 0;
  A mean = 0, squares = 0;      // Σ (r - mean)² over the finite rewards
  A low = A(__builtin_inf()), high = A(-__builtin_inf());

  bool comparable() const { return finite >= 2; }
  bool lively() const { return finite >= 2 && high > low; }
  A std(int64_t correction) const {
    return lively() ? A(__builtin_sqrt(double(squares) / double(max_of(finite - correction, int64_t(1))))) : A(0);
  }
};

template <class A> inline bool is_finite(A x) { return x - x == 0; }

// What all groups have to say together; chunks of groups are merged in order.
struct Totals {
  int64_t groups = 0, zero_variance = 0, single = 0, finite = 0;
  double sum = 0, std = 0, comparable = 0;

  template <class A> void add(const Group<A>& g, int64_t correction) {
    groups += 1;
    finite += g.finite;
    sum += double(g.mean) * double(g.finite);
    if (!g.comparable()) { single += 1; return; }
    comparable += 1;
    std += double(g.std(correction));
    if (!g.lively()) zero_variance += 1;
  }
  void add(const Totals& t) {
    groups += t.groups, zero_variance += t.zero_variance, single += t.single, finite += t.finite;
    sum += t.sum, std += t.std, comparable += t.comparable;
  }
  double mean() const { return finite > 0 ? sum / double(finite) : 0; }
};

template <class A> void write_stats(const AdvantageParams& p, const Totals& t) {
  p.counts[0] = t.groups, p.counts[1] = t.zero_variance, p.counts[2] = t.single, p.counts[3] = p.count - t.finite;
  A* moments = static_cast<A*>(p.moments);
  moments[0] = A(t.mean());
  moments[1] = A(t.comparable > 0 ? t.std / t.comparable : 0);
}

// ---- blocks -------------------------------------------------------------------------------------------------------

constexpr int kWidth = 8;

template <class A> void summarise_careful(const A* r, int64_t n, Group<A>* g) {
  double sum = 0, squares = 0;
  g->finite = 0, g->low = A(__builtin_inf()), g->high = A(-__builtin_inf());
  for (int64_t i = 0; i < n; ++i) {
    if (!is_finite(r[i])) continue;
    g->finite += 1;
    sum += double(r[i]);
    g->low = min_of(g->low, r[i]), g->high = max_of(g->high, r[i]);
  }
  g->mean = A(g->finite > 0 ? sum / double(g->finite) : 0);
  for (int64_t i = 0; i < n; ++i)
    if (is_finite(r[i])) squares += (double(r[i]) - double(g->mean)) * (double(r[i]) - double(g->mean));
  g->squares = A(squares);
}

template <class A> Group<A> summarise(const A* r, int64_t n) {
  A sum[kWidth], low[kWidth], high[kWidth], squares[kWidth] = {};
  Group<A> g;
  if (n < kWidth) { summarise_careful(r, n, &g); return g; }
  for (int k = 0; k < kWidth; ++k) sum[k] = low[k] = high[k] = r[k];
  int64_t i = kWidth;
  for (; i + kWidth <= n; i += kWidth)
    for (int k = 0; k < kWidth; ++k) {
      sum[k] += r[i + k];
      low[k] = r[i + k] < low[k] ? r[i + k] : low[k];
      high[k] = r[i + k] > high[k] ? r[i + k] : high[k];
    }
  for (; i < n; ++i) {
    sum[0] += r[i];
    low[0] = min_of(low[0], r[i]), high[0] = max_of(high[0], r[i]);
  }
  for (int step = kWidth / 2; step > 0; step /= 2)
    for (int k = 0; k < step; ++k) {
      sum[k] += sum[k + step];
      low[k] = min_of(low[k], low[k + step]), high[k] = max_of(high[k], high[k + step]);
    }
  if (!is_finite(sum[0])) { summarise_careful(r, n, &g); return g; }  // a NaN, an infinity, or an overflow
  g.finite = n, g.mean = sum[0] / A(n), g.low = low[0], g.high = high[0];
  for (i = 0; i + kWidth <= n; i += kWidth)
    for (int k = 0; k < kWidth; ++k) squares[k] += (r[i + k] - g.mean) * (r[i + k] - g.mean);
  for (; i < n; ++i) squares[0] += (r[i] - g.mean) * (r[i] - g.mean);
  for (int step = kWidth / 2; step > 0; step /= 2)
    for (int k = 0; k < step; ++k) squares[k] += squares[k + step];
  g.squares = squares[0];
  return g;
}

template <class A> inline A limited(A advantage, A clip) {
  const A capped = advantage > clip ? clip : advantage;
  return capped < -clip ? -clip : capped;
}

template <class A> struct Writer {
  A clip, eps, batch_divisor = 1;
  const AdvantageParams& p;

  explicit Writer(const AdvantageParams& params)
      : clip(params.clip > 0 ? A(params.clip) : A(__builtin_inf())), eps(A(params.eps)), p(params) {}

  A inverse(const Group<A>& g) const {  // 0 for a group that has nothing to say
    if (!g.lively()) return 0;
    const A divisor = p.scale == AdvantageScale::group ? g.std(p.correction) + eps : batch_divisor;
    return divisor > 0 ? 1 / divisor : 1;
  }
  void write(const Group<A>& g, const A* r, int64_t n, A* out) const {
    const A mean = g.mean, factor = inverse(g);
    if (g.finite == n) {
      for (int64_t i = 0; i < n; ++i) out[i] = limited((r[i] - mean) * factor, clip);
    } else {
      for (int64_t i = 0; i < n; ++i) out[i] = is_finite(r[i]) ? limited((r[i] - mean) * factor, clip) : A(0);
    }
    if (factor == 0)
      for (int64_t i = 0; i < n; ++i) out[i] = 0;  // not -0, and not 0·inf
  }
};

// (std + eps) over the whole batch, from the groups' means and squares.
template <class A> A batch_divisor(const AdvantageParams& p, const Totals& t, const Group<A>* groups, int64_t count) {
  double squares = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double away = double(groups[i].mean) - t.mean();
    squares += double(groups[i].squares) + double(groups[i].finite) * away * away;
  }
  const int64_t freedom = max_of(t.finite - p.correction, int64_t(1));
  return A(__builtin_sqrt(squares / double(freedom)) + p.eps);
}

// body(group, its rewards as A, its first index) over all groups, in parallel, in fixed chunks.
template <class A, class F> void each_block(const AdvantageParams& p, const Parallel& pool, const F& body) {
  const int64_t size = p.group_size, groups = p.count / size;
  parallel_for(pool, groups, max_of(int64_t(1), (16 << 10) / size), [&](int64_t begin, int64_t end) {
    Scratch<A> buffer(p.reward_type == DType::f32 || p.reward_type == DType::f64 ? 0 : size);
    for (int64_t g = begin; g < end; ++g)
      body(g, load_any(p.rewards, p.reward_type, g * size, buffer.data, size), g * size);
  });
}

template <class A> void blocks(const AdvantageParams& p, const Parallel& pool) {
  const int64_t count = p.count / p.group_size;
  A* out = static_cast<A*>(p.advantages);
  Scratch<Group<A>> groups(count);
  Writer<A> writer(p);
  const bool together = p.scale == AdvantageScale::batch;
  each_block<A>(p, pool, [&](int64_t g, const A* rewards, int64_t first) {
    groups.data[g] = summarise(rewards, p.group_size);
    if (!together) writer.write(groups.data[g], rewards, p.group_size, out + first);
  });
  Totals total;
  for (int64_t g = 0; g < count; ++g) total.add(groups.data[g], p.correction);
  if (together) {
    writer.batch_divisor = batch_divisor(p, total, groups.data, count);
    each_block<A>(p, pool, [&](int64_t g, const A* rewards, int64_t first) {
      writer.write(groups.data[g], rewards, p.group_size, out + first);
    });
  }
  write_stats<A>(p, total);
}

// ---- ids ----------------------------------------------------------------------------------------------------------

inline uint64_t mix(uint64_t x) {  // splitmix64: consecutive ids spread over the table
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

// slot[i] = number of the group of ids[i], in order of first appearance; returns the number of groups.
int64_t number_groups(const int64_t* ids, int64_t count, int64_t* slot) {
  int64_t capacity = 16;
  while (capacity < 2 * count) capacity *= 2;
  Scratch<int64_t> keys(capacity), numbers(capacity);
  for (int64_t i = 0; i < capacity; ++i) numbers.data[i] = -1;
  int64_t groups = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (i > 0 && ids[i] == ids[i - 1]) { slot[i] = slot[i - 1]; continue; }
    int64_t at = int64_t(mix(uint64_t(ids[i])) & uint64_t(capacity - 1));
    while (numbers.data[at] >= 0 && keys.data[at] != ids[i]) at = (at + 1) & (capacity - 1);
    if (numbers.data[at] < 0) keys.data[at] = ids[i], numbers.data[at] = groups++;
    slot[i] = numbers.data[at];
  }
  return groups;
}

template <class A> void labels(const AdvantageParams& p) {
  Scratch<int64_t> slot(p.count);
  Scratch<A> buffer(p.count);
  const A* r = load_any(p.rewards, p.reward_type, 0, buffer.data, p.count);
  const int64_t count = number_groups(p.ids, p.count, slot.data);
  Scratch<Group<A>> groups(count);
  Scratch<double> sums(count);
  for (int64_t g = 0; g < count; ++g) groups.data[g] = Group<A>(), sums.data[g] = 0;
  for (int64_t i = 0; i < p.count; ++i) {
    if (!is_finite(r[i])) continue;
    Group<A>& g = groups.data[slot.data[i]];
    g.finite += 1;
    g.low = min_of(g.low, r[i]), g.high = max_of(g.high, r[i]);
    sums.data[slot.data[i]] += double(r[i]);
  }
  for (int64_t g = 0; g < count; ++g) {
    if (groups.data[g].finite > 0) groups.data[g].mean = A(sums.data[g] / double(groups.data[g].finite));
    sums.data[g] = 0;
  }
  for (int64_t i = 0; i < p.count; ++i) {
    if (!is_finite(r[i])) continue;
    const double away = double(r[i]) - double(groups.data[slot.data[i]].mean);
    sums.data[slot.data[i]] += away * away;
  }
  Totals total;
  for (int64_t g = 0; g < count; ++g) {
    groups.data[g].squares = A(sums.data[g]);
    total.add(groups.data[g], p.correction);
  }
  Writer<A> writer(p);
  if (p.scale == AdvantageScale::batch) writer.batch_divisor = batch_divisor(p, total, groups.data, count);
  for (int64_t i = 0; i < p.count; ++i)
    writer.write(groups.data[slot.data[i]], r + i, 1, static_cast<A*>(p.advantages) + i);
  write_stats<A>(p, total);
}

template <class A> void run(const AdvantageParams& p, const Parallel& pool) {
  if (p.ids != nullptr) labels<A>(p);
  else blocks<A>(p, pool);
}

}  // namespace

void group_advantage(const AdvantageParams& p, const Parallel& pool) {
  if (p.reward_type == DType::f64) run<double>(p, pool);
  else run<float>(p, pool);
}

}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
