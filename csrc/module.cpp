// atrous._C: build information of libatrous.so. Both come from one build, with one compiler and the same flags.
// It is not linked to torch, so that it loads and reports even where libatrous.so does not load.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "g++ " __VERSION__;
#else
  return "unknown";
#endif
}

std::vector<std::string> features() {
  std::vector<std::string> names{"cpu"};
  if (*ATROUS_CUDA) names.emplace_back("cuda");
  return names;
}

pybind11::dict build() {
  pybind11::dict info;
  info["compiler"] = compiler();
  info["cxx_standard"] = __cplusplus;
  info["flags"] = ATROUS_FLAGS;
  info["torch"] = ATROUS_TORCH;
  info["torch_target"] = ATROUS_TORCH_TARGET;
  info["cuda"] = ATROUS_CUDA;
  info["arch_list"] = ATROUS_ARCH_LIST;
  info["features"] = features();
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Build information of atrous's C++ library.";
  module.def("build", &build, "build() -> dict: compiler, standard, flags, torch, CUDA, arch list and features.");
}
