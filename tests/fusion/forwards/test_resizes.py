"""Training keeps a resize and its gradient as torch's operators, and torch's own table of decompositions as it was."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

import atrous

MODES = {
    "nearest": "upsample_nearest2d", "nearest-exact": "_upsample_nearest_exact2d", "bilinear": "upsample_bilinear2d",
    "bicubic": "upsample_bicubic2d",
}  # fmt: skip


class Decoder(nn.Module):
    """by: "scale", or "size", that of the input."""

    def __init__(self, mode, by="scale", stride=1):
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(3, 4, 3, stride, 1), nn.BatchNorm2d(4), nn.PReLU(4)
        self.mode, self.by = mode, by

    def forward(self, x):
        size = {"scale_factor": 2} if self.by == "scale" else {"size": x.shape[2:]}
        return F.interpolate(self.act(self.bn(self.conv(x))), **size, mode=self.mode)


@pytest.mark.skipif(atrous.ops.library_error is not None, reason="in plain torch the fused operators index")
@pytest.mark.parametrize("mode", MODES)
def test_a_resize_stays_whole(mode):
    torch.manual_seed(0)
    model = Decoder(mode).double().train()
    fused, x = atrous.fuse(model), torch.randn(2, 3, 9, 8, dtype=torch.float64, requires_grad=True)
    resize = getattr(torch.ops.aten, MODES[mode]).vec
    before = dict(resize.py_kernels)

    def gradients(module):
        y = module(x)
        return y, *torch.autograd.grad(y.square().sum(), [x, *model.parameters()])

    expected = gradients(model)
    torch.testing.assert_close(gradients(fused), expected, rtol=1e-9, atol=1e-9)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        gradients(fused)
    operators = {event.key for event in seen.key_averages()}
    assert {f"aten::{MODES[mode]}", f"aten::{MODES[mode]}_backward"} <= operators
    assert not any("index" in name for name in operators)
    assert resize.py_kernels == before and before


@pytest.mark.parametrize("by", ["scale", "size"])
@pytest.mark.parametrize("mode", MODES)
def test_other_sizes_and_batches_cost_one_more_compilation(mode, by):
    torch.manual_seed(0)
    model = Decoder(mode, by, stride=2).double().train()
    fused = atrous.fuse(model)
    for size in ((2, 3, 12, 10), (3, 3, 16, 14), (4, 3, 20, 18), (5, 3, 24, 12), (2, 3, 28, 20)):
        x = torch.randn(size, dtype=torch.float64)
        grads = [torch.autograd.grad(module(x).square().sum(), list(model.parameters())) for module in (fused, model)]
        torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)
    report = fused.fusion_report
    assert not any(graph.fallbacks for graph in report.graphs) and len(report.graphs) <= 3, report
