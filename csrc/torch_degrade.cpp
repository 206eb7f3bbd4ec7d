// Stages of the degradations: tensors in, launches out. CPU only.
#ifndef FINPERCEP_CUDA
#include "include/degrade.h"
#include "operators.h"

namespace finpercep {
namespace {

const float* floats(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float && tensor.is_contiguous(), name,
                  ": expected contiguous float32");
  return static_cast<const float*>(tensor.const_data_ptr());
}

template <class T> const T* values(const Tensor& tensor, ScalarType type, int64_t count, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == type && tensor.is_contiguous() && tensor.numel() == count, name,
                  ": expected one number per sample, contiguous, of the right type");
  return static_cast<const T*>(tensor.const_data_ptr());
}

// Sizes (B,) of samples, each within [1, most].
const int64_t* sizes(const Tensor& tensor, int64_t count, int64_t most, const char* name) {
  const int64_t* size = values<int64_t>(tensor, ScalarType::Long, count, name);
  for (int64_t i = 0; i < count; ++i)
    STD_TORCH_CHECK(size[i] >= 1 && size[i] <= most, name, ": expected sizes within the canvas");
  return size;
}

void check_images(const Tensor& images, const char* name) {
  STD_TORCH_CHECK(images.dim() == 4, name, ": expected (B,C,H,W)");
}

}  // namespace

Tensor degrade_filter(Tensor padded, Tensor kernels) {
  check_images(padded, "padded");
  STD_TORCH_CHECK(kernels.dim() == 3 && kernels.size(0) == padded.size(0) && kernels.size(1) == kernels.size(2) &&
                      kernels.size(1) % 2 == 1 && kernels.size(1) <= padded.size(2) && kernels.size(1) <= padded.size(3),
                  "kernels: expected (B,k,k), k odd and within the image");
  FilterParams p{};
  p.batch = padded.size(0), p.channels = padded.size(1), p.side = kernels.size(1);
  p.height = padded.size(2) - p.side + 1, p.width = padded.size(3) - p.side + 1;
  p.padded = floats(padded, "padded"), p.kernels = floats(kernels, "kernels");
  Tensor out = allocate({p.batch, p.channels, p.height, p.width}, ScalarType::Float, padded);
  p.out = static_cast<float*>(out.mutable_data_ptr());
  degrade_filter(p, on(padded));
  return out;
}

Tensor degrade_resize(Tensor images, Tensor height, Tensor width, Tensor new_height, Tensor new_width, Tensor mode,
                      int64_t border, bool mirror) {
  check_images(images, "images");
  ResizeParams p{};
  p.batch = images.size(0), p.channels = images.size(1), p.rows = images.size(2), p.columns = images.size(3);
  p.images = floats(images, "images"), p.border = border, p.mirror = mirror;
  p.height = sizes(height, p.batch, p.rows, "height"), p.width = sizes(width, p.batch, p.columns, "width");
  constexpr int64_t kMost = int64_t(1) << 20;
  p.new_height = sizes(new_height, p.batch, kMost, "new_height");
  p.new_width = sizes(new_width, p.batch, kMost, "new_width");
  p.mode = values<int64_t>(mode, ScalarType::Long, p.batch, "mode");
  for (int64_t i = 0; i < p.batch; ++i) {
    STD_TORCH_CHECK(p.mode[i] >= 0 && p.mode[i] <= 2, "mode: expected 0, 1 or 2");
    if (p.new_height[i] > p.out_rows) p.out_rows = p.new_height[i];
    if (p.new_width[i] > p.out_columns) p.out_columns = p.new_width[i];
  }
  p.out_rows += 2 * border, p.out_columns += 2 * border;
  Tensor out = allocate({p.batch, p.channels, p.out_rows, p.out_columns}, ScalarType::Float, images);
  p.out = static_cast<float*>(out.mutable_data_ptr());
  degrade_resize(p, on(images));
  return out;
}

Tensor degrade_noise(Tensor images, Tensor height, Tensor width, Tensor gaussian, Tensor strength, Tensor grey, Tensor key,
                     Tensor quantile, Tensor chance, Tensor alias) {
  check_images(images, "images");
  NoiseParams p{};
  p.batch = images.size(0), p.rows = images.size(2), p.columns = images.size(3);
  STD_TORCH_CHECK(images.size(1) == 3, "images: expected 3 channels");
  p.images = floats(images, "images");
  p.height = sizes(height, p.batch, p.rows, "height"), p.width = sizes(width, p.batch, p.columns, "width");
  p.gaussian = values<bool>(gaussian, ScalarType::Bool, p.batch, "gaussian");
  p.grey = values<bool>(grey, ScalarType::Bool, p.batch, "grey");
  p.strength = values<double>(strength, ScalarType::Double, p.batch, "strength");
  p.key = values<int32_t>(key, ScalarType::Int, 2 * p.batch, "key");
  p.quantile = values<float>(quantile, ScalarType::Float, 65536, "quantile");
  p.outcomes = 512;
  p.chance = values<float>(chance, ScalarType::Float, 9 * 256 * p.outcomes, "chance");
  p.alias = values<int16_t>(alias, ScalarType::Short, 9 * 256 * p.outcomes, "alias");
  Tensor out = allocate_like(images);
  p.out = static_cast<float*>(out.mutable_data_ptr());
  degrade_noise(p, on(images));
  return out;
}

Tensor degrade_jpeg(Tensor images, Tensor luma, Tensor chroma) {
  check_images(images, "images");
  JpegParams p{};
  p.batch = images.size(0), p.rows = images.size(2), p.columns = images.size(3);
  STD_TORCH_CHECK(images.size(1) == 3, "images: expected 3 channels");
  p.images = floats(images, "images");
  p.luma = values<float>(luma, ScalarType::Float, 64 * p.batch, "luma");
  p.chroma = values<float>(chroma, ScalarType::Float, 64 * p.batch, "chroma");
  Tensor out = allocate_like(images);
  p.out = static_cast<float*>(out.mutable_data_ptr());
  if (images.numel() > 0) degrade_jpeg(p, on(images));
  return out;
}

}  // namespace finpercep
#endif
