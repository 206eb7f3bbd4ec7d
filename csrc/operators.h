// Operator entry points: defined in torch_<family>.cpp, registered in library.cpp.
#pragma once
#include <tuple>

#include "torch_common.h"

namespace finpercep {

// modulate
std::tuple<Tensor, Tensor> modulate(
    Tensor features, Tensor degradation, int64_t h, int64_t w, int64_t gate, int64_t resample, bool pool);
std::tuple<Tensor, Tensor> modulate_backward(
    Tensor grad, Tensor features, Tensor degradation, Tensor d, int64_t h, int64_t w, int64_t gate, int64_t resample,
    bool pool, bool need_features, bool need_map);

}  // namespace finpercep
