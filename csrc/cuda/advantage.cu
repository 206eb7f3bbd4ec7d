// group_advantage. Few rewards (advantage_is_small): one block, one launch, for groups of equal size and for int64 ids alike,
// which are grouped in shared memory. More: a team of threads per group, statistics added up in a fixed order by a second
// launch; ids come sorted, with the order they were in.
#include "../include/advantage.h"

#include "primitives.cuh"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

// ---- one group ------------------------------------------------------------------------------------------------------

__device__ inline float lower(float a, float b) { return fminf(a, b); }
__device__ inline double lower(double a, double b) { return fmin(a, b); }
__device__ inline float higher(float a, float b) { return fmaxf(a, b); }
__device__ inline double higher(double a, double b) { return fmax(a, b); }

// Of its finite rewards. Their mean is mean + rest: mean alone is rounded, and advantages would not sum to 0.
template <class A, class N = int> struct Group {
  N finite = 0;
  A sum = 0, mean = 0, rest = 0, squares = 0, std = 0;  // squares: Σ (r - mean - rest)²
  bool varied = false;                                  // they differ by more than the resolution
};

// By a team of `lanes` threads: up to a warp, or kTeam = kThreads for a whole block. each(f): f of every reward of this
// thread. All threads of the warp (block) take part, those without a group with no rewards.
template <int kTeam, class A, class F> __device__ auto summarise(const AdvantageParams& p, const F& each, int lanes) {
  constexpr bool block = kTeam > kWarp;
  using N = std::conditional_t<block, int64_t, int>;
  Group<A, N> group;
  A low = infinity<A>(), high = -infinity<A>();
  each([&](A r) {
    if (is_finite(r)) group.sum += r, group.finite += 1, low = lower(low, r), high = higher(high, r);
  });
  if constexpr (block) {
    group.sum = block_reduce<kTeam>(group.sum, Sum()), group.finite = block_reduce<kTeam>(group.finite, Sum());
    low = block_reduce<kTeam>(low, Lowest()), high = block_reduce<kTeam>(high, Highest());
  } else {
    for (int step = lanes >> 1; step > 0; step >>= 1) {  // one loop: the shuffles of all four are under way together
      const auto other = [&](auto x) { return __shfl_xor_sync(kAllLanes, x, step); };
      group.sum += other(group.sum), group.finite += other(group.finite);
      low = lower(low, other(low)), high = higher(high, other(high));
    }
  }
  const A inverse = A(1) / A(max_of(group.finite, N(1)));
  group.mean = group.sum * inverse;
  A rest = 0, squares = 0;
  each([&](A r) {
    const A away = r - group.mean;
    if (is_finite(r)) rest += away, squares += away * away;
  });
  if constexpr (block) {
    rest = block_reduce<kTeam>(rest, Sum()), squares = block_reduce<kTeam>(squares, Sum());
  } else {
    for (int step = lanes >> 1; step > 0; step >>= 1) {
      const auto other = [&](auto x) { return __shfl_xor_sync(kAllLanes, x, step); };
      rest += other(rest), squares += other(squares);
    }
  }
  group.rest = rest * inverse;
  group.varied = high - low > A(p.resolution) * higher(magnitude(low), magnitude(high));  // not where none is finite: -∞
  group.squares = higher(A(0), squares - rest * group.rest);  // of what does not vary, too: scale batch counts every reward
  group.std = group.varied ? root(group.squares / A(max_of(group.finite - N(p.correction), N(1)))) : A(0);
  return group;
}

template <class A> struct Writer {
  A eps, clip, factor;  // factor: of scale batch, else 1
  bool by_group;
  __device__ Writer(const AdvantageParams& p, A batch_factor)
      : eps(A(p.eps)), clip(p.clip > 0 ? A(p.clip) : infinity<A>()),
        factor(p.scale == AdvantageScale::batch ? batch_factor : A(1)), by_group(p.scale == AdvantageScale::group) {}
  static __device__ A inverse(A divisor) {
    constexpr A smallest = sizeof(A) == sizeof(float) ? A(1.17549435e-38) : A(2.2250738585072014e-308);
    return A(1) / (divisor > 0 ? higher(divisor, smallest) : A(1));
  }
  template <class G> __device__ A factor_of(const G& group) const { return by_group ? inverse(group.std + eps) : factor; }
  template <class G> __device__ A operator()(const G& group, A by, A reward) const {
    const A advantage = ((reward - group.mean) - group.rest) * by;
    return group.varied && is_finite(reward) ? higher(-clip, lower(clip, advantage)) : A(0);
  }
};

// ---- all groups -----------------------------------------------------------------------------------------------------

template <class I> struct Totals {
  I groups = 0, zero_variance = 0, single = 0, finite = 0;
  double sum = 0, squares = 0, std = 0;  // sum of (r - pivot), squares of the same

  template <class F> __device__ void each(const F& f) {
    f(groups), f(zero_variance), f(single), f(finite), f(sum), f(squares), f(std);
  }
  template <class J> __device__ void add(const Totals<J>& t) {
    groups += I(t.groups), zero_variance += I(t.zero_variance), single += I(t.single), finite += I(t.finite);
    sum += t.sum, squares += t.squares, std += t.std;
  }
  // around: squares too, which scale batch needs
  template <class G> __device__ void add(const G& g, double pivot, bool around) {
    groups += 1, finite += I(g.finite), std += double(g.std);
    zero_variance += I(g.finite >= 2 && !g.varied), single += I(g.finite < 2);
    if (!around) {
      sum += double(g.sum);
    } else {
      const double apart = double(g.mean) - pivot + double(g.rest), many = double(g.finite);
      sum += many * apart, squares += double(g.squares) + many * apart * apart;
    }
  }
};
static_assert(sizeof(Totals<int64_t>) <= 64, "as the scratch memory is laid out");

// Over a block of kCount threads, of which every `apart`-th holds something; for its first warp. Once per kernel.
template <int kCount, class I> __device__ Totals<I> block_totals(Totals<I> total, int apart) {
  FINPERCEP_SHARED(Totals<I>, parts, kCount / kWarp);
  const auto over = [&](int step) { total.each([&](auto& x) { x += __shfl_xor_sync(kAllLanes, x, step); }); };
  for (int step = kWarp / 2; step >= apart; step /= 2) over(step);
  if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = total;
  __syncthreads();
  if (threadIdx.x >= kWarp) return total;
  total = threadIdx.x < kCount / kWarp ? parts[threadIdx.x] : Totals<I>{};
  for (int step = kCount / kWarp / 2; step > 0; step /= 2) over(step);
  return total;
}

// Of scale batch, from Σ (r - mean)² over all rewards.
template <class A> __device__ A batch_factor(const AdvantageParams& p, double squares, int64_t finite) {
  return Writer<A>::inverse(A(root(squares / double(max_of(finite - p.correction, int64_t(1)))) + p.eps));
}

template <class A>
__device__ void write_stats(const AdvantageParams& p, int64_t groups, int64_t zero_variance, int64_t single,
                            int64_t finite, A mean, double std) {
  p.counts[0] = groups, p.counts[1] = zero_variance, p.counts[2] = single, p.counts[3] = p.count - finite;
  A* moments = static_cast<A*>(p.moments);
  moments[0] = mean, moments[1] = A(std) / A(max_of(groups - single, int64_t(1)));
}

// ---- few rewards: one block -----------------------------------------------------------------------------------------

// Threads, and so many rewards each at most; the second for ids.
constexpr int kSmallThreads = 512, kSmallEach = int(kAdvantageSmall) / kSmallThreads;
constexpr int kIdThreads = 1024, kIdEach = int(kAdvantageSmall) / kIdThreads;
constexpr int kAtOnce = 4;                                 // rewards that a thread reads together
constexpr int kDigitBits = 8, kDigits = 1 << kDigitBits;  // groups that are told apart in one pass over the rewards
constexpr uint16_t kHead = 0x8000;                        // marks the first reward of a group
constexpr uint16_t kSingle = 0x8000, kZeroVariance = 0x4000, kFinite = 0x3fff;

__host__ __device__ inline int skewed(int i) {  // strides of 8, 16 … would meet in one bank of shared memory
  return i + int(unsigned(i) / unsigned(kWarp));
}

// What the small kernel is to know, and its dynamic shared memory. With ids, a part first holds what it takes to group them.
struct SmallPlan {
  int count, groups, size;  // with ids: at most so many groups
  int table;                // slots for ids, a power of two
  // Offsets in bytes. rewards: in the order of their groups, later advantages, skewed; and uint16 places. Before: int64 ids.
  int places;
  // Of each group: std and sum, then uint16 of finite rewards and marks. Before: int table of ids, then int counts of digits.
  int stds, sums, codes;
  int numbers, starts;  // uint16: the group of each reward; where each group begins, and the end
  int bytes;
  SmallPlan(const AdvantageParams& p, int real) : count(int(p.count)), size(int(min_of(p.group_size, kAdvantageSmall))), table(4) {
    const bool labelled = p.ids != nullptr;
    const auto whole = [](int offset) { return (offset + 15) / 16 * 16; };
    groups = labelled ? count : count / size;
    while (table < 2 * count) table *= 2;
    places = whole(real * (skewed(count) + 1));
    stds = labelled ? max_of(whole(8 * count), whole(places + 2 * count)) : places;
    sums = stds + real * groups, codes = sums + real * groups;
    numbers = whole(codes + 2 * groups);
    if (labelled) numbers = max_of(numbers, stds + int(sizeof(int)) * max_of(table, kIdThreads / kWarp * kDigits));
    starts = numbers + 2 * count;
    bytes = labelled ? starts + 2 * (groups + 1) : numbers;
    constexpr int kStatic = 4 << 10;  // and less: with it, too, what need not be asked for ends at kPlainShared
    if (bytes > kPlainShared - kStatic) bytes = max_of(bytes, kPlainShared + 1);
  }
};

__device__ inline uint32_t slot_of(int64_t id, int slots) {  // a power of two of them
  const uint64_t x = uint64_t(id);
  return uint32_t(((x ^ (x >> 32)) * 0x9e3779b97f4a7c15ull) >> 40) & uint32_t(slots - 1);
}

// Inclusive sum over the lanes up to this one.
__device__ inline int sum_to_lane(int value, int lane) {
  for (int step = 1; step < kWarp; step *= 2) {
    const int before = __shfl_up_sync(kAllLanes, value, step);
    if (lane >= step) value += before;
  }
  return value;
}

// Puts the rewards into the order of their groups, those of a group into the order they are in, by a hash table and one or
// two passes of a radix sort: rewards, starts and places (where reward i went). Returns the number of groups.
template <class T, class A>
__device__ int arrange_by_id(const AdvantageParams& p, const SmallPlan& plan, unsigned char* memory) {
  FINPERCEP_SHARED(int, sums, kIdThreads / kWarp);
  FINPERCEP_SHARED(int, bases, kDigits);
  FINPERCEP_SHARED(int, waiting, 1);
  int64_t* ids = reinterpret_cast<int64_t*>(memory);
  int* table = reinterpret_cast<int*>(memory + plan.stds);
  int* counts = table;
  A* rewards = reinterpret_cast<A*>(memory);
  uint16_t* places = reinterpret_cast<uint16_t*>(memory + plan.places);
  uint16_t* numbers = reinterpret_cast<uint16_t*>(memory + plan.numbers);
  uint16_t* starts = reinterpret_cast<uint16_t*>(memory + plan.starts);
  const T* source = static_cast<const T*>(p.rewards);
  const int thread = int(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp, count = plan.count;
  // A warp takes `each` times 32 rewards in a row, reward first + 32·k + lane by this thread.
  const int each = (count + kIdThreads - 1) / kIdThreads, first = warp * kWarp * each + lane;
  const auto here = [&](int k) { return k < each && first + kWarp * k < count; };

  int64_t id[kIdEach];
  A reward[kIdEach];
#pragma unroll
  for (int k = 0; k < kIdEach; ++k)
    if (here(k)) id[k] = p.ids[first + kWarp * k], reward[k] = A(widen(source[first + kWarp * k]));
  for (int slot = thread; slot < plan.table; slot += kIdThreads) table[slot] = count;
  if (thread == 0) waiting[0] = 0;
  uint32_t slot[kIdEach];
  int head[kIdEach];  // the first reward of the same group
#pragma unroll
  for (int k = 0; k < kIdEach; ++k) {
    head[k] = -1, slot[k] = 0;
    if (here(k)) ids[first + kWarp * k] = id[k], slot[k] = slot_of(id[k], plan.table);
  }
  __syncthreads();

  // Of the ids that meet in a slot the one seen first gets it, the others go on to the next one together.
  for (int seen = 0;;) {
#pragma unroll
    for (int k = 0; k < kIdEach; ++k)
      if (here(k) && head[k] < 0) atomicMin(&table[slot[k]], first + kWarp * k);
    __syncthreads();
    bool waits = false;
#pragma unroll
    for (int k = 0; k < kIdEach; ++k) {
      if (!here(k) || head[k] >= 0) continue;
      const int winner = table[slot[k]];
      if (ids[winner] == id[k]) head[k] = winner;
      else waits = true, slot[k] = (slot[k] + 1) & uint32_t(plan.table - 1);
    }
    if (__ballot_sync(kAllLanes, waits) != 0 && lane == 0) atomicAdd(&waiting[0], 1);
    __syncthreads();
    const int now = waiting[0];
    if (now == seen) break;
    seen = now;
  }

  // Groups are numbered as they are first seen.
  for (int at = thread; at < kIdThreads / kWarp * kDigits; at += kIdThreads) counts[at] = 0;
  const unsigned lower_lanes = (1u << lane) - 1;
  int number[kIdEach], heads = 0;
#pragma unroll
  for (int k = 0; k < kIdEach; ++k) {
    const bool is_head = here(k) && head[k] == first + kWarp * k;
    const unsigned votes = __ballot_sync(kAllLanes, is_head);
    number[k] = heads + __popc(votes & lower_lanes);
    heads += __popc(votes);
  }
  if (lane == 0) sums[warp] = heads;
  __syncthreads();
  const int upto = sum_to_lane(sums[lane], lane);  // kIdThreads: as many warps as lanes
  const int groups = __shfl_sync(kAllLanes, upto, kWarp - 1), before = __shfl_sync(kAllLanes, upto, warp) - heads;
#pragma unroll
  for (int k = 0; k < kIdEach; ++k)
    if (here(k) && head[k] == first + kWarp * k) numbers[head[k]] = uint16_t(before + number[k]) | kHead;
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kIdEach; ++k)
    if (here(k) && head[k] != first + kWarp * k) numbers[first + kWarp * k] = numbers[head[k]] & uint16_t(~kHead);

  // Pass by pass: position = rewards of smaller digits + of the same digit in warps before + before this one in the warp.
  for (int shift = 0;; shift += kDigitBits) {
    const bool last = groups <= kDigits << shift;
    int index[kIdEach], code[kIdEach], rank[kIdEach];
#pragma unroll
    for (int k = 0; k < kIdEach; ++k) {
      index[k] = code[k] = 0;
      if (here(k)) index[k] = shift == 0 ? first + kWarp * k : places[first + kWarp * k], code[k] = numbers[index[k]];
    }
    const auto digit = [&](int k) { return ((code[k] & int(uint16_t(~kHead))) >> shift) & (kDigits - 1); };
#pragma unroll
    for (int k = 0; k < kIdEach; ++k) {
      if (k >= each) break;
      unsigned peers = __ballot_sync(kAllLanes, here(k));
      for (int bit = 1; bit < kDigits; bit *= 2) {
        const bool set = (digit(k) & bit) != 0;
        const unsigned votes = __ballot_sync(kAllLanes, set);
        peers &= set ? votes : ~votes;
      }
      const int lowest = here(k) ? __ffs(int(peers)) - 1 : lane;
      int earlier = 0;
      if (here(k) && lane == lowest) earlier = atomicAdd(&counts[warp * kDigits + digit(k)], __popc(peers));
      rank[k] = __shfl_sync(kAllLanes, earlier, lowest) + __popc(peers & lower_lanes);
    }
    __syncthreads();
    int total = 0;  // of digit `thread`
    if (thread < kDigits) {
#pragma unroll 8
      for (int w = 0; w < kIdThreads / kWarp; ++w) {
        const int here_too = counts[w * kDigits + thread];
        counts[w * kDigits + thread] = total;
        total += here_too;
      }
    }
    const int inclusive = sum_to_lane(total, lane);
    if (lane == kWarp - 1) sums[warp] = inclusive;
    __syncthreads();
    if (thread < kDigits) {
      int base = inclusive - total;
      for (int w = 0; w < warp; ++w) base += sums[w];
      bases[thread] = base;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kIdEach; ++k) {
      if (!here(k)) continue;
      const int position = bases[digit(k)] + counts[warp * kDigits + digit(k)] + rank[k];
      if (!last) {
        places[position] = uint16_t(index[k]);
        continue;
      }
      places[index[k]] = uint16_t(position);
      rewards[skewed(position)] = shift == 0 ? reward[k] : A(widen(source[index[k]]));
      if ((code[k] & kHead) != 0) starts[code[k] & int(uint16_t(~kHead))] = uint16_t(position);  // the first of its group
    }
    if (thread == 0 && last) starts[groups] = uint16_t(count);
    __syncthreads();
    if (last) return groups;
    for (int at = thread; at < kIdThreads / kWarp * kDigits; at += kIdThreads) counts[at] = 0;
    __syncthreads();
  }
}

// Counts and moments from those of the groups, by the first warp. Returns the sum of all rewards.
template <class A>
__device__ double small_stats(const AdvantageParams& p, int groups, const A* stds, const A* sums, const uint16_t* codes,
                              int* all_finite) {
  int finite = 0, zero_variance = 0, single = 0;
  double sum = 0, std = 0;
#pragma unroll 1
  for (int g = int(threadIdx.x); g < groups; g += kWarp) {
    const int code = codes[g];
    finite += code & kFinite, zero_variance += (code & kZeroVariance) != 0, single += (code & kSingle) != 0;
    sum += double(sums[g]), std += double(stds[g]);
  }
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const auto other = [&](auto x) { return __shfl_xor_sync(kAllLanes, x, step); };
    finite += other(finite), zero_variance += other(zero_variance), single += other(single);
    sum += other(sum), std += other(std);
  }
  if (threadIdx.x > 0) return sum;
  *all_finite = finite;
  write_stats<A>(p, groups, zero_variance, single, finite, A(sum) / A(max_of(finite, 1)), std);
  return sum;
}

template <class T, class A, bool kLabelled>
__global__ void __launch_bounds__(kLabelled ? kIdThreads : kSmallThreads, 1) advantage_small_kernel(AdvantageParams p, SmallPlan plan) {
  constexpr int kCount = kLabelled ? kIdThreads : kSmallThreads;
  FINPERCEP_SHARED(double, mean, 1);  // of all rewards
  FINPERCEP_SHARED(int, finite, 1);
  FINPERCEP_DYNAMIC_SHARED(memory);
  A* rewards = reinterpret_cast<A*>(memory);
  const uint16_t* places = reinterpret_cast<const uint16_t*>(memory + plan.places);
  const uint16_t* starts = reinterpret_cast<const uint16_t*>(memory + plan.starts);
  A* stds = reinterpret_cast<A*>(memory + plan.stds);
  A* sums = reinterpret_cast<A*>(memory + plan.sums);
  uint16_t* codes = reinterpret_cast<uint16_t*>(memory + plan.codes);
  const int thread = int(threadIdx.x), count = plan.count;
  int groups = plan.groups;
  if constexpr (kLabelled) {
    groups = arrange_by_id<T, A>(p, plan, memory);
  } else {
    const T* source = static_cast<const T*>(p.rewards);
    T read[kSmallEach];
#pragma unroll
    for (int k = 0; k < kSmallEach; ++k)
      if (thread + k * kCount < count) read[k] = source[thread + k * kCount];
#pragma unroll
    for (int k = 0; k < kSmallEach; ++k)
      if (thread + k * kCount < count) rewards[skewed(thread + k * kCount)] = A(widen(read[k]));
    __syncthreads();
  }

  // A thread takes some rewards in a row: about four, as more threads would mostly divide and take roots.
  int bits = 0;
  while (1 << bits < kWarp && (8 << bits) * groups <= count) ++bits;
  const int lanes = 1 << bits, lane = thread & (lanes - 1), team = thread >> bits;
  const bool together = p.scale == AdvantageScale::batch;
  Writer<A> writer(p, A(1));
  for (bool writes = !together;; writes = true) {  // scale batch needs all groups before it can write any
    for (int first = 0; first < groups; first += kCount >> bits) {
      const int g = first + team;
      int begin = 0, n = 0;
      if (g < groups) {
        begin = kLabelled ? starts[g] : g * plan.size;
        n = kLabelled ? starts[g + 1] - begin : plan.size;
      }
      const int mine = (n + lanes - 1) >> bits, from = begin + min_of(n, lane * mine), to = begin + min_of(n, (lane + 1) * mine);
      const auto visit = [&](const auto& f) {  // f(place, reward)
#pragma unroll 1
        for (int k = from; k < to; k += kAtOnce) {
          A read[kAtOnce];
#pragma unroll
          for (int j = 0; j < kAtOnce; ++j) read[j] = rewards[skewed(min_of(k + j, to - 1))];
#pragma unroll
          for (int j = 0; j < kAtOnce; ++j)
            if (k + j < to) f(skewed(k + j), read[j]);
        }
      };
      const auto each = [&](const auto& f) { visit([&](int, A reward) { f(reward); }); };
      const auto group = summarise<kWarp, A>(p, each, lanes);
      if (writes) {
        const A factor = writer.factor_of(group);
        visit([&](int place, A reward) { rewards[place] = writer(group, factor, reward); });
      }
      if (g < groups && lane == 0 && writes != together) {
        const uint16_t mark = group.finite < 2 ? kSingle : (group.varied ? uint16_t(0) : kZeroVariance);
        stds[g] = group.std, sums[g] = group.sum, codes[g] = uint16_t(group.finite) | mark;
      }
    }
    __syncthreads();
    if (thread < kWarp && writes != together) {
      const double sum = small_stats<A>(p, groups, stds, sums, codes, &finite[0]);
      if (together && thread == 0) mean[0] = sum / double(max_of(finite[0], 1));
    }
    if (writes) break;
    __syncthreads();
    double rest = 0, squares = 0;  // the mean comes from sums that are rounded
    for (int i = thread; i < count; i += kCount) {
      const double away = double(rewards[skewed(i)]) - mean[0];
      if (is_finite(away)) rest += away, squares += away * away;
    }
    rest = block_reduce<kCount>(rest, Sum()), squares = block_reduce<kCount>(squares, Sum());
    squares = max_of(0.0, squares - rest * (rest / double(max_of(finite[0], 1))));
    writer = Writer<A>(p, batch_factor<A>(p, squares, finite[0]));
  }
  A* out = static_cast<A*>(p.advantages);
#pragma unroll
  for (int k = 0; k < int(kAdvantageSmall) / kCount; ++k) {
    const int i = thread + k * kCount;
    if (i < count) out[i] = rewards[skewed(kLabelled ? int(places[i]) : i)];
  }
}

// ---- many rewards ---------------------------------------------------------------------------------------------------

// What a launch does: both at once, except for scale batch, which needs all groups before it can write any.
enum class Stage : int { all, count, write };

__device__ inline Totals<int>* partial_totals(const AdvantageParams& p) { return static_cast<Totals<int>*>(p.scratch); }
__device__ inline double* batch_numbers(const AdvantageParams& p) {  // of scale batch: its pivot and its factor
  return reinterpret_cast<double*>(static_cast<unsigned char*>(p.scratch) + 64 * kAdvantageBlocks);
}

// The first finite of the first rewards, else 0: squares around a number of their size cancel little.
template <class T> __device__ double pivot_of(const AdvantageParams& p, Stage stage) {
  if (stage != Stage::count) return 0;
  const int lane = int(threadIdx.x) % kWarp;
  const double mine = lane < p.count ? double(widen(static_cast<const T*>(p.rewards)[lane])) : infinity<double>();
  const unsigned votes = __ballot_sync(kAllLanes, is_finite(mine));
  return votes == 0 ? 0 : __shfl_sync(kAllLanes, mine, __ffs(int(votes)) - 1);
}

template <class A> __device__ Writer<A> stage_writer(const AdvantageParams& p, Stage stage) {
  return Writer<A>(p, stage == Stage::write ? A(batch_numbers(p)[1]) : A(1));
}

__device__ inline void store_partial(const AdvantageParams& p, Stage stage, const Totals<int>& total, int apart, double pivot) {
  if (stage == Stage::write) return;
  const Totals<int> sum = block_totals<kThreads>(total, apart);
  if (threadIdx.x > 0) return;
  partial_totals(p)[blockIdx.x] = sum;
  if (blockIdx.x == 0) batch_numbers(p)[0] = pivot;
}

constexpr int kHeld = 8;  // rewards in a thread's registers

// Groups of equal size, at most kHeld for each of up to a warp of lanes: read once, while the groups before are worked on.
template <class T, class A> __global__ void __launch_bounds__(kThreads, sizeof(A) == sizeof(double) ? 2 : 4)
advantage_held_kernel(AdvantageParams p, Stage stage, int bits, int blocks) {  // 1 << bits lanes
  const Writer<A> writer = stage_writer<A>(p, stage);
  const double pivot = pivot_of<T>(p, stage);
  const int lanes = 1 << bits, lane = int(threadIdx.x) & (lanes - 1);
  const int64_t n = p.group_size, groups = p.count / n, stride = int64_t(blocks) * (kThreads >> bits);
  const int offset = lane * kHeld, left = max_of(0, min_of(kHeld, int(n) - offset));
  int64_t g = int64_t(blockIdx.x) * (kThreads >> bits) + (threadIdx.x >> bits);
  const T* from = static_cast<const T*>(p.rewards) + g * n + offset;
  A* to = static_cast<A*>(p.advantages) + g * n + offset;
  const bool whole = n % kHeld == 0 && left > 0 && aligned<kHeld>(static_cast<const T*>(p.rewards));
  Pack<T, kHeld> next;
  const auto load = [&](int64_t of) {
    if (of < groups) next = whole ? load_whole<kHeld>(from) : load_pack<kHeld>(from, left);
    from += stride * n;
  };
  load(g);
  Totals<int> total;
  for (int64_t first = g - (threadIdx.x >> bits); first < groups; first += stride, g += stride, to += stride * n) {
    A held[kHeld], results[kHeld];
    const int here = g < groups ? left : 0;
#pragma unroll
    for (int k = 0; k < kHeld; ++k) held[k] = k < here ? A(widen(next.at[k])) : infinity<A>();  // left out, as every infinity
    load(g + stride);
    const auto each = [&](const auto& f) {
#pragma unroll
      for (int k = 0; k < kHeld; ++k) f(held[k]);
    };
    const auto group = summarise<kWarp, A>(p, each, lanes);
    if (g < groups && lane == 0) total.add(group, pivot, stage == Stage::count);
    if (here == 0 || stage == Stage::count) continue;
    const A factor = writer.factor_of(group);
#pragma unroll
    for (int k = 0; k < kHeld; ++k) results[k] = writer(group, factor, held[k]);
    store_pack<kHeld>(to, left, results);
  }
  store_partial(p, stage, total, lanes, pivot);
}

// Of the rewards that a thread of a team takes: f(reward) for every `lanes`-th of n, from `lane` on.
template <class F> __device__ auto every(int64_t n, int lane, int lanes, const F& reward) {
  return [=](const auto& f) {
#pragma unroll 4
    for (int64_t k = lane; k < n; k += lanes) f(reward(k));
  };
}

// Larger groups of equal size: each by a warp (kTeam = kWarp), or by the block (kTeam = kThreads).
template <class T, class A, int kTeam>
__global__ void __launch_bounds__(kThreads, 3) advantage_blocks_kernel(AdvantageParams p, Stage stage, int blocks) {
  constexpr int lanes = kTeam;
  const T* rewards = static_cast<const T*>(p.rewards);
  A* out = static_cast<A*>(p.advantages);
  const Writer<A> writer = stage_writer<A>(p, stage);
  const double pivot = pivot_of<T>(p, stage);
  const int64_t n = p.group_size, groups = p.count / n;
  const int lane = int(threadIdx.x) % lanes, slots = kThreads / lanes;
  Totals<int> total;
  for (int64_t first = int64_t(blockIdx.x) * slots; first < groups; first += int64_t(blocks) * slots) {
    const int64_t g = first + threadIdx.x / lanes;
    const bool mine = g < groups;
    const T* r = rewards + (mine ? g : 0) * n;
    const auto reward = [&](int64_t k) { return A(widen(r[k])); };
    const auto group = summarise<kTeam, A>(p, every(mine ? n : 0, lane, lanes, reward), lanes);
    if (!mine) continue;
    if (lane == 0) total.add(group, pivot, stage == Stage::count);
    if (stage == Stage::count) continue;
    const A factor = writer.factor_of(group);
    for (int64_t k = lane; k < n; k += lanes) out[g * n + k] = writer(group, factor, A(widen(r[k])));
  }
  store_partial(p, stage, total, kWarp, pivot);
}

// Sorted ids: each warp takes the groups that begin among its 32 positions, one after the other.
template <class T, class A>
__global__ void __launch_bounds__(kThreads, 3) advantage_labels_kernel(AdvantageParams p, Stage stage, int blocks) {
  const T* rewards = static_cast<const T*>(p.rewards);
  A* out = static_cast<A*>(p.advantages);
  const Writer<A> writer = stage_writer<A>(p, stage);
  const double pivot = pivot_of<T>(p, stage);
  const int lane = int(threadIdx.x) % kWarp;
  Totals<int> total;
  for (int64_t base = int64_t(blockIdx.x) * kThreads; base < p.count; base += int64_t(blocks) * kThreads) {
    const int64_t first = base + int(threadIdx.x) / kWarp * kWarp, mine = first + lane;
    const bool head = mine < p.count && (mine == 0 || p.ids[mine] != p.ids[mine - 1]);
    for (unsigned heads = __ballot_sync(kAllLanes, head); heads != 0; heads &= heads - 1) {
      const int64_t begin = first + __ffs(int(heads)) - 1, id = p.ids[begin];
      int64_t n = 0;  // run length: whole warps of equal ids, then the part of one
      unsigned equal = kAllLanes;
      while (equal == kAllLanes) {
        const int64_t at = begin + n + lane;
        equal = __ballot_sync(kAllLanes, at < p.count && p.ids[at] == id);
        n += equal == kAllLanes ? kWarp : __ffs(int(~equal)) - 1;
      }
      const int64_t* order = p.order + begin;
      const auto reward = [&](int64_t k) { return A(widen(rewards[order[k]])); };
      const auto group = summarise<kWarp, A>(p, every(n, lane, kWarp, reward), kWarp);
      if (lane == 0) total.add(group, pivot, stage == Stage::count);
      if (stage == Stage::count) continue;
      const A factor = writer.factor_of(group);
      for (int64_t k = lane; k < n; k += kWarp) out[order[k]] = writer(group, factor, A(widen(rewards[order[k]])));
    }
  }
  store_partial(p, stage, total, kWarp, pivot);
}

constexpr int kTotalsThreads = 512;

template <class A> __global__ void __launch_bounds__(kTotalsThreads, 1) advantage_totals_kernel(AdvantageParams p, int blocks) {
  Totals<int64_t> total;
#pragma unroll 4
  for (int c = int(threadIdx.x); c < blocks; c += kTotalsThreads) total.add(partial_totals(p)[c]);
  total = block_totals<kTotalsThreads>(total, 1);
  if (threadIdx.x > 0) return;
  const bool together = p.scale == AdvantageScale::batch;
  const double many = double(max_of(total.finite, int64_t(1))), mean = total.sum / many;  // around the pivot
  write_stats<A>(p, total.groups, total.zero_variance, total.single, total.finite,
                 A(together ? batch_numbers(p)[0] + mean : mean), total.std);
  const double squares = total.squares - total.sum * mean;
  if (together) batch_numbers(p)[1] = double(batch_factor<A>(p, max_of(0.0, squares), total.finite));
}

// launch_stage(stage) for all groups, with the totals in between.
template <class A, class F> void two_stages(const AdvantageParams& p, const Stream& stream, int blocks, const F& launch_stage) {
  const bool together = p.scale == AdvantageScale::batch;
  launch_stage(together ? Stage::count : Stage::all);
  launch(stream, advantage_totals_kernel<A>, 1, kTotalsThreads, 0, p, blocks);
  if (together) launch_stage(Stage::write);
}

template <class T, class A> void run(const AdvantageParams& p, const Stream& stream) {
  if (advantage_is_small(p.count, p.reward_type)) {
    const SmallPlan plan(p, int(sizeof(A)));
    if (p.ids != nullptr) return launch(stream, advantage_small_kernel<T, A, true>, 1, kIdThreads, plan.bytes, p, plan);
    return launch(stream, advantage_small_kernel<T, A, false>, 1, kSmallThreads, plan.bytes, p, plan);
  }
  if (p.ids != nullptr) {
    const int blocks = int(min_of(kAdvantageBlocks, ceil_div(p.count, kThreads)));
    return two_stages<A>(p, stream, blocks, [&](Stage stage) {
      launch(stream, advantage_labels_kernel<T, A>, blocks, kThreads, 0, p, stage, blocks);
    });
  }
  const bool held = p.group_size <= kHeld * kWarp, large = p.group_size > 32 * kWarp;
  const int lanes = held ? lanes_for(p.group_size, kHeld, kWarp) : (large ? kThreads : kWarp);
  const int blocks = int(min_of(kAdvantageBlocks, ceil_div(p.count / p.group_size * lanes, kThreads)));
  two_stages<A>(p, stream, blocks, [&](Stage stage) {
    if (held) {
      int bits = 0;
      while (1 << bits < lanes) ++bits;
      return launch(stream, advantage_held_kernel<T, A>, blocks, kThreads, 0, p, stage, bits, blocks);
    }
    const auto kernel = large ? advantage_blocks_kernel<T, A, kThreads> : advantage_blocks_kernel<T, A, kWarp>;
    launch(stream, kernel, blocks, kThreads, 0, p, stage, blocks);
  });
}

}  // namespace

void group_advantage(const AdvantageParams& p, const Stream& stream) {
  for_float(p.reward_type, [&](auto tag) {
    using T = typename decltype(tag)::type;
    run<T, accum_t<T>>(p, stream);
  });
}

}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
