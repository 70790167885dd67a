"""conv_sm90_built() of csrc/cuda: the answer of a query of the GPU is kept, a query that failed is made again."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "csrc" / "cuda" / "conv" / "sm90_fp16.cu"
# Stands beside a copy of the source in place of the kernels: what their query answers, and how often it is made.
HEADER = """
#pragma once
#include <optional>
using cudaError_t = int;
using cudaStream_t = void*;
namespace cutlass { struct half_t {}; }
namespace atrous::cuda {
struct ConvProblem {};
struct ConvPlan {};
namespace sm90 {
inline std::optional<bool> answer;
inline int queries = 0;
template <class> std::optional<bool> built() { return ++queries, answer; }
template <class> cudaError_t launch_conv(const ConvProblem&, const ConvPlan&, cudaStream_t) { return 0; }
}  // namespace sm90
}  // namespace atrous::cuda
"""
MAIN = """
#include <cstdio>
#include "sm90_fp16.cu"
int main(int count, char**) {
  using namespace atrous::cuda;
  auto ask = [] {
    const bool built = conv_sm90_built();
    std::printf("%d after %d\\n", built, sm90::queries);
  };
  ask(), ask();
  sm90::answer = count == 1;
  ask(), ask();
  sm90::answer = std::nullopt;
  ask();
}
"""


@pytest.mark.parametrize("built", [1, 0])
def test_a_query_that_failed_is_made_again(tmp_path, built):
    if (compiler := shutil.which(os.environ.get("CXX", "c++"))) is None:
        pytest.skip("needs a C++ compiler")
    (tmp_path / "sm90.cuh").write_text(HEADER)
    (tmp_path / "main.cpp").write_text(MAIN)
    shutil.copy(SOURCE, tmp_path)
    subprocess.run([compiler, "-std=c++17", "-o", tmp_path / "main", tmp_path / "main.cpp"], check=True)
    arguments = [] if built else ["not built"]
    out = subprocess.run([tmp_path / "main", *arguments], capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == ["0 after 1", "0 after 2", *[f"{built} after 3"] * 3]
