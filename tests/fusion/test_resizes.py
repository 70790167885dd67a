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
    def __init__(self, mode):
        super().__init__()
        self.conv, self.bn, self.act, self.mode = nn.Conv2d(3, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.PReLU(4), mode

    def forward(self, x):
        return F.interpolate(self.act(self.bn(self.conv(x))), scale_factor=2, mode=self.mode)


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
