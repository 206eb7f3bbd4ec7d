// Stages of the degradations: tensors in, launches out. CPU only.
#ifndef FINPERCEP_CUDA
#include "include/degrade.h"
#include "include/degrade_columns.h"
#include "operators.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <new>
#include <vector>

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

// A table with one row per sample: refused by name if it has another type or width.
template <class T> const T* table_of(const Tensor& tensor, ScalarType type, const char* type_name, int64_t rows,
                                     int64_t columns, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == type && tensor.is_contiguous(), name, ": expected contiguous ", type_name);
  STD_TORCH_CHECK(tensor.dim() >= 1 && tensor.size(0) == rows && tensor.numel() == rows * columns, name, ": expected ",
                  rows, " rows of ", columns, ", one row per sample");
  return static_cast<const T*>(tensor.const_data_ptr());
}

constexpr int64_t kMostPixels = int64_t(1) << 20;  // of a side
constexpr int64_t kMostWeights = int64_t(1) << 28;  // of a resize: memory that is not there would end the process

void check_images(const Tensor& images, const char* name) {
  STD_TORCH_CHECK(images.dim() == 4 && images.size(2) <= kMostPixels && images.size(3) <= kMostPixels, name,
                  ": expected (B,C,H,W), H and W at most ", kMostPixels);
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
  STD_TORCH_CHECK(border >= 0 && border <= kMostPixels, "border: expected in [0, ", kMostPixels, "], got ", border);
  p.new_height = sizes(new_height, p.batch, kMostPixels, "new_height");
  p.new_width = sizes(new_width, p.batch, kMostPixels, "new_width");
  p.mode = values<int64_t>(mode, ScalarType::Long, p.batch, "mode");
  for (int64_t i = 0; i < p.batch; ++i) {
    STD_TORCH_CHECK(p.mode[i] >= 0 && p.mode[i] <= 2, "mode: expected 0, 1 or 2");
    if (p.new_height[i] > p.out_rows) p.out_rows = p.new_height[i];
    if (p.new_width[i] > p.out_columns) p.out_columns = p.new_width[i];
  }
  p.out_rows += 2 * border, p.out_columns += 2 * border;
  for (int64_t i = 0; i < p.batch; ++i) {  // one table of weights per side
    const int64_t down = p.height[i] / p.new_height[i] + 2, across = p.width[i] / p.new_width[i] + 2;
    STD_TORCH_CHECK(down * p.out_rows <= kMostWeights && across * p.out_columns <= kMostWeights,
                    "new_height, new_width: expected sizes that are not so far apart");
  }
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
  p.gaussian = values<uint8_t>(gaussian, ScalarType::Bool, p.batch, "gaussian");
  p.grey = values<uint8_t>(grey, ScalarType::Bool, p.batch, "grey");
  p.strength = values<double>(strength, ScalarType::Double, p.batch, "strength");
  p.key = values<int32_t>(key, ScalarType::Int, 2 * p.batch, "key");
  p.quantile = values<float>(quantile, ScalarType::Float, 65536, "quantile");
  p.outcomes = 512;
  p.chance = values<float>(chance, ScalarType::Float, 9 * 256 * p.outcomes, "chance");
  p.alias = values<int32_t>(alias, ScalarType::Int, 9 * 256 * p.outcomes, "alias");
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

namespace {

using I = DrawnInteger;
using Flag = DrawnFlag;

// What is drawn for one sample: rows of the tensors of degrade_samples.
struct Drawn {
  const int64_t* integers;
  const uint8_t* flags;
  const double* strengths;  // of both noises
  const int32_t* keys;      // two each
  const float* tables;      // luma, chroma of both JPEGs, 64 each
};

// One sample through all stages, on this thread. Each step reads `now` and leaves its result there.
class Pipeline {
 public:
  Pipeline(const Drawn& drawn, const NoiseParams& tables, float* a, float* b)
      : drawn_(drawn), tables_(tables), free_{a, b} {}

  const float* now = nullptr;
  int64_t rows = 0, columns = 0;

  // From the size at integers[from] to that at integers[to], and `border` reflected pixels around it.
  void resize(int from, int to, int mode, int64_t border) {
    const int64_t* n = drawn_.integers;
    ResizeParams p{};
    p.images = now, p.batch = 1, p.channels = 3, p.rows = rows, p.columns = columns;
    p.height = n + from, p.width = n + from + 1, p.new_height = n + to, p.new_width = n + to + 1, p.mode = n + mode;
    p.out_rows = n[to] + 2 * border, p.out_columns = n[to + 1] + 2 * border, p.border = border, p.mirror = true;
    p.out = next(p.out_rows, p.out_columns);
    finpercep::degrade_resize(p, kHere);
  }
  void filter(const float* kernel, int64_t side) {
    FilterParams p{};
    p.padded = now, p.kernels = kernel, p.batch = 1, p.channels = 3, p.side = side;
    p.height = rows - side + 1, p.width = columns - side + 1;
    p.out = next(p.height, p.width);
    finpercep::degrade_filter(p, kHere);
  }
  void noise(int size, int order) {
    NoiseParams p = tables_;
    p.images = now, p.batch = 1, p.rows = rows, p.columns = columns;
    p.height = drawn_.integers + size, p.width = drawn_.integers + size + 1;
    p.gaussian = drawn_.flags + 2 * order, p.grey = p.gaussian + 1;
    p.strength = drawn_.strengths + order, p.key = drawn_.keys + 2 * order;
    p.out = next(rows, columns);
    finpercep::degrade_noise(p, kHere);
  }
  void jpeg(int order) {
    JpegParams p{};
    p.images = now, p.luma = drawn_.tables + 128 * order, p.chroma = p.luma + 64;
    p.batch = 1, p.rows = rows, p.columns = columns;
    p.out = next(rows, columns);
    finpercep::degrade_jpeg(p, kHere);
  }
  void clamp() {
    float* pixels = free_[1];  // where `now` is
    for (int64_t i = 0; i < 3 * rows * columns; ++i) pixels[i] = pixels[i] < 0 ? 0 : pixels[i] > 1 ? 1 : pixels[i];
  }

 private:
  static constexpr Parallel kHere{[](int64_t count, int64_t, Parallel::Body body, void* c) { body(0, count, c); }, 1};

  float* next(int64_t new_rows, int64_t new_columns) {
    std::swap(free_[0], free_[1]);
    float* out = free_[1];
    now = out, rows = new_rows, columns = new_columns;
    return out;
  }

  const Drawn& drawn_;
  const NoiseParams& tables_;
  float* free_[2];
};

// Refuses what is out of range, by column. Returns the floats of the largest image between two stages.
int64_t check_drawn(const Tensor& images, const int64_t* integers, const double* strengths, const float* tables,
                    const int64_t* order, int64_t border) {
  const int64_t batch = images.size(0);
  std::vector<bool> taken(batch, false);
  int64_t most = 0;
  for (int64_t i = 0; i < batch; ++i) {
    const int64_t* own = integers + I::count * i;
    STD_TORCH_CHECK(order[i] >= 0 && order[i] < batch && !taken[order[i]], "order: expected the index of every sample once");
    taken[order[i]] = true;
    for (int c = I::height; c <= I::final_width; ++c)
      STD_TORCH_CHECK(own[c] >= 1 && own[c] <= kMostPixels, "integers: ", I::names[c], ": expected a size in [1, ",
                      kMostPixels, "], got ", own[c]);
    for (int c = I::mode1; c <= I::bilinear; ++c)
      STD_TORCH_CHECK(own[c] >= 0 && own[c] <= 2, "integers: ", I::names[c], ": expected a mode 0, 1 or 2, got ", own[c]);
    STD_TORCH_CHECK(own[I::height] == images.size(2) && own[I::width] == images.size(3),
                    "integers: height, width: expected the size of the images");
    STD_TORCH_CHECK(own[I::final_height] == integers[I::final_height] && own[I::final_width] == integers[I::final_width],
                    "integers: final_height, final_width: expected one size for all results");
    for (int64_t k = 0; k < kDrawnStrengths; ++k)
      STD_TORCH_CHECK(std::isfinite(strengths[kDrawnStrengths * i + k]), "strengths: expected finite numbers");
    for (int64_t k = 0; k < 64 * kDrawnTables; ++k)
      STD_TORCH_CHECK(tables[64 * kDrawnTables * i + k] >= 1, "tables: expected quantization steps of 1 or more");
    for (int c = I::height; c <= I::final_width; c += 2)
      most = std::max(most, 3 * (own[c] + border) * (own[c + 1] + border));
  }
  return most;
}

}  // namespace

// finpercep/data/degradations/apply.py: all stages, sample by sample, so that what lies between them stays in cache.
Tensor degrade_samples(Tensor images, Tensor first, Tensor second, Tensor sinc, Tensor integers, Tensor flags,
                       Tensor strengths, Tensor keys, Tensor tables, Tensor order, Tensor quantile, Tensor chance,
                       Tensor alias) {
  check_images(images, "images");
  const int64_t batch = images.size(0), plane = images.size(2) * images.size(3);
  STD_TORCH_CHECK(images.size(1) == 3, "images: expected 3 channels");
  const float *pixels = floats(images, "images"), *kernels[3];
  int64_t sides[3];
  const Tensor* given[3] = {&first, &second, &sinc};
  for (int i = 0; i < 3; ++i) {
    STD_TORCH_CHECK(given[i]->dim() == 3 && given[i]->size(0) == batch && given[i]->size(1) == given[i]->size(2) &&
                        given[i]->size(1) % 2 == 1, "kernels: expected (B,k,k), k odd");
    kernels[i] = floats(*given[i], "kernels"), sides[i] = given[i]->size(1);
  }
  const int64_t* n = table_of<int64_t>(integers, ScalarType::Long, "int64", batch, I::count, "integers");
  const uint8_t* flag = table_of<uint8_t>(flags, ScalarType::Bool, "bool", batch, Flag::count, "flags");
  const double* strength = table_of<double>(strengths, ScalarType::Double, "float64", batch, kDrawnStrengths, "strengths");
  const int32_t* key = table_of<int32_t>(keys, ScalarType::Int, "int32", batch, kDrawnKeys, "keys");
  const float* table = table_of<float>(tables, ScalarType::Float, "float32", batch, 64 * kDrawnTables, "tables");
  const int64_t* turn = table_of<int64_t>(order, ScalarType::Long, "int64", batch, 1, "order");
  NoiseParams noise{};
  noise.outcomes = 512;
  noise.quantile = values<float>(quantile, ScalarType::Float, 65536, "quantile");
  noise.chance = values<float>(chance, ScalarType::Float, 9 * 256 * noise.outcomes, "chance");
  noise.alias = values<int32_t>(alias, ScalarType::Int, 9 * 256 * noise.outcomes, "alias");
  const int64_t most = check_drawn(images, n, strength, table, turn, std::max({sides[0], sides[1], sides[2]}));
  const int64_t height = batch > 0 ? n[I::final_height] : 0, width = batch > 0 ? n[I::final_width] : 0;
  Tensor out = allocate({batch, 3, height, width}, ScalarType::Float, images);
  float* results = static_cast<float*>(out.mutable_data_ptr());
  std::atomic<bool> fits{true};
  torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<float[]> a(new (std::nothrow) float[most]), b(new (std::nothrow) float[most]);
    if (a == nullptr || b == nullptr) {
      fits = false;
      return;
    }
    for (int64_t at = begin; at < end; ++at) {
      const int64_t i = turn[at];
      const Drawn drawn{n + I::count * i, flag + Flag::count * i, strength + 2 * i, key + 4 * i, table + 256 * i};
      const float* own[3];
      for (int k = 0; k < 3; ++k) own[k] = kernels[k] + i * sides[k] * sides[k];
      Pipeline run(drawn, noise, a.get(), b.get());
      run.now = pixels + 3 * i * plane, run.rows = images.size(2), run.columns = images.size(3);
      run.resize(I::height, I::height, I::bilinear, sides[0] / 2);
      run.filter(own[0], sides[0]);
      run.resize(I::height, I::height1, I::mode1, 0);
      run.noise(I::height1, 0);
      run.jpeg(0);
      if (drawn.flags[Flag::blurred]) {
        run.resize(I::height1, I::height1, I::bilinear, sides[1] / 2);
        run.filter(own[1], sides[1]);
      }
      run.resize(I::height1, I::height2, I::mode2, 0);
      run.noise(I::height2, 1);
      if (!drawn.flags[Flag::sinc_first]) run.jpeg(1);
      run.resize(I::height2, I::final_height, I::final_mode, sides[2] / 2);
      run.filter(own[2], sides[2]);
      run.clamp();
      if (drawn.flags[Flag::sinc_first]) run.jpeg(1);
      float* to = results + 3 * i * height * width;
      for (int64_t k = 0; k < 3 * height * width; ++k) to[k] = (run.now[k] * 255 + 0x1.8p23f - 0x1.8p23f) / 255;
    }
  });
  STD_TORCH_CHECK(fits, "integers: expected sizes that fit the memory, got images of ", most, " numbers");
  return out;
}

}  // namespace finpercep
#endif
