// Classifies photographs with a package of `python -m atrous export`, without Python, Triton or a compiler.
//
//   classify libatrous.so resnet34.pt2 photo.ppm ...
//
// The output is that of examples/classify.py for the same weights. A photograph is a binary PPM file (P6), which
// Pillow, ImageMagick and ffmpeg write.
#include <ATen/ATen.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

using torch::inductor::AOTIModelPackageLoader;

// The input of the package, read from the metadata that export has stored in it.
struct Input {
  int64_t height, width;
  at::ScalarType dtype;
};

static void expect(bool holds, const std::string& message) {
  if (!holds) throw std::runtime_error(message);
}

// Loading the library registers torch.ops.atrous, which the package calls.
static void load_operators(const char* path) {
  if (!dlopen(path, RTLD_NOW)) throw std::runtime_error(std::string("the operators do not load: ") + dlerror());
}

// Reads a binary PPM file with 8 bits per sample into (3, H, W) uint8.
static at::Tensor read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  expect(file.is_open(), path + ": expected an image file, found none");
  std::string magic;
  int64_t width = 0, height = 0, largest = 0;
  auto skip = [&] {  // comments between the numbers
    while ((file >> std::ws).peek() == '#') file.ignore(1 << 20, '\n');
  };
  file >> magic, skip(), file >> width, skip(), file >> height, skip(), file >> largest;
  file.get();
  expect(file && magic == "P6" && largest == 255, path + ": expected a binary PPM image (P6) with 8 bits per sample");
  expect(0 < width && width < 1 << 16 && 0 < height && height < 1 << 16, path + ": expected sides below 65536");
  at::Tensor pixels = at::empty({height, width, 3}, at::kByte);
  file.read(static_cast<char*>(pixels.data_ptr()), pixels.numel());
  expect(file.gcount() == pixels.numel(), path + ": expected more pixels, got the end of the file");
  return pixels.permute({2, 0, 1});
}

// Returns (1, 3, height, width), by the same operators as `load` in examples/classify.py.
static at::Tensor prepare(const at::Tensor& pixels, const Input& input) {
  const int64_t wanted = std::max(input.height, input.width) * 256 / 224;
  const int64_t shorter = std::min(pixels.size(1), pixels.size(2));
  const int64_t height = pixels.size(1) * wanted / shorter, width = pixels.size(2) * wanted / shorter;
  at::Tensor image = at::_upsample_bilinear2d_aa(pixels.to(at::kFloat).unsqueeze(0), {height, width}, false);
  image = image.narrow(2, (height - input.height) / 2, input.height).narrow(3, (width - input.width) / 2, input.width);
  const at::Tensor mean = at::tensor({0.485f, 0.456f, 0.406f}).view({3, 1, 1});
  const at::Tensor deviation = at::tensor({0.229f, 0.224f, 0.225f}).view({3, 1, 1});
  return ((image / 255 - mean) / deviation).to(input.dtype).contiguous();  // a package takes contiguous input only
}

static Input input_of(AOTIModelPackageLoader& package) {
  auto metadata = package.get_metadata();
  Input input{0, 0, at::kFloat};
  expect(std::sscanf(metadata["input"].c_str(), "3x%ldx%ld", &input.height, &input.width) == 2,
         "the package: expected a `python -m atrous export` package for 3 channels, got input '" + metadata["input"] +
             "'");
  expect(metadata["batch"] == "any" || metadata["batch"] == "1",
         "the package: expected batch 'any' or '1', got '" + metadata["batch"] + "'");
  if (metadata["dtype"] == "bfloat16") input.dtype = at::kBFloat16;
  if (metadata["dtype"] == "float16") input.dtype = at::kHalf;
  if (metadata["dtype"] == "float64") input.dtype = at::kDouble;
  return input;
}

static void classify(int count, char** arguments) {
  expect(count > 3, "usage: classify libatrous.so PACKAGE.pt2 PHOTO.ppm ...");
  load_operators(arguments[1]);
  const std::string path = arguments[2];
  expect(std::filesystem::is_regular_file(path), path + ": expected a package, found none");
  const c10::InferenceMode guard;
  AOTIModelPackageLoader package(path);
  const Input input = input_of(package);
  for (int i = 3; i < count; ++i) {
    const at::Tensor scores = package.run({prepare(read_ppm(arguments[i]), input)})[0];
    expect(scores.dim() == 2 && scores.size(1) >= 5,
           path + ": expected a model that gives scores of 5 classes or more");
    const auto [probabilities, classes] = scores[0].to(at::kFloat).softmax(0).topk(5);
    std::printf("%s", arguments[i]);
    for (int rank = 0; rank < 5; ++rank)
      std::printf("  %ld (%.1f%%)", classes[rank].item<int64_t>(), 100 * probabilities[rank].item<double>());
    std::printf("\n");
  }
}

int main(int count, char** arguments) {
  try {
    classify(count, arguments);
  } catch (const c10::Error& error) {
    std::fprintf(stderr, "classify: %s\n", error.what_without_backtrace());
    return 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "classify: %s\n", error.what());
    return 1;
  }
}
