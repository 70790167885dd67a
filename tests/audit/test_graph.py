"""Graphs: operators that are followed, beside autograd, and those that are refused, by kind."""

import pytest
import torch
import torch.nn.functional as F
from test_fields import assert_same_field
from torch import nn

import atrous
from atrous.audit.field import Field
from atrous.audit.taps import window

SIZE = (1, 2, 40, 40)


class Written(nn.Module):
    """A 3x3 convolution, a function of its map, and a 3x3 convolution if `last`."""

    def __init__(self, forward, last=True, kernel=3):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, kernel, padding=1)
        self.other = nn.Conv2d(2, 2, 3, padding=4, dilation=4)
        self.after = nn.Conv2d(2, 2, 3, padding=1) if last else nn.Identity()
        self.function = forward

    def forward(self, x):
        return self.after(self.function(self, self.conv(x)))


FOLLOWED = {
    "swapped axes": lambda model, y: model.other(y.transpose(2, 3)).transpose(2, 3),
    "swapped axes, one kernel size": lambda model, y: F.avg_pool2d(y.transpose(2, 3), (3, 1), 1).transpose(2, 3),
    "channels last": lambda model, y: (y.permute(0, 2, 3, 1) * 2).permute(0, 3, 1, 2),
    "largest of two": lambda model, y: torch.max(y, model.other(y)),
    "scale 1.5": lambda model, y: F.interpolate(y, scale_factor=1.5, mode="bilinear"),
    "scale 1.3": lambda model, y: F.interpolate(y, scale_factor=1.3, mode="bilinear"),
    "scale 0.5": lambda model, y: F.interpolate(y, scale_factor=0.5, mode="bicubic"),
    "scale 0.7": lambda model, y: F.interpolate(y, scale_factor=0.7, mode="nearest"),
    "scale 0.3": lambda model, y: F.interpolate(y, scale_factor=0.3, mode="nearest-exact"),
    "a size": lambda model, y: F.interpolate(y, (57, 33), mode="bilinear", align_corners=True),
    "a start before the first": lambda model, y: y[:, :, -1000:],
    "a size alone": lambda model, y: y + torch.zeros_like(y) + y.new_ones(1),
    "stacked": lambda model, y: torch.stack([y, model.other(y)], 2).sum(2),
    "adaptive": lambda model, y: F.adaptive_avg_pool2d(y, (13, 7)),
    "padded": lambda model, y: F.pad(y, (3, 0, 0, 2), mode="circular"),
}
REFUSED = {
    "roll": lambda model, y: y + y.roll(3, 2),
    "flip": lambda model, y: y.flip(3),
    "unfold": lambda model, y: F.unfold(y, 3, padding=1).view(1, 2, 9, 40, 40).sum(2),
    "a linear layer over the width": lambda model, y: y @ torch.ones(40, 40),
    "a product of maps": lambda model, y: y @ y,
    "softmax over positions": lambda model, y: y.flatten(2).softmax(-1).view_as(y) * y,
    "a mean over one axis": lambda model, y: y * y.mean(2, keepdim=True),
    "a sum of all before": lambda model, y: y.cumsum(2),
    "a grid": lambda model, y: F.grid_sample(y, torch.zeros(1, 40, 40, 2), align_corners=False),
    "two layouts": lambda model, y: y + y.transpose(2, 3),
    "a convolution over channels": lambda model, y: F.conv2d(y.permute(0, 2, 3, 1), torch.ones(40, 40, 1, 1)),
    "depth": lambda model, y: F.conv3d(y.unsqueeze(2), torch.ones(2, 2, 1, 3, 3)),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_followed(name):
    torch.manual_seed(0)
    assert_same_field(Written(FOLLOWED[name]), SIZE)


@pytest.mark.parametrize("last", [False, True], ids=["at the end", "inside"])
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, last):
    """Not left out silently: the field would be too small."""
    model = Written(REFUSED[name], last and name not in ("a convolution over channels", "depth"))
    with pytest.raises(ValueError, match="model: expected operators that keep the height and width of maps apart, got"):
        atrous.audit_dilation(model, SIZE[1:])


@pytest.mark.parametrize("end", [
    lambda y: y.mean((2, 3)), lambda y: y.flatten(1), lambda y: y.mean(3).mean(2), lambda y: y.flatten(2).amax(-1),
    lambda y: F.adaptive_max_pool2d(y, 1).flatten(1), lambda y: y.permute(0, 2, 3, 1).flatten(1, 2).mean(1),
])  # fmt: skip
def test_the_end_of_a_classifier(end):
    audit = atrous.audit_dilation(Written(lambda model, y: end(y), last=False), SIZE[1:])
    assert audit.receptive_field == (3, 3) and audit.holes == 0


def test_a_fused_model_and_a_frozen_one():
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=2, dilation=2), nn.ReLU()]
    model = nn.Sequential(*layers).eval()
    expected = atrous.audit_dilation(model, 64)
    for freeze in (False, True):
        audit = atrous.audit_dilation(atrous.fuse(model, freeze=freeze), 64)
        assert torch.equal(audit.profile, expected.profile) and audit.gmac == expected.gmac
        assert audit.stack == expected.stack


def test_parallel_branches_have_no_suggestion():
    """Their rates are not those of a chain."""
    model = Written(lambda model, y: model.other(y) + F.conv2d(y, torch.ones(2, 2, 3, 3), padding=6, dilation=6))
    audit = atrous.audit_dilation(model, SIZE[1:])
    assert audit.stack.rates == (1, 4, 6, 1) and audit.suggestion is None
    with_holes = Written(model.function, last=False, kernel=1)
    audit = atrous.audit_dilation(with_holes, SIZE[1:])
    assert audit.stack.rates == (4, 6) and audit.holes > 0 and audit.suggestion is None


def test_many_layers():
    """Their paths are more than fp64 counts."""
    field = Field(torch.full((3, 3), 0.9e300, dtype=torch.float64), (0, 0))
    for _ in range(3):
        field = field.through(window(3, 1, 2, 2), window(3, 1, 2, 2))
    assert field.counts.isfinite().all() and (field.counts == 1e300).any()


def test_a_default_device():
    with torch.device("meta"):
        assert atrous.audit_dilation([1, 2]).receptive_field == (7, 7)
