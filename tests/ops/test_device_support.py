"""GPUs that the library was built for, and the reasons of native and `info` for other GPUs."""

import pytest
import torch

from atrous.backends import selection
from atrous.ops import device_support, triton_impl
from atrous.ops.device_support import image_fits
from atrous.tools import info as build_info

GPU = torch.device("cuda", 0)


@pytest.mark.parametrize(
    "gpu, architectures, fits",
    [
        ((8, 0), "8.0", True),
        ((8, 6), "8.0", True),  # the same major, a newer minor version
        ((8, 6), "8.9", False),
        ((9, 0), "8.0;8.6", False),
        ((9, 0), "8.0;8.6+PTX", True),
        ((8, 0), "8.6+PTX", False),
        ((9, 0), "9.0a", True),
        ((9, 1), "9.0a", False),
        ((10, 0), "9.0a+PTX", False),
        ((10, 3), "10.0f", True),
        ((12, 0), "10.0f", False),
        ((12, 1), "8.0;8.6;8.9;9.0;10.0;12.0+PTX", True),
        ((8, 9), "8.0 8.6+PTX", True),  # torch takes spaces too
        ((7, 5), "8.0;9.0", False),
        ((9, 0), "Hopper", True),
        ((9, 0), "", False),
    ],
)
def test_image_fits(gpu, architectures, fits):
    assert image_fits(gpu, architectures) is fits


@pytest.fixture
def gpu(monkeypatch):
    """gpu((8, 7), "8.0"): a GPU of this compute capability, and a library built for these architectures."""

    def configure(capability, architectures):
        monkeypatch.setattr(device_support, "capability", lambda device: capability)
        monkeypatch.setattr(device_support, "arch_list", lambda: architectures)

    return configure


@pytest.mark.skipif(bool(selection.available("native")), reason="libatrous.so is not built here")
@pytest.mark.parametrize(
    "capability, architectures, reason, operators_run",
    [
        ((8, 7), "8.0", None, True),
        ((9, 0), "8.6", "built for 8.6, cuda:0 is 9.0: build it again with TORCH_CUDA_ARCH_LIST=9.0a", False),
        ((9, 0), "9.0a", None, True),
        ((8, 7), "9.0", "built for 9.0, cuda:0 is 8.7: build it again with TORCH_CUDA_ARCH_LIST=8.7", False),
        ((9, 0), "", "libatrous.so is built without CUDA: build it again with a CUDA build of torch", True),
        ((7, 5), "7.5", "expected compute capability 8.0 or newer, got 7.5 of cuda:0", False),
    ],
)
def test_native_says_why_a_gpu_cannot_run_it(gpu, capability, architectures, reason, operators_run):
    gpu(capability, architectures)
    with torch._subclasses.FakeTensorMode():
        reasons = selection.reasons("native", torch.empty(1, device="cuda"))
        assert len(reasons) == bool(reason) and (reason is None or reason in reasons[0])
        auto = selection.choose("auto", torch.empty(1, device="cuda"))
    assert auto.name == "library" and triton_impl.atrous_runs(GPU) is operators_run


def test_info_says_that_the_library_has_no_kernels_for_a_gpu(gpu, monkeypatch):
    gpu((8, 7), "9.0")
    properties = type("Properties", (), {"name": "Orin", "major": 8, "minor": 7, "total_memory": 2**33})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    info = build_info.collect()
    assert "TORCH_CUDA_ARCH_LIST=8.7" in info["machine"]["devices"][0]["native"][0]
    assert "Orin, sm_87, 8.0 GiB; backend native cannot run:" in " ".join(build_info.render(info).split())
    (reason,) = build_info.missing({**info, "backends": {"native": [], "library": []}}, ("native", "library"))
    assert reason.startswith("native does not run here: ") and "TORCH_CUDA_ARCH_LIST=8.7" in reason
    gpu((9, 0), "9.0")
    assert build_info.missing({**build_info.collect(), "backends": {"native": []}}, ("native",)) == []
    assert build_info.machine()["devices"][0]["native"] == []
