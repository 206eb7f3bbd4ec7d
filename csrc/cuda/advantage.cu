// group_advantage. Up to kAdvantageSmall rewards: one block, one launch, blocks of equal size or int64 ids alike (ids are
// sorted in shared memory). More: a team of threads per group, statistics merged in a fixed order by a second launch; ids
// come sorted, with the order they were in.
#include "../include/advantage.h"

#include "primitives.cuh"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

// ---- one group ------------------------------------------------------------------------------------------------------

template <class A> struct Group {
  int64_t finite = 0;
  A mean = 0, squares = 0, std = 0;  // squares: Σ (r - mean)²
  bool varied = false;               // by comparison: a rounded mean would lie about equal rewards
};

// Of the rewards that a thread of a team takes: f(reward) for every `lanes`-th of n, from `lane` on.
template <class F> __device__ auto every(int64_t n, int lane, int lanes, const F& reward) {
  return [=](const auto& f) {
#pragma unroll 4
    for (int64_t k = lane; k < n; k += lanes) f(reward(k));
  };
}

// By a team of `lanes` threads: up to a warp, or kTeam = kThreads for a whole block. each(f): f of every reward of this
// thread. All threads of the warp (block) take part, those without a group with no rewards.
template <int kTeam, class A, class F> __device__ Group<A> summarise(const F& each, int lanes, int64_t correction) {
  const auto reduce = [&](auto value, const auto& merge) {
    if constexpr (kTeam > kWarp) return block_reduce<kTeam>(value, merge);
    else return team_reduce(value, lanes, merge);
  };
  Group<A> group;
  A sum = 0, low = infinity<A>(), high = -infinity<A>();
  int finite = 0;
  each([&](A r) {
    if (is_finite(r)) sum += r, finite += 1, low = min_of(low, r), high = max_of(high, r);
  });
  sum = reduce(sum, Sum()), finite = reduce(finite, Sum()), low = reduce(low, Lowest()), high = reduce(high, Highest());
  group.finite = finite, group.varied = high > low;
  if (finite > 0) group.mean = sum / A(finite);
  A squares = 0;
  each([&](A r) {
    const A away = r - group.mean;
    if (is_finite(r)) squares += away * away;
  });
  squares = reduce(squares, Sum());
  if (group.varied) group.squares = squares, group.std = root(squares / A(max_of(finite - correction, int64_t(1))));
  return group;
}

template <class A> struct Writer {
  A eps, clip, divisor;  // divisor: of scale batch, else 1
  bool by_group;
  __device__ Writer(const AdvantageParams& p, A batch_divisor)
      : eps(A(p.eps)), clip(p.clip > 0 ? A(p.clip) : infinity<A>()),
        divisor(p.scale == AdvantageScale::batch ? batch_divisor : A(1)), by_group(p.scale == AdvantageScale::group) {}
  __device__ A operator()(const Group<A>& group, A reward) const {
    if (!group.varied || !is_finite(reward)) return 0;
    const A by = by_group ? group.std + eps : divisor, advantage = (reward - group.mean) / (by > 0 ? by : A(1));
    return max_of(-clip, min_of(clip, advantage));
  }
};

// ---- all groups -----------------------------------------------------------------------------------------------------

struct Totals {
  int64_t groups, zero_variance, single, finite;
  double sum, squares, std, comparable;  // squares: Σ (r - mean of all)²
};
static_assert(sizeof(Totals) == 64, "as the scratch memory is laid out");

// `together`: the squares too, which only scale batch needs; they cost three divisions in double.
__device__ inline Totals merged(const Totals& a, const Totals& b, bool together) {
  double between = 0;
  if (together && a.finite > 0 && b.finite > 0) {
    const double n = double(a.finite), m = double(b.finite), apart = a.sum / n - b.sum / m;
    between = apart * apart * (n * m / (n + m));
  }
  return {a.groups + b.groups, a.zero_variance + b.zero_variance, a.single + b.single, a.finite + b.finite,
          a.sum + b.sum, a.squares + b.squares + between, a.std + b.std, a.comparable + b.comparable};
}

template <class A> __device__ Totals totals_of(const Group<A>& g) {
  const bool comparable = g.finite >= 2;
  return {1, comparable && !g.varied, !comparable, g.finite, double(g.mean) * double(g.finite), double(g.squares),
          double(g.std), double(comparable)};
}

__device__ inline Totals shuffled(const Totals& t, int step) {
  const auto from = [&](auto x) { return __shfl_xor_sync(kAllLanes, x, step); };
  return {from(t.groups), from(t.zero_variance), from(t.single), from(t.finite),
          from(t.sum), from(t.squares), from(t.std), from(t.comparable)};
}

// Over a block of kCount threads, of which every `apart`-th holds something; for its first warp. Once per kernel.
template <int kCount> __device__ Totals block_totals(Totals total, int apart, bool together) {
  FINPERCEP_SHARED(Totals, parts, kCount / kWarp);
  for (int step = kWarp / 2; step >= apart; step /= 2) total = merged(total, shuffled(total, step), together);
  if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = total;
  __syncthreads();
  if (threadIdx.x >= kWarp) return total;
  total = threadIdx.x < kCount / kWarp ? parts[threadIdx.x] : Totals{};
#pragma unroll
  for (int step = kCount / kWarp / 2; step > 0; step /= 2) total = merged(total, shuffled(total, step), together);
  return total;
}

// (std + eps) over all rewards
template <class A> __device__ A batch_divisor(const AdvantageParams& p, const Totals& t) {
  return A(root(t.squares / double(max_of(t.finite - p.correction, int64_t(1)))) + p.eps);
}

template <class A> __device__ void write_stats(const AdvantageParams& p, const Totals& t) {
  p.counts[0] = t.groups, p.counts[1] = t.zero_variance, p.counts[2] = t.single, p.counts[3] = p.count - t.finite;
  A* moments = static_cast<A*>(p.moments);
  moments[0] = A(t.finite > 0 ? t.sum / double(t.finite) : 0);
  moments[1] = A(t.comparable > 0 ? t.std / t.comparable : 0);
}

// ---- few rewards: one block -----------------------------------------------------------------------------------------

constexpr int kSmallThreads = 512;

// Dynamic shared memory of the small kernel. Rewards take the place of the ids once those are sorted.
struct SmallLayout {
  int padded;  // a power of two: what is sorted
  __host__ __device__ explicit SmallLayout(int64_t count) : padded(2) {
    while (padded < count) padded *= 2;
  }
  __host__ __device__ int ids() const { return 0; }                          // int64, then rewards as A
  __host__ __device__ int order() const { return 8 * padded; }               // uint16: where a sorted id comes from
  __host__ __device__ int starts() const { return order() + 2 * padded; }    // uint16: first of each group, and the end
  __host__ __device__ int bytes() const { return starts() + 2 * (padded + 1); }
};

// Bitonic sort by id, equal ids by position.
__device__ inline void sort_ids(int64_t* ids, uint16_t* order, int padded) {
  for (int size = 2; size <= padded; size *= 2)
    for (int stride = size / 2; stride > 0; stride /= 2) {
      __syncthreads();
      for (int t = int(threadIdx.x); t < padded / 2; t += kSmallThreads) {
        const int i = 2 * t - (t & (stride - 1)), j = i + stride;
        const bool after = ids[i] > ids[j] || (ids[i] == ids[j] && order[i] > order[j]);
        if (after != ((i & size) == 0)) continue;
        const int64_t id = ids[i];
        const uint16_t from = order[i];
        ids[i] = ids[j], order[i] = order[j], ids[j] = id, order[j] = from;
      }
    }
  __syncthreads();
}

// starts[g]: where the g-th run of equal ids begins, starts[groups] = count. Returns the number of groups.
__device__ inline int find_starts(const int64_t* ids, uint16_t* starts, int count) {
  FINPERCEP_SHARED(int, sums, kSmallThreads / kWarp);
  const int each = (count + kSmallThreads - 1) / kSmallThreads;
  const int begin = min_of(count, int(threadIdx.x) * each), end = min_of(count, begin + each);
  int heads = 0;
  for (int i = begin; i < end; ++i) heads += i == 0 || ids[i] != ids[i - 1];
  int upto = heads;  // inclusive sum over the warp, then over the block
  for (int step = 1; step < kWarp; step *= 2) {
    const int before = __shfl_up_sync(kAllLanes, upto, step);
    if (int(threadIdx.x % kWarp) >= step) upto += before;
  }
  if (threadIdx.x % kWarp == kWarp - 1) sums[threadIdx.x / kWarp] = upto;
  __syncthreads();
  int total = 0;
  for (int warp = 0; warp < kSmallThreads / kWarp; ++warp) {
    if (warp < int(threadIdx.x) / kWarp) upto += sums[warp];
    total += sums[warp];
  }
  int next = upto - heads;
  for (int i = begin; i < end; ++i)
    if (i == 0 || ids[i] != ids[i - 1]) starts[next++] = uint16_t(i);
  if (threadIdx.x == 0) starts[total] = uint16_t(count);
  __syncthreads();
  return total;
}

// together: of scale batch, which needs every group before it can write any.
template <class T, class A, bool together>
__global__ void __launch_bounds__(kSmallThreads, 1) advantage_small_kernel(AdvantageParams p) {
  FINPERCEP_SHARED(A, shared_divisor, 1);
  FINPERCEP_DYNAMIC_SHARED(memory);
  const SmallLayout layout(p.count);
  uint16_t* order = reinterpret_cast<uint16_t*>(memory + layout.order());
  uint16_t* starts = reinterpret_cast<uint16_t*>(memory + layout.starts());
  A* rewards = reinterpret_cast<A*>(memory);
  const T* source = static_cast<const T*>(p.rewards);
  const int count = int(p.count);
  const bool labelled = p.ids != nullptr;
  int groups = labelled ? 0 : int(p.count / p.group_size);
  if (labelled) {
    int64_t* ids = reinterpret_cast<int64_t*>(memory + layout.ids());
    for (int i = int(threadIdx.x); i < layout.padded; i += kSmallThreads) {
      ids[i] = i < count ? p.ids[i] : INT64_MAX;  // positions put the padding after a real INT64_MAX
      order[i] = uint16_t(i);
    }
    sort_ids(ids, order, layout.padded);
    groups = find_starts(ids, starts, count);
  }
  for (int i = int(threadIdx.x); i < count; i += kSmallThreads) rewards[i] = A(widen(source[labelled ? order[i] : i]));
  __syncthreads();

  int lanes = kWarp;  // per group: as many as keep all threads busy
  while (lanes > 1 && lanes * groups > kSmallThreads) lanes /= 2;
  const int lane = int(threadIdx.x) % lanes, slots = kSmallThreads / lanes, rounds = (groups + slots - 1) / slots;
  A* out = static_cast<A*>(p.advantages);
  Totals total{};
  const auto for_groups = [&](const auto& f) {  // f(group, begin, n); all threads take part
    for (int round = 0; round < rounds; ++round) {
      const int g = round * slots + int(threadIdx.x) / lanes;
      int begin = 0, n = 0;
      if (g < groups) {
        begin = labelled ? starts[g] : g * int(p.group_size);
        n = labelled ? starts[g + 1] - begin : int(p.group_size);
      }
      const auto reward = [&](int64_t k) { return rewards[begin + k]; };
      f(summarise<kWarp, A>(every(n, lane, lanes, reward), lanes, p.correction), begin, n);
    }
  };
  const auto count_group = [&](const Group<A>& group, int n) {
    if (n > 0 && lane == 0) total = merged(total, totals_of(group), together);
  };
  const auto finish_totals = [&] {
    total = block_totals<kSmallThreads>(total, lanes, together);
    if (threadIdx.x == 0) write_stats<A>(p, total);
  };
  A divisor = 1;
  if constexpr (together) {
    for_groups([&](const Group<A>& group, int, int n) { count_group(group, n); });
    finish_totals();
    if (threadIdx.x == 0) shared_divisor[0] = batch_divisor<A>(p, total);
    __syncthreads();
    divisor = shared_divisor[0];
  }
  const Writer<A> writer(p, divisor);
  for_groups([&](const Group<A>& group, int begin, int n) {
    if (!together) count_group(group, n);
    for (int k = begin + lane; k < begin + n; k += lanes) out[labelled ? order[k] : k] = writer(group, rewards[k]);
  });
  if (!together) finish_totals();
}

// ---- many rewards ---------------------------------------------------------------------------------------------------

// What a launch does: both at once, except for scale batch, whose divisor is known after all groups.
enum class Stage : int { all, count, write };

__device__ inline Totals* partial_totals(const AdvantageParams& p) { return static_cast<Totals*>(p.scratch); }
__device__ inline Totals* merged_totals(const AdvantageParams& p) { return partial_totals(p) + kAdvantageBlocks; }

template <class A> __device__ Writer<A> stage_writer(const AdvantageParams& p, Stage stage) {
  return Writer<A>(p, stage == Stage::write ? batch_divisor<A>(p, *merged_totals(p)) : A(1));
}

__device__ inline void store_partial(const AdvantageParams& p, Stage stage, const Totals& total, int apart) {
  if (stage == Stage::write) return;
  const Totals sum = block_totals<kThreads>(total, apart, stage == Stage::count);
  if (threadIdx.x == 0) partial_totals(p)[blockIdx.x] = sum;
}

constexpr int kHeld = 4;  // rewards in a thread's registers

// Groups of equal size, at most kHeld for each of up to a warp of lanes: read once, while the groups before are worked on.
template <class T, class A> __global__ void __launch_bounds__(kThreads, sizeof(A) == sizeof(double) ? 2 : 3)
advantage_held_kernel(AdvantageParams p, Stage stage, int lanes, int blocks) {
  const T* rewards = static_cast<const T*>(p.rewards);
  A* out = static_cast<A*>(p.advantages);
  const Writer<A> writer = stage_writer<A>(p, stage);
  const int64_t n = p.group_size, groups = p.count / n, stride = int64_t(blocks) * (kThreads / lanes);
  const int lane = int(threadIdx.x) % lanes;
  const int64_t offset = lane * kHeld, left = n - offset;
  int64_t g = int64_t(blockIdx.x) * (kThreads / lanes) + threadIdx.x / lanes;
  const auto load = [&](int64_t of) { return load_pack<kHeld>(rewards + of * n + offset, of < groups ? left : 0); };
  Pack<T, kHeld> next = load(g);
  Totals total{};
  for (int64_t first = g - threadIdx.x / lanes; first < groups; first += stride, g += stride) {
    A held[kHeld], results[kHeld];
#pragma unroll
    for (int k = 0; k < kHeld; ++k) held[k] = A(widen(next.at[k]));
    next = load(g + stride);
    const bool mine = g < groups;
    const auto each = [&](const auto& f) {
#pragma unroll
      for (int k = 0; k < kHeld; ++k)
        if (mine && k < left) f(held[k]);
    };
    const auto group = summarise<kWarp, A>(each, lanes, p.correction);
    if (!mine) continue;
    if (lane == 0) total = merged(total, totals_of(group), stage == Stage::count);
    if (stage == Stage::count) continue;
#pragma unroll
    for (int k = 0; k < kHeld; ++k) results[k] = writer(group, held[k]);
    store_pack<kHeld>(out + g * n + offset, left, results);
  }
  store_partial(p, stage, total, lanes);
}

// Larger groups of equal size: each by a warp (kTeam = kWarp), or by the block (kTeam = kThreads).
template <class T, class A, int kTeam>
__global__ void __launch_bounds__(kThreads, 3) advantage_blocks_kernel(AdvantageParams p, Stage stage, int blocks) {
  constexpr int lanes = kTeam;
  const T* rewards = static_cast<const T*>(p.rewards);
  A* out = static_cast<A*>(p.advantages);
  const Writer<A> writer = stage_writer<A>(p, stage);
  const int64_t n = p.group_size, groups = p.count / n;
  const int lane = int(threadIdx.x) % lanes, slots = kThreads / lanes;
  Totals total{};
  for (int64_t first = int64_t(blockIdx.x) * slots; first < groups; first += int64_t(blocks) * slots) {
    const int64_t g = first + threadIdx.x / lanes;
    const bool mine = g < groups;
    const T* r = rewards + (mine ? g : 0) * n;
    const auto reward = [&](int64_t k) { return A(widen(r[k])); };
    const auto group = summarise<kTeam, A>(every(mine ? n : 0, lane, lanes, reward), lanes, p.correction);
    if (!mine) continue;
    if (lane == 0) total = merged(total, totals_of(group), stage == Stage::count);
    if (stage == Stage::count) continue;
    for (int64_t k = lane; k < n; k += lanes) out[g * n + k] = writer(group, A(widen(r[k])));
  }
  store_partial(p, stage, total, kWarp);
}

// Sorted ids: each warp takes the groups that begin among its 32 positions, one after the other.
template <class T, class A>
__global__ void __launch_bounds__(kThreads, 3) advantage_labels_kernel(AdvantageParams p, Stage stage, int blocks) {
  const T* rewards = static_cast<const T*>(p.rewards);
  A* out = static_cast<A*>(p.advantages);
  const Writer<A> writer = stage_writer<A>(p, stage);
  const int lane = int(threadIdx.x) % kWarp;
  Totals total{};
  for (int64_t base = int64_t(blockIdx.x) * kThreads; base < p.count; base += int64_t(blocks) * kThreads) {
    const int64_t first = base + int(threadIdx.x) / kWarp * kWarp, mine = first + lane;
    const bool head = mine < p.count && (mine == 0 || p.ids[mine] != p.ids[mine - 1]);
    for (unsigned heads = __ballot_sync(kAllLanes, head); heads != 0; heads &= heads - 1) {
      const int64_t begin = first + __ffs(heads) - 1, id = p.ids[begin];
      int64_t n = 0;  // run length: whole warps of equal ids, then the part of one
      unsigned equal = kAllLanes;
      while (equal == kAllLanes) {
        const int64_t at = begin + n + lane;
        equal = __ballot_sync(kAllLanes, at < p.count && p.ids[at] == id);
        n += equal == kAllLanes ? kWarp : __ffs(~equal) - 1;
      }
      const int64_t* order = p.order + begin;
      const auto reward = [&](int64_t k) { return A(widen(rewards[order[k]])); };
      const auto group = summarise<kWarp, A>(every(n, lane, kWarp, reward), kWarp, p.correction);
      if (lane == 0) total = merged(total, totals_of(group), stage == Stage::count);
      if (stage == Stage::count) continue;
      for (int64_t k = lane; k < n; k += kWarp) out[order[k]] = writer(group, A(widen(rewards[order[k]])));
    }
  }
  store_partial(p, stage, total, kWarp);
}

constexpr int kTotalsThreads = 512;

template <class A> __global__ void __launch_bounds__(kTotalsThreads, 1) advantage_totals_kernel(AdvantageParams p, int blocks) {
  const bool together = p.scale == AdvantageScale::batch;
  Totals total{};
#pragma unroll 4
  for (int c = int(threadIdx.x); c < blocks; c += kTotalsThreads) total = merged(total, partial_totals(p)[c], together);
  total = block_totals<kTotalsThreads>(total, 1, together);
  if (threadIdx.x > 0) return;
  write_stats<A>(p, total);
  *merged_totals(p) = total;
}

// launch_stage(stage) for all groups, with the totals in between.
template <class A, class F> void two_stages(const AdvantageParams& p, const Stream& stream, int blocks, const F& launch_stage) {
  const bool together = p.scale == AdvantageScale::batch;
  launch_stage(together ? Stage::count : Stage::all);
  launch(stream, advantage_totals_kernel<A>, 1, kTotalsThreads, 0, p, blocks);
  if (together) launch_stage(Stage::write);
}

template <class T, class A> void run(const AdvantageParams& p, const Stream& stream) {
  if (p.count <= kAdvantageSmall) {
    const bool together = p.scale == AdvantageScale::batch;
    const auto kernel = together ? advantage_small_kernel<T, A, true> : advantage_small_kernel<T, A, false>;
    return launch(stream, kernel, 1, kSmallThreads, SmallLayout(p.count).bytes(), p);
  }
  if (p.ids != nullptr) {
    const int blocks = int(min_of(kAdvantageBlocks, ceil_div(p.count, kThreads)));
    return two_stages<A>(p, stream, blocks, [&](Stage stage) {
      launch(stream, advantage_labels_kernel<T, A>, blocks, kThreads, 0, p, stage, blocks);
    });
  }
  const int lanes = lanes_for(p.group_size, kHeld, p.group_size > 32 * kWarp ? kThreads : kWarp);
  const int blocks = int(min_of(kAdvantageBlocks, ceil_div(p.count / p.group_size * lanes, kThreads)));
  two_stages<A>(p, stream, blocks, [&](Stage stage) {
    if (p.group_size <= kHeld * lanes)
      return launch(stream, advantage_held_kernel<T, A>, blocks, kThreads, 0, p, stage, lanes, blocks);
    const auto kernel = lanes == kThreads ? advantage_blocks_kernel<T, A, kThreads> : advantage_blocks_kernel<T, A, kWarp>;
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
