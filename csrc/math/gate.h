// The gate of modulate: weight(d) and its derivative.
#pragma once
#include "../include/modulate.h"
#include "common.h"

namespace finpercep {
namespace FINPERCEP_ARCH {
namespace {

template <class A> FINPERCEP_FN A gate_weight(Gate gate, A d) {
  switch (gate) {
    case Gate::quality: return 1 - d;
    case Gate::residual: return 1 + d;
    default: return d;
  }
}
template <class A> FINPERCEP_FN A gate_slope(Gate gate) { return gate == Gate::quality ? A(-1) : A(1); }

}  // namespace
}  // namespace FINPERCEP_ARCH
}  // namespace finpercep
