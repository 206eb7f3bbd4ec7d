// The CUDA execution model on a CPU, enough of it to run the kernels of csrc/cuda for tests.
//
// Every thread of a block is a fiber; blocks run one after the other. A barrier or a shuffle switches to the next fiber,
// in an order that the test chooses: what is right in one order only lacks a barrier. Threads that part at a barrier, read
// misaligned packs or leave their block waiting end the program with a message. Shared memory starts as NaN in every block.
#pragma once
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define FINPERCEP_SHARED(T, name, count)     \
  static char name##_key;                    \
  T* const name = static_cast<T*>(emulator::shared(&name##_key, sizeof(T) * (count)))
#define FINPERCEP_DYNAMIC_SHARED(name) unsigned char* const name = emulator::dynamic_shared()

namespace emulator {

struct Index {
  unsigned x;
};
enum class Order { forward, backward, shuffled };

void set_order(Order order);  // of the fibers between two barriers, and of the blocks
void only_last_blocks(int64_t launches);  // of the next so many launches, and nothing of others; negative: all again
void run(int64_t blocks, int threads, int shared_bytes, const std::function<void()>& kernel);
int64_t launches();  // so far

extern Index thread, block, size;  // of the fiber that runs now

void* shared(const void* key, size_t bytes);
unsigned char* dynamic_shared();
void block_barrier();
// Gives `bytes` of `value` to the warp and waits until all its lanes have given theirs: result + lane * kSlot is lane's.
constexpr size_t kSlot = 128;
const char* exchange_bytes(const void* value, size_t bytes);

template <class V> V exchange(V value, int lane) {
  static_assert(sizeof(V) <= kSlot, "a larger slot");
  V result;
  std::memcpy(&result, exchange_bytes(&value, sizeof(V)) + lane * kSlot, sizeof(V));
  return result;
}

}  // namespace emulator

#define threadIdx (emulator::thread)
#define blockIdx (emulator::block)
#define blockDim (emulator::size)

inline void __syncthreads() { emulator::block_barrier(); }
template <class V> V __shfl_xor_sync(unsigned, V value, int mask) {
  return emulator::exchange(value, int(threadIdx.x % 32) ^ mask);
}
template <class V> V __shfl_up_sync(unsigned, V value, int by) {
  const int lane = int(threadIdx.x % 32);
  return emulator::exchange(value, lane >= by ? lane - by : lane);
}
template <class V> V __shfl_sync(unsigned, V value, int lane) { return emulator::exchange(value, lane); }
inline unsigned __ballot_sync(unsigned, bool vote) {
  const char* slots = emulator::exchange_bytes(&vote, sizeof(vote));
  unsigned votes = 0;
  for (int lane = 0; lane < 32; ++lane) votes |= unsigned(slots[lane * emulator::kSlot] != 0) << lane;
  return votes;
}
inline void __threadfence() {}
inline int __ffs(unsigned x) { return __builtin_ffs(int(x)); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
template <class V, class W> V atomicAdd(V* at, W value) {
  const V before = *at;
  *at += V(value);
  return before;
}

template <class V> V atomicMin(V* at, V value) {
  const V before = *at;
  if (value < before) *at = value;
  return before;
}

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
template <class V> void __stwb(V* to, V value) { *to = value; }
template <class V> V __ldcs(const V* from) { return *from; }

using __half = torch::headeronly::Half;
using __nv_bfloat16 = torch::headeronly::BFloat16;
inline float __half2float(__half x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
