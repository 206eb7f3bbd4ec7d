// finpercep._C: the schemas of all operators, their CPU kernels, and the Python module with build_info().
// Operators go through torch's stable ABI, so one build serves every torch >= 2.10.
#include <pybind11/pybind11.h>

#include "include/dispatch.h"
#include "registration.h"

STABLE_TORCH_LIBRARY(finpercep, m) { finpercep::define_schemas(m); }
STABLE_TORCH_LIBRARY_IMPL(finpercep, CPU, m) { finpercep::register_kernels(m); }

pybind11::dict enumerations();  // enumerations.cpp

namespace {

namespace py = pybind11;

const char* compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

py::dict build_info() {
  using finpercep::Simd;
  py::list compiled, usable;
  compiled.append("baseline");
#ifdef FINPERCEP_HAS_AVX2
  compiled.append("avx2");
#endif
#ifdef FINPERCEP_HAS_AVX512
  compiled.append("avx512");
#endif
  for (Simd level : {Simd::baseline, Simd::avx2, Simd::avx512})
    if (finpercep::simd_supported(level)) usable.append(finpercep::simd_name(level));
  py::dict info;
  info["compiler"] = compiler();
  info["torch_target"] = "2.10";  // oldest torch that this build runs with
  info["torch_built_with"] = FINPERCEP_TORCH_VERSION;
  info["simd_compiled"] = compiled;
  info["simd_usable"] = usable;
  info["simd"] = finpercep::simd_name(finpercep::simd_level());
  info["threads"] = "torch intra-op pool";
#ifdef _OPENMP
  info["openmp"] = _OPENMP;
#else
  info["openmp"] = py::none();  // none of our own: torch's pool decides
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled CPU operators of FinPercep; importing it registers torch.ops.finpercep.*";
  m.def("build_info", &build_info, "Compiler, SIMD levels (compiled, usable, in use), threads.");
  m.def("enumerations", &enumerations, "Names and values of the enumerations that C++, Triton and Python share.");
  m.def("set_simd_level", [](const char* name) { finpercep::set_simd_level(name); }, py::arg("name"),
        "Switch the SIMD level of all operators: 'baseline', 'avx2' or 'avx512'. The environment variable FINPERCEP_SIMD"
        " does the same at import.");
  finpercep::simd_level();  // a wrong FINPERCEP_SIMD fails here, not in the first operator
}
