// Types shared by kernels and bindings. No torch, no CUDA headers here or anywhere in include/.
#pragma once
#include <cstdint>

namespace finpercep {

enum class DType : int32_t { f32, f64, bf16, f16, u8 };

// Threads: torch's own pool, handed in as a function pointer so that kernels need no torch headers.
struct Parallel {
  using Body = void (*)(int64_t begin, int64_t end, void* context);
  void (*run)(int64_t count, int64_t grain, Body body, void* context);
  int64_t threads;
};

// Where CUDA kernels go: a cudaStream_t.
struct Stream {
  void* handle;
};

}  // namespace finpercep
