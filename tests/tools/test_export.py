"""Packages for C++: their results, and the program in examples/cpp that runs one."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from test_cli import error_line

import atrous
from atrous.tools.export import export

ROOT = Path(__file__).resolve().parents[2]
MODELS = '''
import torch
from torch import nn

class Net(nn.Module):
    """A strided layer, a dilated one that runs as Winograd and adds a residual, and a head."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.act = nn.Conv2d(3, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.PReLU(64)
        self.conv2, self.bn2 = nn.Conv2d(64, 64, 3, padding=2, dilation=2), nn.BatchNorm2d(64)
        self.fc = nn.Linear(64, 7)

    def forward(self, x):
        x = self.act(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(x)) + x)
        return {"map": y, "scores": self.fc(y.mean((2, 3)))}

class Fixed(nn.Conv2d):
    def __init__(self): super().__init__(3, 4, 3)
    def forward(self, x): return super().forward(x).reshape(2, -1)
'''
NEEDS_LIBRARY = pytest.mark.skipif(
    bool(atrous.backends.selection.available("native")), reason="libatrous.so is not built"
)


@pytest.fixture
def net(tmp_path, monkeypatch):
    """The name of a model in the current folder, and the model; its checkpoint is net.pt."""
    (tmp_path / "a_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    import a_models

    model = a_models.Net().eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.dim() == 1:
                tensor.uniform_(0.25, 1.5)
    torch.save(model.state_dict(), "net.pt")
    yield "a_models:Net", model
    monkeypatch.delitem(sys.modules, "a_models")


def operators(package):
    """The names of atrous operators that a package calls."""
    with zipfile.ZipFile(package) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("wrapper.json")]
        targets = [node["node"]["target"] for node in json.loads(archive.read(name))["nodes"]]
    return [target.split("::")[1].partition(".")[0] for target in targets if "atrous" in target]


@NEEDS_LIBRARY
def test_a_package_computes_what_the_model_computes(run, net):
    name, model = net
    arguments = ("--output", "net.pt2", "--weights", "net.pt", "--size", "20x24", "--json", "net.json")
    status, out, err = run("export", name, *arguments, columns=60)
    assert status == 0 and err == "" and max(map(len, out.splitlines())) <= 60
    assert "layers fused 2/2" in out and "written: net.pt2" in out and "weights: net.pt" in out
    result = json.loads(Path("net.json").read_text())
    assert result["difference"] < 1e-4 and result["bytes"] == Path("net.pt2").stat().st_size
    assert not list(Path().glob(".atrous-*"))  # temporary folders
    # The weight was transformed during the export: no call transforms it again.
    assert operators("net.pt2") == ["_conv_epilogue", "_winograd_epilogue"]

    loaded = torch._inductor.aoti_load_package("net.pt2")
    metadata = loaded.loader.get_metadata()
    expected = {"model": name, "input": "3x20x24", "batch": "any", "dtype": "float32", "atrous": atrous.__version__}
    assert {key: metadata[key] for key in expected} == expected
    assert "AVX512" not in metadata["AOTI_CPU_ISA"]  # it also runs on other CPUs
    for batch in (1, 5):
        x = torch.randn(batch, 3, 20, 24)
        with torch.no_grad():
            torch.testing.assert_close(loaded(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.gate
@NEEDS_LIBRARY
@pytest.mark.parametrize("options", ["--backend library", "--backend auto", "--dtype bfloat16", "--batch 3"])
def test_packages_of_every_kind(run, net, options):
    name, model = net
    arguments = ("--output", "net.pt2", "--weights", "net.pt", "--size", "20", *options.split())
    assert run("export", name, *arguments)[0] == 0  # export compares the package with the model
    x = torch.randn(3, 3, 20, 20)
    loaded = torch._inductor.aoti_load_package("net.pt2")
    if "bfloat16" in options:
        x, model = x.bfloat16(), model.bfloat16()
    with torch.no_grad():
        actual, expected = loaded(x)["map"], model(x)["map"]
    # Against the model, not fp64: the package runs the same operators, and compiled code for the others. The order of a
    # convolution's 576 products may be another.
    allowed = 8 * torch.finfo(x.dtype).eps * float(expected.abs().max())
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=allowed)


@NEEDS_LIBRARY
def test_a_package_with_a_wrong_result_is_discarded(run, net, monkeypatch):
    monkeypatch.setattr(
        torch._inductor, "aoti_compile_and_package", lambda *_, package_path, **__: Path(package_path).touch()
    )
    wrong = {"map": torch.zeros(2, 64, 10, 10), "scores": torch.zeros(2, 7)}
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda path: lambda x: wrong)
    Path("net.pt2").write_text("an older one")
    status, _, err = run("export", net[0], "--output", "net.pt2", "--size", "20")
    assert status == 2 and err.count("\n") == 1
    assert "export: output 0 of the model and of its package differ by" in err
    assert Path("net.pt2").read_text() == "an older one" and not list(Path().glob(".atrous-*"))


@NEEDS_LIBRARY
def test_a_model_that_fixes_its_batch(run, net):
    status, _, err = run("export", "a_models:Fixed", "--output", "net.pt2", "--size", "8")
    assert status == 2 and "expected a model that takes any number of images; use --batch N for this one" in err


@pytest.mark.parametrize("arguments, message", [
    ((), "--output"),
    (("--output", "net.onnx"), "--output: expected a name that ends in .pt2, got 'net.onnx'"),
    (("--output", "no/such/net.pt2"), "--output: expected a file that can be written, got 'no/such/net.pt2'"),
    (("--output", "net.pt2", "--backend", "triton"), "--backend: invalid choice: 'triton'"),
    (("--output", "net.pt2", "--dtype", "int8"), "--dtype: invalid choice: 'int8'"),
    (("--output", "net.pt2", "--batch", "0"), "--batch: expected a positive integer, got '0'"),
    (("--output", "net.pt2", "--weights", "none.pt"), "--weights: expected a checkpoint file, got 'none.pt'"),
    (("--output", "net.pt2", "--weights", "a_models.py"), "--weights: expected what torch.load(weights_only"),
    (("--output", "net.pt2", "--act", "relu"), "--act is for resnet18, resnet34, resnet50"),
])  # fmt: skip
def test_errors_end_in_one_line(run, net, arguments, message):
    assert message in error_line(run("export", net[0], *arguments))


@NEEDS_LIBRARY
def test_an_input_that_the_model_does_not_take(run, net):
    status, _, err = run("export", net[0], "--output", "net.pt2", "--channels", "4")
    assert status == 2 and "a_models:Net with an input of shape (2, 4, 224, 224): example_inputs" in err


def test_without_the_library(run, net, monkeypatch):
    monkeypatch.setattr(atrous.ops, "library_error", "libatrous.so is not built")
    status, _, err = run("export", net[0], "--output", "net.pt2", "--size", "20", "--backend", "library")
    assert status == 2 and "export needs the C++ library: libatrous.so is not built" in err


def test_the_backends_that_can_be_exported_are_backends():
    assert set(export.BACKENDS) - {"auto"} < set(atrous.backends.selection.backends())


# The C++ program


def cpp(*command, **environment):
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.gate
@NEEDS_LIBRARY
def test_cpp_prints_what_python_prints(tmp_path):
    """Built with CMake; run without PATH and all other variables, so with neither Python nor a compiler."""
    if not shutil.which("cmake"):
        pytest.skip("cmake is not installed")
    script = (sys.executable, ROOT / "examples/cpp/compare.py", "--folder", tmp_path)
    status, out, err = cpp(*script, **os.environ)
    assert status == 0 and out.endswith("C++ and Python print the same\n"), out + err
    program, library = tmp_path / "build/classify", ROOT / "pyops/libatrous.so"
    (photo,), package = tmp_path.glob("*.ppm"), tmp_path / "resnet34.pt2"

    status, out, files = cpp(program, library, package, photo, photo, LD_DEBUG="files", AOTI_RUNTIME_CHECK_INPUTS="1")
    assert status == 0 and len(out.splitlines()) == 2 and out.count("%") == 10
    assert "libatrous.so" in files and not any(name in files for name in ("libpython", "torch_python", "libtriton"))

    broken = tmp_path / "broken.ppm"
    broken.write_bytes(photo.read_bytes()[:1000])
    for arguments, message in (
        ((), "usage: classify libatrous.so PACKAGE.pt2 PHOTO.ppm ..."),
        ((tmp_path / "no.so", package, photo), "the operators do not load"),
        ((library, tmp_path / "no.pt2", photo), "no.pt2: expected a package, found none"),
        ((library, photo, photo), "zip archive"),
        ((library, package, tmp_path / "no.ppm"), "no.ppm: expected an image file, found none"),
        ((library, package, script[1]), "compare.py: expected a binary PPM image (P6)"),
        ((library, package, broken), "broken.ppm: expected more pixels"),
    ):
        status, out, err = cpp(program, *arguments)
        assert status == 1 and out == "" and err.startswith("classify: ") and message in err, err
