// Inverted residual blocks: tensors in, one launch out. CPU only. Views are made contiguous first.
#ifndef FINPERCEP_CUDA
#include "include/inverted_residual.h"
#include "operators.h"

namespace finpercep {
namespace {

// No product of sizes overflows, and scratch memory, which has a few rows of all channels, is there.
constexpr int64_t kMostPixels = int64_t(1) << 20;  // of a side
constexpr int64_t kMostChannels = int64_t(1) << 14;

// A contiguous float32 tensor of these sizes, refused by name.
Tensor dense(const Tensor& tensor, std::initializer_list<int64_t> sizes, const char* name, const char* shape) {
  const Tensor made = dense_float(tensor, name);
  bool same = tensor.dim() == static_cast<int64_t>(sizes.size());
  for (size_t i = 0; same && i < sizes.size(); ++i) same = tensor.size(i) == sizes.begin()[i];
  STD_TORCH_CHECK(same, name, ": expected ", shape);
  return made;
}

const float* data(const Tensor& tensor) { return static_cast<const float*>(tensor.const_data_ptr()); }

bool is_usual(int64_t channels) { return channels >= 1 && channels <= kMostChannels; }

}  // namespace

Tensor inverted_residual(Tensor x, std::optional<Tensor> expand_weight, std::optional<Tensor> expand_bias,
                         Tensor filter_weight, Tensor filter_bias, Tensor project_weight, Tensor project_bias,
                         int64_t stride, bool skip) {
  InvertedResidualParams p{};
  STD_TORCH_CHECK(stride == 1 || stride == 2, "stride: expected 1 or 2, got ", stride);
  STD_TORCH_CHECK(x.dim() == 4 && is_usual(x.size(3)), "x: expected (B,H,W,C), 1 to ", kMostChannels, " channels");
  STD_TORCH_CHECK(x.size(1) >= stride && x.size(1) <= kMostPixels && x.size(2) >= stride && x.size(2) <= kMostPixels,
                  "x: expected sides of ", stride, ", the stride, to ", kMostPixels, " pixels");
  p.batch = x.size(0), p.height = x.size(1), p.width = x.size(2), p.inputs = x.size(3);
  p.stride = stride, p.out_height = p.height / stride, p.out_width = p.width / stride;

  STD_TORCH_CHECK(filter_weight.dim() == 4 && is_usual(filter_weight.size(0)) &&
                      (filter_weight.size(2) == 3 || filter_weight.size(2) == 5),
                  "filter_weight: expected (channels,1,k,k), 1 to ", kMostChannels, " channels, k 3 or 5");
  p.hidden = filter_weight.size(0), p.kernel = filter_weight.size(2);
  STD_TORCH_CHECK(expand_weight.has_value() == expand_bias.has_value(),
                  "expand_weight, expand_bias: expected both or neither");
  STD_TORCH_CHECK(expand_weight.has_value() || p.hidden == p.inputs,
                  "filter_weight: expected the channels of x where expand_weight is None");
  STD_TORCH_CHECK(project_weight.dim() == 4 && is_usual(project_weight.size(0)),
                  "project_weight: expected (outputs, channels of filter_weight, 1, 1), outputs 1 to ", kMostChannels);
  p.outputs = project_weight.size(0);
  p.skip = skip;
  STD_TORCH_CHECK(!skip || (stride == 1 && p.outputs == p.inputs),
                  "skip: expected false unless the stride is 1 and there are as many outputs as channels of x");

  const char* wide = "one number per channel of filter_weight";
  const Tensor pixels = dense(x, {p.batch, p.height, p.width, p.inputs}, "x", "(B,H,W,C)");
  Tensor ew, eb;
  if (expand_weight.has_value()) {
    ew = dense(*expand_weight, {p.hidden, p.inputs, 1, 1}, "expand_weight",
               "(channels of filter_weight, channels of x, 1, 1)");
    eb = dense(*expand_bias, {p.hidden}, "expand_bias", wide);
    p.expand_weight = data(ew), p.expand_bias = data(eb);
  }
  const Tensor fw = dense(filter_weight, {p.hidden, 1, p.kernel, p.kernel}, "filter_weight", "(channels,1,k,k)");
  const Tensor fb = dense(filter_bias, {p.hidden}, "filter_bias", wide);
  const Tensor pw = dense(project_weight, {p.outputs, p.hidden, 1, 1}, "project_weight",
                          "(outputs, channels of filter_weight, 1, 1)");
  const Tensor pb = dense(project_bias, {p.outputs}, "project_bias", "one number per output");
  Tensor out = allocate({p.batch, p.out_height, p.out_width, p.outputs}, ScalarType::Float, x);
  if (out.numel() == 0) return out;
  p.x = data(pixels), p.filter_weight = data(fw), p.filter_bias = data(fb);
  p.project_weight = data(pw), p.project_bias = data(pb), p.out = static_cast<float*>(out.mutable_data_ptr());
  inverted_residual(p, on(x));
  return out;
}

}  // namespace finpercep
#endif
