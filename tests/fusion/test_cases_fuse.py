"""Edge cases of atrous.fuse on a whole model, compared with the plain model before and after changes."""

from __future__ import annotations

import copy
import pickle

import oracle
import pytest
import torch
import torch.nn.functional as F
from oracle import refuse
from torch import nn

import atrous
from atrous.testing import assert_tensor


class Block(nn.Module):
    """A residual block, written as in ResNets."""

    def __init__(self, channels, dilation, act):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn1, self.act1 = nn.BatchNorm2d(channels), act()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding="same", dilation=3)
        self.bn2, self.act2 = nn.BatchNorm2d(channels), act()

    def forward(self, x):
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.act2(y + x)


class Net(nn.Module):
    def __init__(self, act, channels=8):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 7, 2, 3), nn.BatchNorm2d(channels), act())
        self.block1, self.block2 = Block(channels, 1, act), Block(channels, 2, act)
        self.down = nn.Conv2d(channels, 5, 1, 2)
        self.norm = nn.BatchNorm2d(5)

    def forward(self, x):
        x = self.block2(self.block1(self.stem(x)))
        return F.relu(self.norm(self.down(x)), inplace=True).mean((2, 3))


ACTS = {
    "relu": nn.ReLU,
    "inplace relu": lambda: nn.ReLU(inplace=True),
    "leaky": lambda: nn.LeakyReLU(0.2),
    "prelu": lambda: nn.PReLU(8),
    "shared prelu": nn.PReLU,
    "rrelu": nn.RReLU,
}


def net(act="prelu"):
    """Returns a Net in eval mode whose BatchNorms have seen a batch."""
    model = Net(ACTS[act])
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        nn.init.uniform_(norm.weight, -1.0, 1.5)
        nn.init.uniform_(norm.bias, 0.0, 0.5)
    with torch.no_grad():
        model(torch.randn(4, 3, 29, 31))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def agree(fused, plain, x):
    expected = plain(x)
    assert expected.abs().max() > 0
    assert_tensor(fused(x), expected, oracle.wide(plain)(x.double()))


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("act", ACTS)
@torch.no_grad()
def test_values(backend, act, freeze):
    plain, x = net(act), torch.randn(2, 3, 29, 31)
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    fused = atrous.fuse(plain, (x,), backend=backend, freeze=freeze)
    for input in (x, x[:0], x[:1, :, :13, :9], x.contiguous(memory_format=torch.channels_last)):
        agree(fused, plain, input) if len(input) else torch.testing.assert_close(fused(input), plain(input))
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items()), "the original changed"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@torch.no_grad()
def test_dtypes_and_conversion(backend, dtype):
    plain, x = net(), torch.randn(2, 3, 29, 31).to(dtype)
    agree(atrous.fuse(copy.deepcopy(plain).to(dtype), backend=backend), plain.to(dtype), x)


@torch.no_grad()
def test_the_two_models_share_parameters_and_keys(backend):
    plain = net()
    fused = atrous.fuse(plain, backend=backend)
    assert plain.state_dict().keys() == fused.state_dict().keys()
    ours, theirs = dict(fused.named_parameters()), dict(plain.named_parameters())
    assert ours.keys() == theirs.keys() and all(ours[name] is theirs[name] for name in ours)
    assert isinstance(fused, Net) and fused.fusion_report is not None


CHANGES = {
    "an update in place": lambda m: [p.mul_(1.2) for p in m.parameters()],
    "statistics": lambda m: m.block1.bn2.running_mean.fill_(0.7),
    "a state_dict": lambda m: m.load_state_dict({k: v * 2 for k, v in m.state_dict().items()}),
    "a new parameter": lambda m: setattr(m.block1.conv1, "weight", nn.Parameter(m.block1.conv1.weight * 2)),
    "a swapped activation": lambda m: setattr(m.block2, "act1", nn.LeakyReLU(0.7)),
    "a swapped BatchNorm": lambda m: setattr(m.block2, "bn2", nn.BatchNorm2d(8).eval()),
    "a swapped convolution": lambda m: setattr(m.block1, "conv2", nn.Conv2d(8, 8, 1)),
    "a BatchNorm made Identity": lambda m: setattr(m, "norm", nn.Identity()),
    "an activation that no site can have": lambda m: setattr(m.block1, "act1", nn.Sigmoid()),
    "double": lambda m: m.double(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@torch.no_grad()
def test_nothing_is_stale(backend, change):
    x, plain = torch.randn(2, 3, 29, 31), net()
    fused = atrous.fuse(copy.deepcopy(plain), backend=backend)
    before = fused(x)
    torch.manual_seed(0)
    change(fused)
    torch.manual_seed(0)
    change(plain)
    x = x.to(plain.down.weight.dtype)
    agree(fused, plain, x)
    assert not torch.equal(before, fused(x))


@pytest.mark.parametrize("freeze", [False, True])
@torch.no_grad()
def test_copies(backend, freeze):
    x, plain = torch.randn(2, 3, 29, 31), net()
    fused = atrous.fuse(copy.deepcopy(plain), backend=backend, freeze=freeze)
    expected = fused(x)
    copied = copy.deepcopy(fused)
    assert torch.equal(copied(x), expected)
    try:
        again = pickle.loads(pickle.dumps(fused))
    except (pickle.PicklingError, TypeError, RuntimeError, AttributeError) as error:
        assert "fuse" in str(error), f"the message does not name fuse: {error}"
    else:
        assert torch.equal(again(x), expected)
    for value in copied.state_dict().values():
        value.mul_(0)
    assert torch.equal(fused(x), expected) and not torch.equal(copied(x), expected)
    copied.load_state_dict(fused.state_dict())
    assert torch.equal(copied(x), expected), "constants prepared before load_state_dict are used after it"


@pytest.mark.parametrize("act", ["inplace relu", "prelu"])
def test_training_step(backend, act):
    plain, x = net(act).train(), torch.randn(4, 3, 29, 31)
    fused = atrous.fuse(copy.deepcopy(plain), backend=backend).train()
    for model in (plain, fused):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    for (name, value), expected in zip(fused.state_dict().items(), plain.state_dict().values()):
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-4, msg=f"{name}: {{}}".format)
    with torch.no_grad():
        torch.testing.assert_close(fused.eval()(x), plain.eval()(x), rtol=1e-3, atol=1e-4)


def test_own_training_flags(backend):
    plain = net()
    fused = atrous.fuse(plain, backend=backend)
    fused.train()
    assert not any(module.training for module in plain.modules())
    fused.block1.bn1.eval()
    assert fused.training and not fused.block1.bn1.training


WRONG = {
    "3-D": torch.randn(3, 29, 31),
    "5-D": torch.randn(1, 2, 3, 29, 31),
    "channels": torch.randn(1, 4, 29, 31),
    "fp64": torch.randn(2, 3, 29, 31).double(),
    "None": None,
    "smaller than nothing": torch.randn(1, 3, 0, 9),
}


@pytest.mark.parametrize("input", WRONG.values(), ids=WRONG)
@torch.no_grad()
def test_refused_as_eager_refuses(backend, input):
    plain = net()
    fused = atrous.fuse(plain, backend=backend)
    refuse(lambda: fused(input), lambda: plain(input), "input|weight")


@torch.no_grad()
def test_hooks_of_the_children_fire(backend):
    """Hooks on children are part of the model."""
    plain, x = net(), torch.randn(2, 3, 29, 31)
    fused = atrous.fuse(copy.deepcopy(plain), backend=backend)
    for model in (plain, fused):
        model.block1.bn1.register_forward_hook(lambda module, inputs, output: output + 1)
    agree(fused, plain, x)


@torch.no_grad()
def test_compile_of_a_fused_model(backend):
    plain, x = net(), torch.randn(2, 3, 29, 31)
    compiled = torch.compile(atrous.fuse(plain, backend=backend), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), plain(x), rtol=1e-4, atol=1e-5)
