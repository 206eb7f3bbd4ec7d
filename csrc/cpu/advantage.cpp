// group_advantage: blocks of equal size in one pass that stays in L1, or exact int64 ids through a hash table.
// Compiled once per SIMD level.
#include "../include/advantage.h"

#include "any_block.h"
#include "vec.h"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

// Of its finite rewards. Their mean is mean + rest: mean alone is rounded, and advantages would not sum to 0.
template <class A> struct Group {
  int64_t finite = 0;
  A low = 0, high = 0;
  A mean = 0, rest = 0, squares = 0;  // squares: Σ (r - mean - rest)²
  A std = 0;
  bool varied = false;                // they differ by more than the resolution

  bool comparable() const { return finite >= 2; }
  bool lively() const { return varied; }
  void add(A reward) {
    low = finite == 0 ? reward : min_of(low, reward);
    high = finite == 0 ? reward : max_of(high, reward);
    finite += 1;
  }
  bool differs(const AdvantageParams& p) const {
    return high - low > A(p.resolution) * max_of(magnitude(low), magnitude(high));
  }
  // mean is there; of the deviations from it, away and squared are the sums
  void finish(const AdvantageParams& p, double away, double squared) {
    varied = differs(p);
    rest = A(finite > 0 ? away / double(finite) : 0);
    const double left = finite > 0 ? squared - away * (away / double(finite)) : 0;
    squares = A(max_of(0.0, left));  // of what does not vary, too: scale batch counts every reward
    std = varied ? root(squares / A(max_of(finite - p.correction, int64_t(1)))) : A(0);
  }
};

template <class A> inline bool is_finite(A x) { return x - x == 0; }

// What all groups have to say together; chunks of groups are merged in order.
struct Totals {
  int64_t groups = 0, zero_variance = 0, single = 0, finite = 0;
  double sum = 0, std = 0, comparable = 0;

  template <class A> void add(const Group<A>& g) {
    groups += 1;
    finite += g.finite;
    sum += (double(g.mean) + double(g.rest)) * double(g.finite);
    if (!g.comparable()) { single += 1; return; }
    comparable += 1;
    std += double(g.std);
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

// 32 bytes: groups are short (24 by custom), wider vectors would leave most of one empty.
template <class A> using Row = typename Vector<A, 32>::type;
template <class A> using RowMask = typename Vector<A, 32>::mask;
template <class A> constexpr int64_t kRow = 32 / int64_t(sizeof(A));

template <class A> __attribute__((noinline)) Group<A> summarise_careful(const AdvantageParams& p, const A* r, int64_t n) {
  Group<A> g;
  double sum = 0, away = 0, squared = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (!is_finite(r[i])) continue;
    g.add(r[i]);
    sum += double(r[i]);
  }
  g.mean = A(g.finite > 0 ? sum / double(g.finite) : 0);
  for (int64_t i = 0; i < n; ++i) {
    if (!is_finite(r[i])) continue;
    const double apart = double(r[i]) - double(g.mean);
    away += apart, squared += apart * apart;
  }
  g.finish(p, away, squared);
  return g;
}

template <class A> __attribute__((always_inline)) inline A row_sum(const A* r, int64_t n) {
  Row<A> sums{};
  A rest = 0;
  int64_t i = 0;
  for (; i + kRow<A> <= n; i += kRow<A>) sums += load_vec<Row<A>>(r + i);
  for (; i < n; ++i) rest += r[i];
  return rest + sum_lanes<A, 32>(sums);
}

// Sums of the deviations from `mean` and of their squares.
template <class A> __attribute__((always_inline)) inline void row_deviations(const A* r, int64_t n, A mean, A* away, A* squared) {
  Row<A> sums{}, squares{};
  A rest = 0, rest_squares = 0;
  int64_t i = 0;
  for (; i + kRow<A> <= n; i += kRow<A>) {
    const Row<A> apart = load_vec<Row<A>>(r + i) - mean;
    sums += apart, squares += apart * apart;
  }
  for (; i < n; ++i) rest += r[i] - mean, rest_squares += (r[i] - mean) * (r[i] - mean);
  *away = rest + sum_lanes<A, 32>(sums), *squared = rest_squares + sum_lanes<A, 32>(squares);
}

// Mean, rest and std of `count` groups of `n` rewards. The steps go over all groups in turn: within one group each waits for
// the one before, and divisions and roots vectorise over groups. True if every group is plain: finite, and its spread so far
// above the resolution and rounding that its rewards differ for certain. kSize: the size where it is known, else 0.
template <int64_t kSize, class A>
bool moments_of(const AdvantageParams& p, const A* r, int64_t any_size, int64_t count, A* mean, A* rest, A* std) {
  const int64_t n = kSize > 0 ? kSize : any_size;
  const A size = A(n), freedom = A(max_of(n - p.correction, int64_t(1)));
  // A spread of twice the resolution times the mean says that the range is above it, but for resolutions near 1.
  const A least = p.resolution <= 0.5 ? max_of(A(1e-4), 2 * A(p.resolution)) : A(__builtin_inf());
  for (int64_t i = 0; i < n * count; i += 64 / int64_t(sizeof(A))) prefetch_ahead(r + i);  // the next task's rewards
  for (int64_t g = 0; g < count; ++g) mean[g] = row_sum(r + g * n, n);
  for (int64_t g = 0; g < count; ++g) mean[g] = mean[g] / size;
  for (int64_t g = 0; g < count; ++g) row_deviations(r + g * n, n, mean[g], rest + g, std + g);
  int32_t doubtful = 0;
  for (int64_t g = 0; g < count; ++g) {
    const A away = rest[g], left = std[g] - away * (away / size);
    rest[g] = away / size;
    std[g] = root((left < 0 ? A(0) : left) / freedom);
    const A doubt = least * (mean[g] < 0 ? -mean[g] : mean[g]);
    doubtful += std[g] > doubt && std[g] < A(__builtin_inf()) ? 0 : 1;  // NaN is doubtful
  }
  return doubtful == 0;
}

// std: as moments_of has it
template <class A> Group<A> group_of(const AdvantageParams& p, const A* r, int64_t n, A mean, A rest, A std) {
  if (!is_finite(mean)) return summarise_careful(p, r, n);  // a NaN, an infinity, or an overflow
  Group<A> group;
  group.finite = n, group.mean = mean, group.rest = rest, group.low = group.high = r[0];
  for (int64_t i = 1; i < n; ++i) group.low = min_of(group.low, r[i]), group.high = max_of(group.high, r[i]);
  group.varied = group.differs(p);
  group.std = group.varied ? std : A(0);
  group.squares = std * std * A(max_of(n - p.correction, int64_t(1)));
  return group;
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
    const A divisor = p.scale == AdvantageScale::group ? g.std + eps : batch_divisor;
    return divisor > 0 ? 1 / divisor : 1;
  }
  A advantage(const Group<A>& g, A factor, A reward) const {
    return is_finite(reward) ? limited((reward - g.mean - g.rest) * factor, clip) : A(0);
  }
  void write(const Group<A>& g, const A* r, int64_t n, A* out) const {
    const A factor = inverse(g);
    if (factor == 0) {  // not -0, and not 0·inf
      for (int64_t i = 0; i < n; ++i) out[i] = 0;
    } else if (g.finite < n) {
      for (int64_t i = 0; i < n; ++i) out[i] = advantage(g, factor, r[i]);
    } else {
      write_row(g.mean, g.rest, factor, r, n, out);
    }
  }
  __attribute__((always_inline)) void write_row(A mean, A rest, A factor, const A* r, int64_t n, A* out) const {
    const Row<A> most = Row<A>{} + clip;
    const bool clips = p.clip > 0;
    int64_t i = 0;
    for (; i + kRow<A> <= n; i += kRow<A>) {
      Row<A> x = (load_vec<Row<A>>(r + i) - mean - rest) * factor;
      if (clips) {
        x = x > most ? most : x;
        x = x < -most ? -most : x;
      }
      store_vec(out + i, x);
    }
    for (; i < n; ++i) out[i] = limited((r[i] - mean - rest) * factor, clip);
  }
};

// (std + eps) over the whole batch, from the groups' means and squares.
template <class A> A batch_divisor(const AdvantageParams& p, const Totals& t, const Group<A>* groups, int64_t count) {
  double squares = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double away = double(groups[i].mean) - t.mean() + double(groups[i].rest);
    squares += double(groups[i].squares) + double(groups[i].finite) * away * away;
  }
  const int64_t freedom = max_of(t.finite - p.correction, int64_t(1));
  return A(__builtin_sqrt(squares / double(freedom)) + p.eps);
}

// The part of the work that fits L1: whole groups, or one group that is larger.
struct Tasks {
  int64_t size, groups, per_task, count;
  explicit Tasks(const AdvantageParams& p)
      : size(p.group_size), groups(p.count / size), per_task(max_of(int64_t(1), kBlock / size)),
        count(ceil_div(groups, per_task)) {}
};

// body(task, first group, its rewards as A, groups) over all tasks, in parallel.
template <class A, class F> void each_task(const AdvantageParams& p, const Parallel& pool, const F& body) {
  const Tasks tasks(p);
  const int64_t most = tasks.per_task * tasks.size;
  parallel_for(pool, tasks.count, max_of(int64_t(1), (8 << 10) / most), [&](int64_t begin, int64_t end) {
    Scratch<A> buffer(most);
    for (int64_t t = begin; t < end; ++t) {
      const int64_t first = t * tasks.per_task, here = min_of(tasks.per_task, tasks.groups - first);
      body(t, first, load_any(p.rewards, p.reward_type, first * tasks.size, buffer.data, here * tasks.size), here);
    }
  });
}

template <int64_t kSize, class A> void blocks(const AdvantageParams& p, const Parallel& pool) {
  const Tasks tasks(p);
  const int64_t size = kSize > 0 ? kSize : tasks.size;
  const bool together = p.scale == AdvantageScale::batch;
  const bool stream = p.count * int64_t(sizeof(A)) >= kStreamBytes && size <= kBlock;
  A* out = static_cast<A*>(p.advantages);
  Scratch<Totals> totals(tasks.count);
  Scratch<Group<A>> groups(together ? tasks.groups : 0);
  Writer<A> writer(p);
  each_task<A>(p, pool, [&](int64_t t, int64_t first, const A* r, int64_t here) {
    A staged[kBlock], mean[kBlock], rest[kBlock], std[kBlock];
    A* to = stream ? staged : out + first * size;
    const bool plain = moments_of<kSize>(p, r, size, here, mean, rest, std);
    Totals sum;
    if (plain && !together) {
      sum.groups = here, sum.finite = here * size, sum.comparable = double(here);
      sum.sum = double(sum_block(mean, here)) * double(size), sum.std = double(sum_block(std, here));
      const bool by_group = p.scale == AdvantageScale::group;
      for (int64_t g = 0; g < here; ++g) std[g] = by_group ? 1 / (std[g] + writer.eps) : A(1);
      for (int64_t g = 0; g < here; ++g) writer.write_row(mean[g], rest[g], std[g], r + g * size, size, to + g * size);
    } else {
      for (int64_t g = 0; g < here; ++g) {
        const Group<A> group = group_of(p, r + g * size, size, mean[g], rest[g], std[g]);
        sum.add(group);
        if (together) groups.data[first + g] = group;
        else writer.write(group, r + g * size, size, to + g * size);
      }
    }
    totals.data[t] = sum;
    if (stream && !together) stream_copy(out + first * size, staged, here * size * int64_t(sizeof(A)));
  });
  Totals total;
  for (int64_t t = 0; t < tasks.count; ++t) total.add(totals.data[t]);
  if (together) {
    writer.batch_divisor = batch_divisor(p, total, groups.data, tasks.groups);
    each_task<A>(p, pool, [&](int64_t, int64_t first, const A* r, int64_t here) {
      for (int64_t g = 0; g < here; ++g)
        writer.write(groups.data[first + g], r + g * size, size, out + (first + g) * size);
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
  Scratch<double> sums(count), squares(count);
  for (int64_t g = 0; g < count; ++g) groups.data[g] = Group<A>(), sums.data[g] = squares.data[g] = 0;
  for (int64_t i = 0; i < p.count; ++i) {
    if (!is_finite(r[i])) continue;
    groups.data[slot.data[i]].add(r[i]);
    sums.data[slot.data[i]] += double(r[i]);
  }
  for (int64_t g = 0; g < count; ++g) {
    if (groups.data[g].finite > 0) groups.data[g].mean = A(sums.data[g] / double(groups.data[g].finite));
    sums.data[g] = 0;
  }
  for (int64_t i = 0; i < p.count; ++i) {
    if (!is_finite(r[i])) continue;
    const double apart = double(r[i]) - double(groups.data[slot.data[i]].mean);
    sums.data[slot.data[i]] += apart, squares.data[slot.data[i]] += apart * apart;
  }
  Totals total;
  for (int64_t g = 0; g < count; ++g) {
    groups.data[g].finish(p, sums.data[g], squares.data[g]);
    total.add(groups.data[g]);
  }
  Writer<A> writer(p);
  if (p.scale == AdvantageScale::batch) writer.batch_divisor = batch_divisor(p, total, groups.data, count);
  A* out = static_cast<A*>(p.advantages);
  for (int64_t g = 0; g < count; ++g) sums.data[g] = double(writer.inverse(groups.data[g]));
  for (int64_t i = 0; i < p.count; ++i) {
    const A factor = A(sums.data[slot.data[i]]);
    out[i] = factor != 0 ? writer.advantage(groups.data[slot.data[i]], factor, r[i]) : A(0);
  }
  write_stats<A>(p, total);
}

template <class A> void run(const AdvantageParams& p, const Parallel& pool) {
  if (p.ids != nullptr) return labels<A>(p);
  switch (p.group_size) {  // custom: 24 in flow_grpo, 12 in DanceGRPO, powers of two elsewhere
    case 8: return blocks<8, A>(p, pool);
    case 12: return blocks<12, A>(p, pool);
    case 16: return blocks<16, A>(p, pool);
    case 24: return blocks<24, A>(p, pool);
    default: return blocks<0, A>(p, pool);
  }
}

}  // namespace

void group_advantage(const AdvantageParams& p, const Parallel& pool) {
  if (p.reward_type == DType::f64) run<double>(p, pool);
  else run<float>(p, pool);
}

}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
