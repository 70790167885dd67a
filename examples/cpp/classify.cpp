// Classifies photographs with a package of `python -m atrous export`: no Python, no Triton, no compiler.
//
//   classify libatrous.so resnet34.pt2 photo.ppm ...
//
// It prints what examples/classify.py prints for the same weights. A photograph is a binary PPM file (P6), which
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

struct Size {
  int64_t height, width;
};

static void expect(bool holds, const std::string& message) {
  if (!holds) throw std::runtime_error(message);
}

// Loading the library registers torch.ops.atrous, which the package calls.
static void load_operators(const char* path) {
  if (!dlopen(path, RTLD_NOW)) throw std::runtime_error(std::string("the operators do not load: ") + dlerror());
}

// (3, H, W) uint8 of a binary PPM file with 8 bits a sample.
static at::Tensor read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  expect(file.is_open(), path + ": expected an image file, there is none");
  std::string magic;
  int64_t width = 0, height = 0, largest = 0;
  auto skip = [&] {  // comments may stand between the numbers
    while ((file >> std::ws).peek() == '#') file.ignore(1 << 20, '\n');
  };
  file >> magic, skip(), file >> width, skip(), file >> height, skip(), file >> largest;
  file.get();
  expect(file && magic == "P6" && largest == 255, path + ": expected a binary PPM image (P6) with 8 bits a sample");
  expect(0 < width && width < 1 << 16 && 0 < height && height < 1 << 16, path + ": expected sides below 65536");
  at::Tensor pixels = at::empty({height, width, 3}, at::kByte);
  file.read(static_cast<char*>(pixels.data_ptr()), pixels.numel());
  expect(file.gcount() == pixels.numel(), path + ": expected more pixels, the file ends before");
  return pixels.permute({2, 0, 1});
}

// (3, height, width) float32: as `load` in examples/classify.py, operator by operator.
static at::Tensor prepare(const at::Tensor& pixels, Size size) {
  const int64_t wanted = std::max(size.height, size.width) * 256 / 224;
  const int64_t shorter = std::min(pixels.size(1), pixels.size(2));
  const int64_t height = pixels.size(1) * wanted / shorter, width = pixels.size(2) * wanted / shorter;
  at::Tensor image = at::_upsample_bilinear2d_aa(pixels.to(at::kFloat).unsqueeze(0), {height, width}, false)[0];
  image = image.narrow(1, (height - size.height) / 2, size.height).narrow(2, (width - size.width) / 2, size.width);
  const at::Tensor mean = at::tensor({0.485f, 0.456f, 0.406f}).view({3, 1, 1});
  const at::Tensor deviation = at::tensor({0.229f, 0.224f, 0.225f}).view({3, 1, 1});
  return (image / 255 - mean) / deviation;
}

// Of the images that the package takes; export writes it into the package.
static Size image_size(AOTIModelPackageLoader& package) {
  Size size{};
  const std::string text = package.get_metadata()["input"];
  expect(std::sscanf(text.c_str(), "3x%ldx%ld", &size.height, &size.width) == 2,
         "the package: expected one of `python -m atrous export` for images of 3 channels, got input '" + text + "'");
  return size;
}

static void run(int count, char** arguments) {
  expect(count > 3, "usage: classify libatrous.so PACKAGE.pt2 PHOTO.ppm ...");
  load_operators(arguments[1]);
  expect(std::filesystem::is_regular_file(arguments[2]), std::string(arguments[2]) + ": expected a package, there is none");
  const c10::InferenceMode guard;
  AOTIModelPackageLoader package(arguments[2]);
  const Size size = image_size(package);
  for (int i = 3; i < count; ++i) {
    const at::Tensor image = prepare(read_ppm(arguments[i]), size);
    const at::Tensor scores = package.run({image.unsqueeze(0).contiguous()})[0];
    const auto [shares, classes] = scores[0].softmax(0).topk(5);
    std::printf("%s", arguments[i]);
    for (int rank = 0; rank < 5; ++rank)
      std::printf("  %ld (%.1f%%)", classes[rank].item<int64_t>(), 100 * shares[rank].item<double>());
    std::printf("\n");
  }
}

int main(int count, char** arguments) {
  try {
    run(count, arguments);
  } catch (const c10::Error& error) {
    std::fprintf(stderr, "classify: %s\n", error.what_without_backtrace());
    return 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "classify: %s\n", error.what());
    return 1;
  }
}
