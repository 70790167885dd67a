"""Tests of the package: wheel, sdist, editable installs, the two libraries, and the error messages of a build."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import torch

import atrous

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "pyops" / "libatrous.so"
IGNORED = shutil.ignore_patterns(".*", "build", "dist", "out", "*.so", "*.egg-info", "__pycache__", "results")
FORBIDDEN = ("at::", "c10::", "Py")

spec = importlib.util.spec_from_file_location("atrous_setup", ROOT / "setup.py")
assert spec is not None and spec.loader is not None
setup = importlib.util.module_from_spec(spec)
spec.loader.exec_module(setup)


def run(*command, cwd=ROOT, check=True, **environment):
    """Runs a command. Raises AssertionError with its output if it fails; a variable that is None is unset."""
    full = {name: value for name, value in {**os.environ, **environment}.items() if value is not None}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=full, capture_output=True, text=True)
    if check and done.returncode:
        raise AssertionError(f"{command} exits {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def checkout(folder):
    """A copy of the checkout without build outputs, to build in. It compiles without optimization: the tests check
    which files are built and that they load, and every call into torch remains."""
    tree = Path(shutil.copytree(ROOT, folder / "checkout", ignore=IGNORED))
    flags = tree / "csrc" / "flags.txt"
    flags.write_text(flags.read_text().replace("-O3", "-O0"))
    return tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return checkout(tmp_path_factory.mktemp("tree"))


def wheel(source, out, **environment):
    pip = (sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", out, source)
    run(*pip, cwd=out, **environment)
    (built,) = out.glob("*.whl")
    return built


def unpack(built, out):
    with zipfile.ZipFile(built) as archive:
        archive.extractall(out)
    return out


def sdist(tree, out):
    build = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
    run(sys.executable, "-c", build, out, cwd=tree, ATROUS_SKIP_NATIVE="1")
    (built,) = out.glob("*.tar.gz")
    shutil.unpack_archive(built, out)
    return next(path for path in out.iterdir() if path.is_dir())


def top_level(built):
    return {name.split("/")[0] for name in zipfile.ZipFile(built).namelist()}


@pytest.fixture(scope="module")
def pure_wheel(tree, tmp_path_factory):
    return wheel(tree, tmp_path_factory.mktemp("pure"), ATROUS_SKIP_NATIVE="1")


# The wheel and the sdist


def test_pure_wheel_has_atrous_alone(pure_wheel):
    assert top_level(pure_wheel) == {"atrous", f"atrous-{atrous.__version__}.dist-info"}
    assert pure_wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(pure_wheel).namelist()
    for needed in ("__init__.py", "schemas.def", "py.typed", "triton_kernels/gpus.def", "models/__init__.py"):
        assert f"atrous/{needed}" in names
    assert not [name for name in names if name.endswith(".so")]


def test_every_module_is_in_the_wheel(pure_wheel):
    names = set(zipfile.ZipFile(pure_wheel).namelist())
    modules = {f"atrous/{path.relative_to(ROOT / 'pyops')}" for path in (ROOT / "pyops").rglob("*.py")}
    modules |= {f"atrous/{path.relative_to(ROOT)}" for path in (ROOT / "triton_kernels").rglob("*.py")}
    assert modules <= names


@pytest.mark.parametrize("without", ["libraries", "libraries and triton"])
def test_pure_wheel_runs(pure_wheel, tmp_path, without):
    program = f"""
import sys
if "triton" in {without!r}:
    sys.modules["triton"] = None
import torch, atrous
assert atrous.__file__.startswith({str(tmp_path)!r}), atrous.__file__
x, w = torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3)
expected = torch.relu(torch.conv2d(x, w, padding=1))
torch.testing.assert_close(atrous.conv_bn_act(x, w, padding=1, slope="relu"), expected)
from atrous.tools import info as build_info
info = build_info.collect()
assert not info["library"]["loaded"] and info["backends"]["native"] and not info["backends"]["library"], info
if "triton" in {without!r}:
    assert info["backends"]["triton"], info
print(build_info.render(info))
"""
    unpack(pure_wheel, tmp_path)
    run(sys.executable, "-c", program, cwd=tmp_path, PYTHONPATH=str(tmp_path))


def test_sdist_has_every_build_input(tree, tmp_path):
    unpacked = sdist(tree, tmp_path)
    files = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    csrc = {str(path.relative_to(tree)) for path in (tree / "csrc").rglob("*") if path.is_file()}
    assert csrc <= files
    assert {"setup.py", "CMakeLists.txt", "LICENSE", "pyops/schemas.def", "triton_kernels/gpus.def"} <= files
    assert not [name for name in files if name.endswith(".so")]


def test_every_source_is_built():
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.cpp") if "cuda" not in path.parts}
    assert set(setup.cpu_sources()) == sources - {"csrc/module.cpp"}


def test_built_libraries_import_nothing_unstable():
    if not LIBRARY.exists() or not shutil.which("nm"):
        pytest.skip("libatrous.so is not built here, or there is no nm")
    assert_stable(LIBRARY)


def assert_stable(library):
    symbols = run("nm", "-DC", "--undefined-only", library).stdout
    assert "torch_library_impl" in symbols  # nm did list the imports
    assert not [line for line in symbols.splitlines() if any(name in line for name in FORBIDDEN)]


@pytest.mark.gate
def test_native_wheel_from_the_sdist(tree, tmp_path):
    """The sdist builds without the checkout; the wheel has both libraries, and they load."""
    for folder in ("sdist", "wheel", "installed"):
        (tmp_path / folder).mkdir()
    built = wheel(sdist(tree, tmp_path / "sdist"), tmp_path / "wheel")
    assert top_level(built) == {"atrous", f"atrous-{atrous.__version__}.dist-info"}
    installed = unpack(built, tmp_path / "installed")
    assert (installed / "atrous" / "libatrous.so").exists() and list(installed.glob("atrous/_C.*.so"))
    assert_stable(installed / "atrous" / "libatrous.so")
    program = "import atrous; from atrous.tools import info; i = info.collect(); print(info.render(i)); print(i)"
    program += "; assert i['library']['loaded'] and i['library']['build']['torch_target'] == '2.11', i"
    shown = run(sys.executable, "-c", program, cwd=tmp_path, PYTHONPATH=str(installed)).stdout
    assert "loaded" in shown


@pytest.mark.gate
def test_the_oldest_torch_is_supported(tmp_path):
    """csrc compiles with the headers of torch 2.11, whose libtorch_cpu has every symbol that libatrous.so imports.

    The test reads the wheel for macOS, the smallest one, and runs none of it.
    """
    pip = (sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", tmp_path)
    if run(
        *pip, "--platform", "macosx_11_0_arm64", "--python-version", "3.11", "torch==2.11.0", check=False
    ).returncode:
        pytest.skip("torch 2.11.0 cannot be downloaded")
    with zipfile.ZipFile(next(tmp_path.glob("torch-*.whl"))) as archive:
        archive.extractall(tmp_path, [name for name in archive.namelist() if name.startswith("torch/include/")])
        names = archive.read("torch/lib/libtorch_cpu.dylib")
    compiler, python = os.environ.get("CXX", "c++").split(), sysconfig.get_paths()["include"]
    common = (*compiler, "-fsyntax-only", f"-I{tmp_path / 'torch' / 'include'}", f"-I{python}")
    for source in setup.cpu_sources():
        run(*common, *setup.lines("csrc/flags.txt"), source)
    info = setup.extensions(torch)[1]
    run(*common, *info.extra_compile_args["cxx"], *(f"-D{n}={v}" for n, v in info.define_macros), "csrc/module.cpp")
    symbols = {line.split()[-1] for line in run("nm", "-D", "--undefined-only", LIBRARY).stdout.splitlines()}
    ours = {name for name in symbols if name.startswith(("aoti_torch_", "torch_"))}
    assert "torch_library_impl" in ours
    assert not [name for name in ours if f"_{name}\0".encode() not in names]


# Editable installs


def environment(path):
    """A new virtual environment that sees this Python's packages, but not its editable install of atrous."""
    run(sys.executable, "-m", "venv", "--without-pip", path)
    python = path / "bin" / "python"
    packages = run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").stdout.strip()
    Path(packages, "borrowed.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    return python


def install_editable(tree, tmp_path, mode, **variables):
    python = environment(tmp_path / "env")
    pip = (python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--editable", tree)
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    run(*pip, "--config-settings", f"editable_mode={mode}", cwd=tmp_path, PATH=path, **variables)
    program = "import atrous, atrous.triton_kernels, atrous.backends.native as n; print(atrous.__file__, n.available())"
    program += "; import importlib.util; assert importlib.util.find_spec('atrous.triton_kernels.epilogue').has_location"
    program += (
        "; assert importlib.util.find_spec('triton_kernels') is None and importlib.util.find_spec('pyops') is None"
    )
    shown = run(python, "-c", program, cwd=tmp_path).stdout
    assert str(tree) in shown
    return shown


@pytest.mark.parametrize("mode", ["lenient", "strict"])
def test_editable(tmp_path, mode):
    install_editable(checkout(tmp_path), tmp_path, mode, ATROUS_SKIP_NATIVE="1")


@pytest.mark.gate
@pytest.mark.drawn(2)
@pytest.mark.parametrize("mode", ["lenient", "strict"])
def test_editable_with_the_libraries(tmp_path, mode):
    shown = install_editable(checkout(tmp_path), tmp_path, mode)
    assert shown.rstrip().endswith("[]")  # backend native has no reason not to run


# The error messages of a build


def refused(**variables):
    """The error of setup.py: one line, no traceback."""
    done = run(sys.executable, "setup.py", "--version", check=False, ATROUS_SKIP_NATIVE=None, **variables)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("atrous: ") and "ATROUS_SKIP_NATIVE=1" in line
    return line


def test_without_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\")\n")
    line = refused(PYTHONPATH=str(tmp_path))
    assert "No module named 'torch'" in line and "pip install --no-build-isolation ." in line
    done = run(sys.executable, "setup.py", "--version", PYTHONPATH=str(tmp_path), ATROUS_SKIP_NATIVE="1")
    assert done.stdout.strip() == atrous.__version__


def test_with_an_old_torch(tmp_path):
    (tmp_path / "torch.py").write_text("__version__ = '2.10.1+cpu'\n")
    assert "torch >= 2.11 is needed to build and this is torch 2.10.1+cpu" in refused(PYTHONPATH=str(tmp_path))


@pytest.mark.parametrize("variables", [{"CXX": "/nowhere/c++"}, {"CXX": None, "PATH": "/nowhere"}, {"CXX": "false"}])
def test_without_a_compiler(variables):
    line = refused(**variables)
    assert f"compiler `{variables['CXX'] or 'c++'}`" in line and "install g++" in line


def test_pip_shows_the_error(tree, tmp_path):
    pip = (sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--target", tmp_path, tree)
    done = run(*pip, check=False, CXX="/nowhere/c++", ATROUS_SKIP_NATIVE=None)
    assert done.returncode != 0
    assert "atrous: the C++ compiler `/nowhere/c++`" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_with_cuda():
    assert setup.with_cuda("2.13.0+cu130", "13.0", "13.0", False)
    assert setup.with_cuda("2.13.0+cu130", "13.0", "13.1", True)  # minor versions are compatible
    assert not setup.with_cuda("2.13.0+cu130", "13.0", None, False)
    assert not setup.with_cuda("2.13.0+cpu", None, "13.0", False)
    for torch_cuda, nvcc, said in (
        ("13.0", "12.6", "set CUDA_HOME to a CUDA 13.0 toolkit.* set FORCE_CUDA=0 to build the CPU part alone"),
        ("13.0", None, "nvcc is not found"),
        (None, "13.0", "it is a CPU build"),
    ):
        with pytest.raises(SystemExit, match=said):
            setup.with_cuda("2.13.0", torch_cuda, nvcc, True)


def test_cuda_sources_follow_torch_and_nvcc(tmp_path, monkeypatch):
    """With a fake nvcc 12.6, a torch for CUDA 12.6 and one .cu file, the extension includes the .cu file."""
    from torch.utils import cpp_extension

    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    (tmp_path / "csrc" / "cuda").mkdir(exist_ok=True)
    (tmp_path / "csrc" / "cuda" / "extra.cu").touch()
    (tmp_path / "bin").mkdir()
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.6, V12.6.20'\n")
    nvcc.chmod(0o755)
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    monkeypatch.delenv("FORCE_CUDA", raising=False)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    assert setup.nvcc_version(str(tmp_path)) == "12.6" and setup.nvcc_version(None) is None
    assert "csrc/cuda/extra.cu" not in setup.extensions(torch)[0].sources  # the real torch may be a CPU build
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(setup, "cutlass_include", lambda: ["headers of CUTLASS"])
    ops, info = setup.extensions(torch)
    assert "headers of CUTLASS" in ops.include_dirs
    assert "csrc/cuda/extra.cu" in ops.sources and "torch_cuda" in ops.libraries
    assert "-DUSE_CUDA" in ops.extra_compile_args["cxx"] and "-DUSE_CUDA" in ops.extra_compile_args["nvcc"]
    assert ("ATROUS_ARCH_LIST", '"9.0"') in info.define_macros
    monkeypatch.setenv("FORCE_CUDA", "0")
    ops, info = setup.extensions(torch)
    assert ops.sources == setup.cpu_sources() and ops.libraries == ["torch_cpu"]
    assert "headers of CUTLASS" not in ops.include_dirs and "-DUSE_CUDA" not in ops.extra_compile_args["cxx"]
    assert ("ATROUS_CUDA", '""') in info.define_macros
    monkeypatch.setenv("FORCE_CUDA", "yes")
    with pytest.raises(SystemExit, match="FORCE_CUDA: expected 0, 1 or nothing, got 'yes'"):
        setup.extensions(torch)


def test_the_default_architectures_are_those_that_nvcc_supports(monkeypatch):
    assert setup.arch_list("13.0") == setup.arch_list("12.8") == "8.0;8.6;8.9;9.0a;10.0;12.0+PTX"
    assert setup.arch_list("12.6") == "8.0;8.6;8.9+PTX;9.0a"


def test_without_cutlass(monkeypatch):
    monkeypatch.setattr(setup.importlib.util, "find_spec", lambda name: None)
    remedies = r"nvidia-cutlass==[\d.]+`, set FORCE_CUDA=0 to build the CPU part alone, or set ATROUS_SKIP_NATIVE=1"
    with pytest.raises(SystemExit, match=remedies):
        setup.cutlass_include()


# C++ users


CPP_USER = r"""
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdio>
#include <optional>
#include <string>
#include <vector>

using torch::stable::Tensor;
namespace detail = torch::stable::detail;

static StableIValue number(double value) { return detail::from(value); }

int main() {  // y = u > 0 ? u : 0.5 * u, with neither BatchNorm nor residual
  Tensor z = torch::stable::empty({1, 2, 3, 5}, torch::headeronly::ScalarType::Float);
  torch::stable::fill_(z, -2.0);
  const StableIValue none = detail::from(std::optional<Tensor>());
  std::vector<StableIValue> stack{detail::from(z), none, none, none, none, none, none};
  for (StableIValue value : {detail::from(std::string("number")), number(1e-5), number(0.5), number(1),
                             detail::from(false), none, number(0)})
    stack.push_back(value);
  if (torch_call_dispatcher("atrous::_epilogue", "", stack.data(), TORCH_ABI_VERSION)) return 1;
  Tensor y = detail::to<Tensor>(stack[0]);
  std::printf("%d %g\n", static_cast<int>(y.numel()), *static_cast<const float*>(y.data_ptr()));
}
"""


@pytest.mark.gate
def test_cmake_builds_a_library_that_cpp_can_load(tree, tmp_path):
    """The CMake build, and a C++ program without Python that calls an operator of its library."""
    if not shutil.which("cmake"):
        pytest.skip("cmake is not installed")
    configure = ("cmake", "-S", tree, "-B", tmp_path, f"-DPython_EXECUTABLE={sys.executable}")
    run(*configure)
    run("cmake", "--build", tmp_path, "--parallel", "2")
    assert_stable(tmp_path / "libatrous.so")
    home = Path(torch.__file__).parent
    program = tmp_path / "main.cpp"
    program.write_text(CPP_USER)
    compiler = [*os.environ.get("CXX", "c++").split(), "-std=c++17", f"-I{home / 'include'}", program]
    link = [f"-L{home / 'lib'}", "-Wl,--no-as-needed", "-ltorch_cpu", "-lc10", f"-L{tmp_path}", "-latrous"]
    paths = [f"-Wl,-rpath,{home / 'lib'}:{tmp_path}", "-o", tmp_path / "main"]
    run(*compiler, *link, *paths)
    assert run(tmp_path / "main").stdout == "30 -1\n"
