// enumerations() of the Python module: apart from library.cpp, where the kernels' overloads would hide the operators.
#include <pybind11/pybind11.h>

#include "include/advantage.h"
#include "include/degradation_target.h"
#include "include/degrade.h"
#include "include/degrade_columns.h"
#include "include/dispatch.h"
#include "include/modulate.h"
#include "include/sde.h"

namespace py = pybind11;

// Names and values of what C++, Triton and Python share; a test compares them.
py::dict enumerations() {
  using namespace finpercep;
  const auto value = [](auto member) { return static_cast<int64_t>(member); };
  using py::literals::operator""_a;
  py::dict all;
  all["gate"] = py::dict("degradation"_a = value(Gate::degradation), "quality"_a = value(Gate::quality),
                         "residual"_a = value(Gate::residual));
  all["resample"] = py::dict("area"_a = value(Resample::area), "bilinear"_a = value(Resample::bilinear));
  all["normalize"] = py::dict("none"_a = value(Normalize::none), "minmax"_a = value(Normalize::minmax),
                              "percentile"_a = value(Normalize::percentile), "scale"_a = value(Normalize::scale));
  all["advantage_scale"] = py::dict("group"_a = value(AdvantageScale::group), "batch"_a = value(AdvantageScale::batch),
                                    "none"_a = value(AdvantageScale::none));
  all["sde_kind"] = py::dict("flow"_a = value(SdeKind::flow), "cps"_a = value(SdeKind::cps),
                             "dance"_a = value(SdeKind::dance));
  all["resize_mode"] = py::dict("area"_a = value(ResizeMode::area), "bilinear"_a = value(ResizeMode::bilinear),
                                "bicubic"_a = value(ResizeMode::bicubic));
  py::dict integers, flags;
  for (int c = 0; c < DrawnInteger::count; ++c) integers[DrawnInteger::names[c]] = c;
  for (int c = 0; c < DrawnFlag::count; ++c) flags[DrawnFlag::names[c]] = c;
  all["drawn_integer"] = integers, all["drawn_flag"] = flags;
  return all;
}
