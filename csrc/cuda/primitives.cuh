// Building blocks of the CUDA kernels: number types, packs of 16 bytes, reductions, launches.
//
// Kernels use nothing of CUDA beyond what is used here, so that tests/cuda/emulator.h can stand in for the device and run
// the same sources on a CPU. All reductions have a fixed order: a result depends on shapes alone.
#pragma once
#ifdef FINPERCEP_EMULATE
#include "emulator.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

// __shared__ memory of a block, uninitialised: `T name[count]`; and the bytes that a launch asked for.
#define FINPERCEP_SHARED(T, name, count) __shared__ T name[count]
#define FINPERCEP_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "../include/types.h"
#include "../math/common.h"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

constexpr int kWarp = 32;
// Of every block, except where a kernel says otherwise. The other number in a kernel's __launch_bounds__ is how many blocks
// a multiprocessor must have registers for: as many as the compiler can give without spilling, in any dtype.
constexpr int kThreads = 256;
constexpr unsigned kAllLanes = 0xffffffffu;

// ---- numbers ------------------------------------------------------------------------------------------------------

using half = __half;
using bf16 = __nv_bfloat16;

__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }
__device__ inline float widen(uint8_t x) { return x; }
__device__ inline float widen(half x) { return __half2float(x); }
__device__ inline float widen(bf16 x) { return __bfloat162float(x); }

template <class T> __device__ inline T narrow(double x) { return T(x); }
template <class T> __device__ inline T narrow(float x) { return T(x); }
template <> __device__ inline half narrow<half>(float x) { return __float2half_rn(x); }
template <> __device__ inline half narrow<half>(double x) { return __float2half_rn(float(x)); }
template <> __device__ inline bf16 narrow<bf16>(float x) { return __float2bfloat16_rn(x); }
template <> __device__ inline bf16 narrow<bf16>(double x) { return __float2bfloat16_rn(float(x)); }

// a·b + c, rounded once: written out where two kernels must agree to the last bit.
__device__ inline float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ inline double multiply_add(double a, double b, double c) { return __fma_rn(a, b, c); }

template <class A> __device__ inline bool is_finite(A x) { return x - x == 0; }
template <class A> __device__ inline A infinity() { return A(INFINITY); }

// ---- packs: elements that one thread reads or writes at once ------------------------------------------------------

template <class T> constexpr int kPack = 16 / int(sizeof(T));
template <> constexpr int kPack<uint8_t> = 8;  // sixteen sums of float would be too many registers

template <class T, int N> struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Pack {
  T at[N];
};

// Elements [0, min(N, left)) of `from`, then zeros. 128 bits at a time where all are there and aligned.
template <int N, class T> __device__ inline Pack<T, N> load_pack(const T* from, int64_t left) {
  Pack<T, N> pack;
  if (left >= N && reinterpret_cast<uintptr_t>(from) % alignof(Pack<T, N>) == 0) {
    pack = *reinterpret_cast<const Pack<T, N>*>(from);
  } else {
#pragma unroll
    for (int k = 0; k < N; ++k) pack.at[k] = k < left ? from[k] : narrow<T>(0.0f);
  }
  return pack;
}

// The same where the caller knows that all are there and aligned.
template <int N, class T> __device__ inline Pack<T, N> load_whole(const T* from) {
  return *reinterpret_cast<const Pack<T, N>*>(from);
}
template <int N, class T> __device__ inline Pack<T, N> load_pack(const T* from, int64_t, std::true_type) {
  return load_whole<N>(from);
}
template <int N, class T> __device__ inline Pack<T, N> load_pack(const T* from, int64_t left, std::false_type) {
  return load_pack<N>(from, left);
}

// read(whole) makes a batch of loads, `whole` being true_type where every pack is there and aligned. One branch for all of
// them: with a branch per load nvcc waits for each before it issues the next, as it does for elements of 16 bits.
template <class F> __device__ inline void read_batch(bool whole, const F& read) {
  if (whole) read(std::true_type());
  else read(std::false_type());
}

// Whether packs of N can be read at once from all of these addresses, and from any number of packs further on.
template <int N, class... T> __device__ inline bool aligned(const T*... from) {
  return (... && (reinterpret_cast<uintptr_t>(from) % alignof(Pack<T, N>) == 0));
}

template <int N, class T, class A> __device__ inline void store_pack(T* to, int64_t left, const A (&values)[N]) {
  Pack<T, N> pack;
#pragma unroll
  for (int k = 0; k < N; ++k) pack.at[k] = narrow<T>(values[k]);
  if (left >= N && reinterpret_cast<uintptr_t>(to) % alignof(Pack<T, N>) == 0) {
    // By intrinsic: nvcc would break up a plain assignment to merge it with the stores below.
    using Bits = std::conditional_t<sizeof(pack) % sizeof(uint4) == 0, uint4, uint2>;
    static_assert(sizeof(pack) % sizeof(Bits) == 0, "whole stores");
#pragma unroll
    for (int k = 0; k < int(sizeof(pack) / sizeof(Bits)); ++k) {
      Bits bits;
      memcpy(&bits, reinterpret_cast<const char*>(pack.at) + k * sizeof(Bits), sizeof(Bits));
      __stwb(reinterpret_cast<Bits*>(to) + k, bits);
    }
  } else {
#pragma unroll
    for (int k = 0; k < N; ++k)
      if (k < left) to[k] = pack.at[k];
  }
}

// The power of two of threads, at most `most`, that a row of `count` elements keeps busy, a pack each.
__host__ __device__ inline int lanes_for(int64_t count, int pack, int most) {
  int lanes = 1;
  while (lanes < most && int64_t(lanes) * pack < count) lanes *= 2;
  return lanes;
}

// ---- tensors of a dtype that is known when compiling, or only at run time -----------------------------------------

struct Any {};  // mixtures of dtypes that nobody is in a hurry with: element by element

template <class T, class A> struct Array {
  using Element = T;  // of a pack
  T* data;
  __device__ Array(const void* memory, DType) : data(static_cast<T*>(const_cast<void*>(memory))) {}
  template <int N> __device__ bool aligned_at(int64_t i) const { return aligned<N>(data + i); }
  template <int N, class Whole = std::false_type>
  __device__ Pack<T, N> load(int64_t i, int64_t left, Whole whole = {}) const {
    return load_pack<N>(data + i, left, whole);
  }
  template <int N> __device__ void store(int64_t i, int64_t left, const A (&values)[N]) const {
    store_pack<N>(data + i, left, values);
  }
  __device__ A one(int64_t i) const { return A(widen(data[i])); }
  __device__ A rounded(A x) const { return A(widen(narrow<T>(x))); }  // as it will be stored
};

template <class A> struct Array<Any, A> {
  using Element = A;
  void* data;
  DType type;
  __device__ Array(const void* memory, DType t) : data(const_cast<void*>(memory)), type(t) {}
  template <class F> __device__ void with_type(const F& f) const {
    switch (type) {
      case DType::f64: return f(static_cast<double*>(data));
      case DType::bf16: return f(static_cast<bf16*>(data));
      case DType::f16: return f(static_cast<half*>(data));
      default: return f(static_cast<float*>(data));
    }
  }
  __device__ A one(int64_t i) const {
    A value = 0;
    with_type([&](auto* memory) { value = A(widen(memory[i])); });
    return value;
  }
  __device__ A rounded(A x) const {
    A value = x;
    with_type([&](auto* memory) { value = A(widen(narrow<std::remove_pointer_t<decltype(memory)>>(x))); });
    return value;
  }
  template <int N> __device__ bool aligned_at(int64_t) const { return false; }
  template <int N, class Whole = std::false_type>
  __device__ Pack<A, N> load(int64_t i, int64_t left, Whole = {}) const {
    Pack<A, N> pack;
#pragma unroll
    for (int k = 0; k < N; ++k) pack.at[k] = k < left ? one(i + k) : A(0);
    return pack;
  }
  template <int N> __device__ void store(int64_t i, int64_t left, const A (&values)[N]) const {
#pragma unroll
    for (int k = 0; k < N; ++k)
      if (k < left)
        with_type([&](auto* memory) { memory[i + k] = narrow<std::remove_pointer_t<decltype(memory)>>(values[k]); });
  }
};

// ---- reductions: every thread gets the result ----------------------------------------------------------------------

// Over each run of `lanes` threads, a power of two up to 32. All threads of the warp take part.
template <class V, class Merge> __device__ inline V team_reduce(V value, int lanes, const Merge& merge) {
  for (int step = lanes / 2; step > 0; step /= 2) value = merge(value, __shfl_xor_sync(kAllLanes, value, step));
  return value;
}

// Over a block of kCount threads, all of which take part.
template <int kCount = kThreads, class V, class Merge> __device__ inline V block_reduce(V value, const Merge& merge) {
  FINPERCEP_SHARED(V, parts, kCount / kWarp);
  value = team_reduce(value, kWarp, merge);
  __syncthreads();  // parts may still be read by an earlier call
  if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = value;
  __syncthreads();
  V total = parts[0];
#pragma unroll
  for (int k = 1; k < kCount / kWarp; ++k) total = merge(total, parts[k]);
  return total;
}

struct Sum {
  template <class V> __device__ V operator()(V a, V b) const { return a + b; }
};
struct Lowest {  // NaN, once there, stays
  template <class V> __device__ V operator()(V a, V b) const { return b < a || b != b ? b : a; }
};
struct Highest {
  template <class V> __device__ V operator()(V a, V b) const { return b > a || b != b ? b : a; }
};

// ---- launches -----------------------------------------------------------------------------------------------------

inline void check(bool ok, const std::string& message) {
  if (!ok) throw std::runtime_error("finpercep: " + message);
}

constexpr int64_t kMostBlocks = (int64_t(1) << 31) - 1;  // of grid x, the one large dimension
constexpr int kPlainShared = 48 << 10;                   // more must be asked for

#ifdef FINPERCEP_EMULATE

template <class... P, class... Q>
void launch(const Stream&, void (*kernel)(P...), int64_t blocks, int threads, int shared_bytes, const Q&... arguments) {
  check(blocks <= kMostBlocks, "too many blocks");
  emulator::run(blocks, threads, shared_bytes, [&] { kernel(arguments...); });
}
inline void set_zero(const Stream&, void* memory, int64_t bytes) { std::memset(memory, 0, bytes); }

#else

inline void check(cudaError_t error, const char* what) {
  check(error == cudaSuccess, std::string(what) + ": " + cudaGetErrorString(error));
}

// kernel<<<blocks, threads, shared_bytes, stream>>>(arguments...), checked; nothing for no blocks.
template <class... P, class... Q>
void launch(const Stream& stream, void (*kernel)(P...), int64_t blocks, int threads, int shared_bytes,
            const Q&... arguments) {
  if (blocks == 0) return;
  check(blocks <= kMostBlocks, "the tensors are too large for one launch");
  if (shared_bytes > kPlainShared)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes), "shared memory");
  const auto cuda_stream = static_cast<cudaStream_t>(stream.handle);
  kernel<<<unsigned(blocks), unsigned(threads), size_t(shared_bytes), cuda_stream>>>(arguments...);
  check(cudaGetLastError(), "kernel launch");
}
inline void set_zero(const Stream& stream, void* memory, int64_t bytes) {
  check(cudaMemsetAsync(memory, 0, size_t(bytes), static_cast<cudaStream_t>(stream.handle)), "memset");
}

#endif

// f(Tag<T>{}) for a float type
template <class F> void for_float(DType type, const F& f) {
  switch (type) {
    case DType::f64: return f(Tag<double>{});
    case DType::bf16: return f(Tag<bf16>{});
    case DType::f16: return f(Tag<half>{});
    default: return f(Tag<float>{});
  }
}

}  // namespace
}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
