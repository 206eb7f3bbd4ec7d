// finpercep._C_cuda: the CUDA kernels of the operators whose schemas finpercep._C defines, and build_info().
//
// A library of its own because it needs a function that a torch without CUDA lacks.
#include <pybind11/pybind11.h>

#include "registration.h"

STABLE_TORCH_LIBRARY_IMPL(finpercep, CUDA, m) { finpercep::register_kernels(m); }

namespace {

namespace py = pybind11;

py::dict build_info() {
  py::dict info;
  info["cuda"] = FINPERCEP_CUDA;
  info["archs"] = py::str(FINPERCEP_CUDA_ARCHS).attr("split")();  // machine code; PTX of the first for all newer GPUs
  info["compiler"] = "nvcc " FINPERCEP_CUDA;
  info["torch_target"] = "2.10";  // oldest torch that this build runs with
  info["torch_built_with"] = FINPERCEP_TORCH_VERSION;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C_cuda, m) {
  if (&aoti_torch_get_current_cuda_stream == nullptr) throw py::import_error("this build of torch has no CUDA");
  m.doc() = "CUDA kernels of FinPercep; importing it registers them for torch.ops.finpercep.*";
  m.def("build_info", &build_info, "CUDA's version, GPU architectures, compiler, torch.");
}
