// Helpers of the bindings: dtypes, allocation, threads or stream. The only header of ours that includes torch, stable ABI
// only. The bindings are compiled twice: for the CPU and, with FINPERCEP_CUDA defined, for CUDA.
#pragma once
#if defined(FINPERCEP_CUDA) && !defined(FINPERCEP_EMULATE)
#define USE_CUDA  // declares torch's functions for streams
#include <torch/csrc/stable/accelerator.h>
#endif
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <initializer_list>
#include <optional>

#include "include/types.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#if defined(FINPERCEP_CUDA) && !defined(FINPERCEP_EMULATE)
// Weak, for a torch without CUDA: the import then fails with a sentence (library_cuda.cpp), not with a missing symbol.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);
#endif

namespace finpercep {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Kernels read and write what the parameters say: the bindings check every size, dtype and choice, by name, in one line.

inline DType dtype_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return DType::f32;
    case ScalarType::Double: return DType::f64;
    case ScalarType::BFloat16: return DType::bf16;
    case ScalarType::Half: return DType::f16;
    default: break;
  }
  STD_TORCH_CHECK(false, name, ": expected float32, bfloat16, float16 or float64");
  return DType::f32;
}

// The index of an option's value in an enumeration of `count`.
template <class E> inline E choice(int64_t value, int64_t count, const char* name) {
  STD_TORCH_CHECK(value >= 0 && value < count, name, ": expected an index below ", count, ", got ", value);
  return static_cast<E>(value);
}

#ifdef FINPERCEP_CUDA
inline void check_device(const Tensor& tensor, const Tensor& like, const char* name) {
  STD_TORCH_CHECK(tensor.is_cpu() == like.is_cpu() && tensor.get_device_index() == like.get_device_index(), name,
                  ": expected on the device of the other tensors");
}
#else
inline void check_device(const Tensor&, const Tensor&, const char*) {}  // one device: CUDA takes the calls with two
#endif

inline void check_count(const Tensor& tensor, int64_t count, const Tensor& like, const char* name) {
  STD_TORCH_CHECK(tensor.numel() == count, name, ": expected ", count, " elements, got ", tensor.numel());
  check_device(tensor, like, name);
}

inline void check_tensor(const Tensor& tensor, int64_t count, ScalarType type, const Tensor& like, const char* name) {
  check_count(tensor, count, like, name);
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, ": wrong dtype");
}

inline ScalarType accumulation_type(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// The tensor, contiguous, if it is float32.
inline Tensor dense_float(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float, name, ": expected float32");
  return torch::stable::contiguous(tensor);
}

// on(tensor): the last argument of every launch.
#if defined(FINPERCEP_EMULATE)
inline Stream on(const Tensor&) { return {nullptr}; }
#elif defined(FINPERCEP_CUDA)
// Makes the tensor's device current for as long as it lives, and is its current stream.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream_.handle));
  }
  operator const Stream&() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  Stream stream_{};
};
inline OnDevice on(const Tensor& tensor) { return OnDevice(tensor); }
#else
inline Parallel on(const Tensor&) {
  Parallel p;
  p.threads = torch::stable::get_num_threads();
  p.run = [](int64_t count, int64_t grain, Parallel::Body body, void* context) {
    torch::stable::parallel_for(0, count, grain, [=](int64_t begin, int64_t end) { body(begin, end, context); });
  };
  return p;
}
#endif

// Uninitialised output. Large ones ask for huge pages: a fresh allocation is paid per page at the first touch, and
// 4 KiB pages cost more than the arithmetic. Goes through aten::empty, so torch's deterministic fill reaches it.
inline Tensor allocate(torch::headeronly::IntHeaderOnlyArrayRef sizes, ScalarType type, const Tensor& like) {
  Tensor out = torch::stable::empty(sizes, type, std::nullopt, like.device());
#if defined(__linux__) && defined(MADV_HUGEPAGE) && !defined(FINPERCEP_CUDA)
  constexpr uintptr_t kHuge = 2 << 20;
  const int64_t bytes = out.numel() * static_cast<int64_t>(out.element_size());
  if (bytes >= static_cast<int64_t>(4 * kHuge)) {
    const uintptr_t start = reinterpret_cast<uintptr_t>(out.data_ptr());
    const uintptr_t begin = (start + kHuge - 1) & ~(kHuge - 1), end = (start + bytes) & ~(kHuge - 1);
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // a hint: failure changes nothing
  }
#endif
  return out;
}

inline Tensor allocate(std::initializer_list<int64_t> sizes, ScalarType type, const Tensor& like) {
  return allocate(torch::headeronly::IntHeaderOnlyArrayRef(sizes.begin(), sizes.size()), type, like);
}

inline Tensor allocate_like(const Tensor& like) { return allocate(like.sizes(), like.scalar_type(), like); }

}  // namespace finpercep
