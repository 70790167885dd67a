"""fuse(): sites in the ways that models write them, refusals, staleness, copies, compile, export and freeze."""

import copy
import io
import json
import pickle
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from atrous import models
from atrous.fusion import fuse
from atrous.nn import FrozenConv2d


def fresh(model):
    """Sets statistics, affine parameters and slopes to values other than 0 and 1, some gammas and slopes negative."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            if module.running_mean is not None:
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 1.5)
            if module.weight is not None:
                nn.init.uniform_(module.weight, -1.2, 1.6)
                nn.init.uniform_(module.bias, -0.5, 0.5)
        if isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, -0.3, 1.2)
    return model


def image(channels=4, size=10, batch=2):
    return torch.randn(batch, channels, size, size)


def same(model, fused, *inputs, tolerance=1e-5):
    """Asserts equal outputs in the current mode, without gradients. Inputs are cloned: a forward may change them."""
    with torch.no_grad():
        expected = model(*(x.clone() for x in inputs))
        got = fused(*(x.clone() for x in inputs))
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def patterns(fused, only_fused=True):
    return {site.path: site.pattern for site in fused.fusion_report.sites if site.fused or not only_fused}


def reason(fused, path):
    return next(site.reason for site in fused.fusion_report.sites if site.path == path)


def conv(i=4, o=4, kernel=3, **kwargs):
    return nn.Conv2d(i, o, kernel, padding=kernel // 2, bias=kwargs.pop("bias", False), **kwargs)


class Block(nn.Module):
    """A block as in torchvision: one in-place ReLU used twice, an in-place sum."""

    def __init__(self, channels=4, stride=1):
        super().__init__()
        self.conv1, self.bn1 = conv(4, channels, stride=stride), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = conv(channels, channels), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or channels != 4:
            self.downsample = nn.Sequential(conv(4, channels, 1, stride=stride), nn.BatchNorm2d(channels))

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.PReLU(4))
        self.layer = nn.Sequential(Block(), Block(8, 2))
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(self.layer(self.stem(x)).mean((2, 3)))

    def describe(self):
        return f"a net of {len(self.layer)} blocks"


NET = {
    "stem.0": "conv+bn+prelu",
    "layer.0.conv1": "conv+bn+relu", "layer.0.conv2": "conv+bn+add+relu",
    "layer.1.conv1": "conv+bn+relu", "layer.1.conv2": "conv+bn+add+relu", "layer.1.downsample.0": "conv+bn",
}  # fmt: skip


@pytest.fixture
def net():
    return fresh(Net()).eval()


class Spelled(nn.Module):
    """A module of two conv-bn pairs whose forward is the function `spelling(self, x, y)`."""

    def __init__(self, spelling, act=None):
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = conv(), nn.BatchNorm2d(4), conv(), nn.BatchNorm2d(4)
        self.act = act if act is not None else nn.ReLU(inplace=True)
        self.drop, self.slope = nn.Dropout(0.5), nn.Parameter(torch.rand(4))
        self.spelling = spelling

    def forward(self, x, y):
        return self.spelling(self, x, y)


def trunk(s, x):
    return s.bn1(s.conv1(x))


def both(s, x, y):
    return s.act(s.bn2(s.conv2(x)) + trunk(s, y))


def iadd_function(s, x, y):
    out = trunk(s, x)
    out += y
    return F.relu_(out)


SPELLINGS = {  # name: (forward, the pattern of conv1, the pattern of anything else)
    "conv_bn": (lambda s, x, y: trunk(s, x), "conv+bn", {}),
    "conv_act": (lambda s, x, y: s.act(s.conv1(x)), "conv+relu", {}),
    "bn_act": (lambda s, x, y: s.act(s.bn1(x)), None, {"bn1": "bn+relu"}),
    "bn_add_act": (lambda s, x, y: s.act(s.bn1(x) + y), None, {"bn1": "bn+add+relu"}),
    "conv_add": (lambda s, x, y: y + s.conv1(x), "conv+add", {}),
    "module": (lambda s, x, y: s.act(trunk(s, x)), "conv+bn+relu", {}),
    "F.relu": (lambda s, x, y: F.relu(trunk(s, x), inplace=True), "conv+bn+relu", {}),
    "torch.relu": (lambda s, x, y: torch.relu(trunk(s, x)), "conv+bn+relu", {}),
    ".relu": (lambda s, x, y: trunk(s, x).relu(), "conv+bn+relu", {}),
    ".relu_": (lambda s, x, y: trunk(s, x).relu_(), "conv+bn+relu", {}),
    "F.leaky_relu": (lambda s, x, y: F.leaky_relu(trunk(s, x), 0.2), "conv+bn+leaky_relu", {}),
    "leaky_keyword": (lambda s, x, y: F.leaky_relu(trunk(s, x), negative_slope=0.3), "conv+bn+leaky_relu", {}),
    "F.rrelu": (lambda s, x, y: F.rrelu(trunk(s, x), 0.1, 0.4, training=s.training), "conv+bn+rrelu", {}),
    "before": (lambda s, x, y: s.act(trunk(s, x) + y), "conv+bn+add+relu", {}),
    "before_right": (lambda s, x, y: s.act(y + trunk(s, x)), "conv+bn+add+relu", {}),
    "torch.add": (lambda s, x, y: s.act(torch.add(trunk(s, x), y)), "conv+bn+add+relu", {}),
    ".add": (lambda s, x, y: s.act(y.add(trunk(s, x))), "conv+bn+add+relu", {}),
    ".add_": (lambda s, x, y: s.act(trunk(s, x).add_(y)), "conv+bn+add+relu", {}),
    "iadd": (iadd_function, "conv+bn+add+relu", {}),
    "alpha_1": (lambda s, x, y: s.act(torch.add(trunk(s, x), y, alpha=1)), "conv+bn+add+relu", {}),
    "linear": (lambda s, x, y: x + trunk(s, x), "conv+bn+add", {}),
    "after": (lambda s, x, y: s.act(trunk(s, x)) + y, "conv+bn+relu+add", {}),
    "after_twice": (lambda s, x, y: F.relu(s.act(trunk(s, x)) + y), "conv+bn+relu", {"add": "add+relu"}),
    "both_sides": (both, "conv+bn+add+relu", {"conv2": "conv+bn"}),
    "add_act": (lambda s, x, y: s.act(x + y), None, {"add": "add+relu"}),
    "in_place_private": (lambda s, x, y: F.relu(s.drop(x).add(y)), None, {"add": "add+relu"}),
    # not fused as a whole, with the same values
    "alpha_2": (lambda s, x, y: s.act(torch.add(trunk(s, x), y, alpha=2)), "conv+bn", {}),
    "number": (lambda s, x, y: s.act(trunk(s, x) + 1.0), "conv+bn", {}),
    "F.prelu": (lambda s, x, y: F.prelu(trunk(s, x), s.slope), "conv+bn", {}),
    "dropout": (lambda s, x, y: s.act(s.bn1(s.drop(s.conv1(x)))), None, {"bn1": "bn+relu"}),
    "itself": (lambda s, x, y: (lambda u: s.act(u + u))(trunk(s, x)), "conv+bn", {"add": "add+relu"}),
    "used_twice": (lambda s, x, y: (lambda u: s.act(u) * u)(trunk(s, x)), "conv+bn", {}),
    "conv_used": (lambda s, x, y: (lambda z: s.act(s.bn1(z)) + z)(s.conv1(x)), None, {"bn1": "bn+relu+add"}),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_spelling(name):
    spelling, first, others = SPELLINGS[name]
    model = fresh(Spelled(spelling)).eval()
    fused = fuse(model)
    assert patterns(fused) == ({"conv1": first} if first else {}) | others
    same(model, fused, image(), image())
    same(model, fused, image(), torch.randn(1, 4, 1, 1))  # a residual that broadcasts


@pytest.mark.parametrize("act", [nn.ReLU(), nn.LeakyReLU(0.2, True), nn.PReLU(), nn.PReLU(4), nn.RReLU(0.1, 0.3, True)])
def test_activation_modules(act):
    model = fresh(Spelled(lambda s, x, y: s.act(trunk(s, x) + y), act)).eval()
    fused = fuse(model)
    assert patterns(fused)["conv1"].startswith("conv+bn+add+") and len(patterns(fused)) == 1
    same(model, fused, image(), image())


def test_a_sum_that_the_op_does_not_take_runs_as_written():
    """A residual larger than the convolution's output, an integer one, and an in-place sum of another dtype."""
    model = fresh(Spelled(lambda s, x, y: s.act(trunk(s, x) + y))).eval()
    fused = fuse(model)
    same(model, fused, image(size=1), image(size=6))
    same(model, fused, image(), torch.randint(-3, 3, (4, 10, 10)))
    half = fresh(Spelled(iadd_function)).eval().bfloat16()
    x, y = image().bfloat16(), image()
    assert half(x, y).dtype is fuse(half)(x, y).dtype is torch.bfloat16
    plain = fuse(Spelled(lambda s, x, y: s.act(s.conv1(x))).eval())
    assert plain(torch.randn(4, 6, 6), None).shape == (4, 6, 6)  # a convolution alone takes 3-D input


def changed_before(s, x, y):
    z = s.conv1(x)
    x.mul_(2)
    return s.act(s.bn1(z)) + x


def in_place_on_argument(s, x, y):
    y += trunk(s, x)
    return s.act(y) + y


def sum_on_argument(s, x, y):
    x += y
    return F.relu(x)


def view_written(s, x, y):
    z, v = s.conv1(x), x.view(-1)
    v[0:5] = 3.0
    return s.act(s.bn1(z))


def called_again(s, x, y):
    z = s.conv1(x)
    y = s.bn1(y)
    return s.act(s.bn1(z)) + y


@pytest.mark.parametrize("spelling, path, text", [
    (changed_before, "conv1", "may change its input in place"),
    (view_written, "conv1", "may change its input in place"),
    (in_place_on_argument, "conv1", "changes y in place"),
    (sum_on_argument, "iadd", "changes x in place"),
    (called_again, "conv1", "bn1 is called again"),
])  # fmt: skip
def test_in_place(spelling, path, text):
    """In-place changes of values with other users, and of the model's arguments, are those of eager."""
    model = fresh(Spelled(spelling)).eval()
    fused = fuse(model)
    assert text in reason(fused, path)
    x, y = image(), image()
    mine, theirs = (x.clone(), y.clone()), (x.clone(), y.clone())
    with torch.no_grad():
        torch.testing.assert_close(fused(*mine), model(*theirs), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_net(net):
    x = image()
    fused = fuse(net, x)
    assert patterns(fused) == NET and fused.fusion_report.counts == (6, 6)
    same(net, fused, x)
    assert list(fused.state_dict()) == list(net.state_dict())
    assert [type(m) for m in fused.modules()] == [type(m) for m in net.modules()]
    assert isinstance(fused, Net) and fused.describe() == "a net of 2 blocks"
    torch.testing.assert_close(fused.forward(x), net.forward(x), rtol=1e-5, atol=1e-5)
    same(net, lambda x: fused(x=x), x)


@pytest.mark.parametrize("act", ["relu", "prelu"])
def test_resnet34(act):
    model = fresh(models.resnet34(act=act, num_classes=10)).eval()
    fused = fuse(model)
    assert fused.fusion_report.counts == (36, 36)
    fused_patterns = list(patterns(fused).values())
    counts = {p: fused_patterns.count(p) for p in set(fused_patterns)}
    assert counts == {f"conv+bn+{act}": 17, f"conv+bn+add+{act}": 16, "conv+bn": 3}
    same(model, fused, torch.randn(1, 3, 40, 40), tolerance=1e-4)
    frozen = fuse(model, freeze=True)
    assert sum(site.folded for site in frozen.fusion_report.sites) == 36
    same(model, frozen, torch.randn(1, 3, 40, 40), tolerance=1e-4)


def test_features_and_dilation():
    model = fresh(models.resnet34(output_stride=8, features_only=True)).eval()
    fused = fuse(model)
    x = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        for ours, theirs in zip(fused(x), model(x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


class Bottleneck(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = conv(8, 4, 1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = conv(4, 4, groups=2), nn.BatchNorm2d(4)
        self.conv3, self.bn3 = conv(4, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + x)


class PreActivation(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn1, self.conv1, self.bn2, self.conv2 = nn.BatchNorm2d(4), conv(), nn.BatchNorm2d(4), conv()

    def forward(self, x):
        out = self.conv1(F.relu(self.bn1(x)))
        out = self.conv2(F.relu(self.bn2(out)))
        return out + x


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = conv(4), nn.BatchNorm2d(4), conv(8, 4), nn.BatchNorm2d(8)

    def forward(self, x):
        z = self.conv1(x)
        return self.conv2(F.relu(self.bn2(torch.cat([z, F.relu(self.bn1(z))], 1))))


class Outer(nn.Module):
    """A decoder that calls the children of its encoder."""

    def __init__(self):
        super().__init__()
        self.encoder, self.head = Block(), conv(8, 4, bias=True)

    def forward(self, x):
        e = self.encoder
        y = e.relu(e.bn1(e.conv1(x)))
        if e.downsample is not None:
            y = e.downsample(y)
        return F.leaky_relu(self.head(torch.cat([e(x), y], 1)))


def vgg():
    layers = []
    for channels in (4, 6):
        layers += [conv(channels, 6, bias=True), nn.BatchNorm2d(6), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.LazyLinear(3))


@pytest.mark.parametrize("model, channels, expected", [
    (Bottleneck, 8, {"conv1": "conv+bn+relu", "conv2": "conv+bn+relu", "conv3": "conv+bn+add+relu"}),
    (PreActivation, 4, {"bn1": "bn+relu", "conv1": "conv+bn+relu", "conv2": "conv+add"}),
    (Dense, 4, {"bn1": "bn+relu", "bn2": "bn+relu"}),
    (vgg, 4, {"0": "conv+bn+relu", "3": "conv+bn+relu"}),
])  # fmt: skip
def test_other_nets(model, channels, expected):
    model, x = fresh(model()).eval(), image(channels)
    model(x)
    fused = fuse(model, x)
    assert patterns(fused) == expected
    same(model, fused, x)
    same(model, fuse(model, x, freeze=True), x)


def test_the_inside_of_a_submodule():
    model = fresh(Outer()).eval()
    fused, x = fuse(model), image()
    inside = {f"encoder.{path}": p for path, p in {"conv1": "conv+bn+relu", "conv2": "conv+bn+add+relu"}.items()}
    assert patterns(fused) == inside | {"head": "conv+leaky_relu"}
    same(model, fused, x)
    same(model, fuse(model, freeze=True), x)
    model.encoder.downsample = fused.encoder.downsample = nn.Sigmoid()
    same(model, fused, x)


def test_dense_says_why():
    fused = fuse(fresh(Dense()).eval())
    assert reason(fused, "conv1") == "the output of conv1 is used 2 times"
    assert reason(fused, "conv2") == "followed by output"


def test_training_is_the_models_own(net):
    """Gradients, running statistics and counters of a training step."""
    mine, theirs = fuse(copy.deepcopy(net)).train(), net.train()
    x = image()
    mine(x).sum().backward()
    theirs(x).sum().backward()
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)
    for a, b in zip(mine.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(a, b)


class TwoModes(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.aux = conv(), nn.BatchNorm2d(4), conv()

    def forward(self, x):
        y = self.bn1(self.conv1(x))
        return (y, self.aux(x)) if self.training else F.relu(y)


def test_control_flow_on_training():
    model = fresh(TwoModes()).eval()
    fused = fuse(model)
    same(model, fused, image())
    fused.train()
    assert isinstance(fused(image()), tuple) and not model.training and not model.bn1.training
    modes = [(site.path, site.pattern, site.mode) for site in fused.fusion_report.sites]
    assert modes == [("conv1", "conv+bn+relu", "eval"), ("conv1", "conv+bn", "train"), ("aux", "conv", "train")]
    assert fused.fusion_report.counts == (1, 1)


def data_dependent(s, x, y):
    return s.act(trunk(s, x)) if x.sum() > 0 else x


def counts_calls(s, x, y):
    s.calls = getattr(s, "calls", 0) + 1
    return s.act(trunk(s, x))


def switches_gradients(s, x, y):
    with torch.no_grad():
        out = trunk(s, x)
    return s.act(out)


def asks_type(s, x, y):
    return s.act(trunk(s, x)) if isinstance(x, torch.Tensor) else x


def asks_is_tensor(s, x, y):
    return s.act(trunk(s, x)) if torch.is_tensor(x) else x


def asks_child(s, x, y):
    return s.act(trunk(s, x)) if not s.bn1.training else x


def draws(s, x, y):
    return s.act(trunk(s, x)) if random.random() < 2 else x


@pytest.mark.parametrize("spelling, text", [
    (data_dependent, "cannot be used as inputs to control flow"),
    (counts_calls, "changes Spelled.calls"),
    (switches_gradients, "switches gradients or autocast"),
    (asks_type, "asks for the type"),
    (asks_is_tensor, "asks for the type"),
    (asks_child, "training flag of a submodule"),
    (draws, "draws random numbers"),
])  # fmt: skip
def test_untraceable_is_left_and_its_children_are_fused(spelling, text):
    model = fresh(Spelled(spelling)).eval()
    model.conv1 = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU())
    state = random.getstate()
    fused = fuse(model)
    assert random.getstate() == state and not hasattr(model, "calls")
    assert patterns(fused) == {"conv1.0": "conv+bn+relu"}
    [(path, kind, why)] = fused.fusion_report.untraced
    assert (path, kind) == ("", "Spelled") and text in why
    assert reason(fused, "conv2") == why  # a convolution that the module holds itself
    same(model, fused, image().abs(), image())
    same(model, fused, -image().abs(), image())


class Defaults(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = conv(), nn.BatchNorm2d(4)

    def forward(self, x, residual=None, *, activate=True):
        out = self.bn1(self.conv1(x))
        if residual is not None:
            out = out + residual
        return F.relu(out) if activate else out


def test_defaults_are_traced_and_other_calls_run_as_written():
    model = fresh(Defaults()).eval()
    fused = fuse(model)
    assert patterns(fused) == {"conv1": "conv+bn+relu"}
    x, r = image(), image()
    for args, kwargs in [
        ((x,), {}),
        ((x, r), {}),
        ((x,), {"residual": r}),
        ((x,), {"activate": False}),
        ((x, None), {}),
    ]:
        torch.testing.assert_close(fused(*args, **kwargs), model(*args, **kwargs), rtol=1e-5, atol=1e-5)
    for call in [(), (x, r, r)]:
        with pytest.raises(TypeError):
            fused(*call)


def test_shared_modules_stay_shared():
    shared = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.PReLU(4))
    model = fresh(nn.Sequential(shared, nn.Identity(), shared)).eval()
    fused = fuse(model)
    assert fused[0] is fused[2] and fused[0] is not shared
    assert patterns(fused) == {"0.0": "conv+bn+prelu"}
    same(model, fused, image())
    frozen = fuse(model, freeze=True)
    assert frozen[0] is frozen[2]
    same(model, frozen, image())


def test_one_activation_in_two_names_that_part():
    model = fresh(
        Spelled(lambda s, x, y: s.act2(s.bn2(s.conv2(s.act(trunk(s, x)))))),
    ).eval()
    model.act = model.act2 = nn.PReLU(4)
    fused = fuse(model)
    same(model, fused, image(), image())
    model.act2 = fused.act2 = nn.PReLU(4, init=-0.7)  # the same type, but no longer the same module
    same(model, fused, image(), image())


def test_the_original_is_untouched(net):
    before = {name: (module.training, dict(vars(module))) for name, module in net.named_modules()}
    fused = fuse(net)
    fused.train()
    fused.layer[0].conv1.register_forward_hook(lambda *args: None)
    for name, module in net.named_modules():
        training, attributes = before[name]
        assert module.training is training and vars(module).keys() == attributes.keys()
        assert all(vars(module)[key] is value for key, value in attributes.items())
        assert not module._forward_hooks and "forward" not in vars(module)
    for (name, ours), theirs in zip(fused.named_modules(), net.modules(), strict=True):
        assert ours is not theirs and ours._parameters is theirs._parameters and ours._buffers is theirs._buffers, name


def stale_step(model, fused):
    optimizer = torch.optim.SGD(fused.parameters(), 0.5)
    fused(image()).square().mean().backward()
    optimizer.step()


def stale_statistics(model, fused):
    model.train()
    model(image())
    model.eval()


def stale_parameter(model, fused):
    model.stem[0].weight = nn.Parameter(torch.randn(4, 4, 3, 3))
    assert fused.stem[0].weight is model.stem[0].weight


def stale_submodule(model, fused):
    model.layer[0].bn1 = fused.layer[0].bn1 = nn.InstanceNorm2d(4)


def stale_same_type(model, fused):
    model.layer[0].bn1 = fused.layer[0].bn1 = fresh(nn.BatchNorm2d(4)).eval()


def stale_activation(model, fused):
    model.stem[2] = fused.stem[2] = nn.LeakyReLU(0.4)


def stale_none(model, fused):
    model.layer[1].downsample = fused.layer[1].downsample = None
    for m in (model, fused):
        m.layer[1].conv1 = m.layer[0].conv1
        m.layer[1].bn1, m.layer[1].conv2, m.layer[1].bn2 = m.layer[0].bn1, m.layer[0].conv2, m.layer[0].bn2
        m.fc = nn.Linear(4, 3)
    fused.fc = model.fc


def stale_longer(model, fused):
    extra = nn.Tanh()
    model.stem.append(extra)
    fused.stem.append(extra)


def stale_hook(model, fused):
    for m in (model, fused):
        m.layer[0].conv1.register_forward_hook(lambda module, args, output: output * 2)


def stale_parametrization(model, fused):
    for m in (fused, model):  # the module of the fused copy, then that of the original
        nn.utils.parametrizations.weight_norm(m.layer[0].conv1)
        break
    model.layer[0].conv1 = copy.deepcopy(fused.layer[0].conv1)


def stale_forward(model, fused):
    for m in (model, fused):
        m.layer[0].bn1.forward = lambda x: x - 1


@pytest.mark.parametrize("change", [
    stale_step, stale_statistics, stale_parameter, stale_submodule, stale_same_type, stale_activation, stale_none,
    stale_longer, stale_hook, stale_parametrization, stale_forward,
])  # fmt: skip
def test_nothing_is_stale(net, change):
    fused = fuse(net)
    x = image()
    with torch.no_grad():
        before = fused(x)
    change(net, fused)
    same(net, fused, x)
    with torch.no_grad():
        assert not torch.equal(before, net(x))  # the change was one
    if change not in (stale_hook, stale_parametrization, stale_forward):  # torch itself cannot pickle these
        same(net, pickle.loads(pickle.dumps(fused)), x)


def test_load_state_dict(net):
    fused, other = fuse(net), fresh(Net()).eval()
    fused.load_state_dict(other.state_dict())
    same(other, fused, image())
    same(other, net, image())


def test_a_changed_attribute_is_noticed():
    model = fresh(Spelled(lambda s, x, y: s.act(trunk(s, x)) if s.flag else s.function(trunk(s, x)))).eval()
    model.flag, model.function = True, torch.tanh
    fused = fuse(model)
    for flag, function in ((False, torch.tanh), (False, torch.relu), (True, torch.relu)):
        model.flag = fused.flag = flag
        model.function = fused.function = function
        same(model, fused, image(), image())
    assert fused.forward.plans[False].source.count("run_conv_bn_act(") == 1  # traced and fused again


def test_refusals():
    class Scaled(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    model = fresh(Spelled(lambda s, x, y: s.act(trunk(s, x)) + F.relu(s.bn2(s.conv2(y))))).eval()
    model.conv2 = Scaled(4, 4, 3, padding=1)
    model.bn1.register_forward_hook(lambda module, args, output: output + 1)
    fused = fuse(model)
    assert reason(fused, "conv1") == "bn1 has hooks"
    assert reason(fused, "conv2") == "conv2 is a Scaled, not exactly Conv2d"
    assert fused.fusion_report.counts == (1, 3) and patterns(fused) == {"bn2": "bn+relu+add"}
    same(model, fused, image(), image())
    model = fresh(Spelled(lambda s, x, y: s.act(trunk(s, x)))).eval()
    nn.utils.parametrizations.weight_norm(model.conv1)
    fused = fuse(model)
    assert "not exactly Conv2d" in reason(fused, "conv1")
    same(model, fused, image(), image())


def test_global_hooks_see_every_module(net):
    fused, seen = fuse(net), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: seen.append(type(module)))
    try:
        fused(image())
    finally:
        handle.remove()
    assert seen.count(nn.BatchNorm2d) == 6


@pytest.mark.parametrize("freeze", [False, True])
def test_copies_and_pickles(net, freeze):
    fused = fuse(net, freeze=freeze)
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    for other in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), torch.load(file, weights_only=False)):
        assert other.layer[0].forward.owner is other.layer[0]
        assert other.fusion_report == fused.fusion_report
        assert all(a is not b for a, b in zip(other.state_dict().values(), fused.state_dict().values(), strict=True))
        same(net, other, image())
        with torch.no_grad():
            other.fc.weight.mul_(2)
            if not freeze:
                other.stem[0].weight.mul_(2)
        assert not torch.allclose(other(image()), fused(image()))


def test_pickle_refuses_what_it_cannot_hold():
    fused = fuse(fresh(Spelled(lambda s, x, y: s.act(trunk(s, x)))))
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):  # the model's own attribute
        pickle.dumps(fused)


@pytest.mark.parametrize("gradients", [False, True])
def test_compile(net, gradients):
    torch.compiler.reset()
    fused = fuse(net)
    compiled = torch.compile(fused, fullgraph=True, backend="eager" if gradients else "aot_eager")
    x = image()
    with torch.set_grad_enabled(gradients):
        torch.testing.assert_close(compiled(x), net(x), rtol=1e-5, atol=1e-5)
        if not gradients:
            fused.stem[2] = net.stem[2] = nn.LeakyReLU(0.3)  # a swap is noticed in a compiled graph too
            torch.testing.assert_close(compiled(x), net(x), rtol=1e-5, atol=1e-5)


class Settings:
    depth = 2


class Attributes(nn.Module):
    """A forward that reads attributes of several kinds; the compiled copy must notice when one is replaced."""

    def __init__(self):
        super().__init__()
        self.settings, self.sizes, self.function, self.trunk = Settings(), [1, 2], torch.tanh, trunk
        self.conv1, self.bn1, self.blocks = conv(), nn.BatchNorm2d(4), nn.ModuleList([Block(), Block()])

    def forward(self, x):
        y = F.leaky_relu(self.trunk(self, x), 0.1)
        if self.sizes[0] == 1:
            for block in self.blocks[: self.settings.depth]:
                y = block(y)
        return self.function(y)


def test_compile_notices_a_change():
    torch.compiler.reset()
    model = fresh(Attributes()).eval()
    fused = fuse(model)
    assert len(patterns(fused)) == 5
    compiled = torch.compile(fused, fullgraph=True, backend="eager")
    same(model, compiled, image())
    shallow = Settings()
    shallow.depth = 1
    for name, value in (("settings", shallow), ("function", torch.sin), ("sizes", [2])):
        setattr(model, name, value)
        setattr(fused, name, value)
        same(model, compiled, image())
        same(model, fused, image())


def test_compile_inductor():
    torch.compiler.reset()
    model = fresh(Block(8)).eval()
    x = image()
    with torch.no_grad():
        compiled = torch.compile(fuse(model), fullgraph=True)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
def test_export(net, strict, freeze, dynamic):
    fused, x = fuse(net, freeze=freeze), image()
    shapes = ({0: torch.export.Dim("batch", min=1)},) if dynamic else None
    with torch.no_grad():
        program = torch.export.export(fused, (x,), strict=strict, dynamic_shapes=shapes)
        same(net, program.module(), x)
        if dynamic:
            same(net, program.module(), x[:1])
    names = [str(node.target) for node in program.graph.nodes]
    assert any("atrous" in name for name in names) and not any("batch_norm" in name for name in names)


def test_freeze(net):
    parameters = {name: p.clone() for name, p in net.state_dict().items()}
    x = image()
    frozen = fuse(net.train(), x, freeze=True)
    assert net.training and all(torch.equal(p, parameters[name]) for name, p in net.state_dict().items())
    net.eval()
    assert type(frozen.stem[0]) is FrozenConv2d and type(frozen.stem[1]) is nn.Identity and isinstance(frozen, Net)
    assert sum(site.folded for site in frozen.fusion_report.sites) == 6 and patterns(frozen) == NET
    assert not any(p.requires_grad for p in frozen.parameters())
    assert frozen.stem[0].weight.is_contiguous(memory_format=torch.channels_last)
    own = {t.untyped_storage().data_ptr() for t in frozen.state_dict().values()}
    assert own.isdisjoint(t.untyped_storage().data_ptr() for t in net.state_dict().values())
    same(net, frozen, x)
    assert not frozen(x).requires_grad
    for module in (frozen, frozen.layer[0], nn.Sequential(frozen)):
        with pytest.raises(RuntimeError, match="frozen by atrous.fuse"):
            module.train()
    assert frozen.eval() is frozen
    with pytest.raises(ValueError, match="not frozen"):
        fuse(frozen)
    other = fuse(net, freeze=True)
    with torch.no_grad():
        for value in other.state_dict().values():
            value.zero_()
    other.load_state_dict(frozen.state_dict())
    same(net, other, x)


def test_what_cannot_be_folded_is_fused_as_it_is():
    def forward(s, x, y):
        return s.act(trunk(s, x)) + s.act(trunk(s, y)) + F.relu(s.bn2(s.conv2(x)))

    model = fresh(Spelled(forward))
    model.bn2 = nn.BatchNorm2d(4, track_running_stats=False)
    frozen = fuse(model.eval(), freeze=True)
    assert "more than one place" in reason(frozen, "conv1") and "no running statistics" in reason(frozen, "conv2")
    assert frozen.fusion_report.counts == (3, 3) and not any(site.folded for site in frozen.fusion_report.sites)
    same(model, frozen, image(), image())


def test_freeze_keeps_what_an_untraced_forward_may_call():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU())

        def forward(self, x):
            return self.features[0](x) if x.sum() > 0 else self.features(x)

    model = fresh(Odd()).eval()
    frozen = fuse(model, freeze=True)
    assert patterns(frozen) == {"features.0": "conv+bn+relu"}
    same(model, frozen, image().abs())
    same(model, frozen, -image().abs())


def test_fuse_again(net):
    again = fuse(fuse(net))
    assert patterns(again) == NET and again.layer[0].forward.owner is again.layer[0]
    same(net, again, image())


def test_report(net):
    fused = fuse(fresh(Dense()).eval())
    text = str(fused.fusion_report)
    assert text.startswith("sites fused 2/4") and "used 2 times" in text
    assert all(len(line) <= 80 for line in text.splitlines() + str(fuse(net).fusion_report).splitlines())
    data = json.loads(json.dumps(fused.fusion_report.to_dict()))
    assert (data["fused"], data["total"], data["frozen"]) == (2, 4, False)
    assert data["sites"][0] == {
        "path": "conv1", "pattern": "conv", "fused": False, "mode": "both", "folded": False,
        "reason": "the output of conv1 is used 2 times",
    }  # fmt: skip
    empty = fuse(nn.Linear(2, 2)).fusion_report
    assert str(empty) == "sites fused 0/0" and empty.counts == (0, 0)


def test_arguments_are_checked(net):
    for wrong in (None, lambda x: x, "resnet34"):
        with pytest.raises(TypeError, match="model: expected an nn.Module, got"):
            fuse(wrong)
    traced = nn.Sequential(torch.fx.symbolic_trace(Block()))
    with pytest.raises(TypeError, match="model.0: expected .* got a GraphModule"):
        fuse(traced)
    with pytest.raises(TypeError, match="ScriptModule"):
        fuse(torch.jit.trace(net, image()))
    with pytest.raises(TypeError, match="OptimizedModule"):
        fuse(torch.compile(net))
    with pytest.raises(ValueError, match="model.1: expected initialized parameters, got a lazy LazyLinear"):
        fuse(nn.Sequential(nn.ReLU(), nn.LazyLinear(3)))
    with pytest.raises(ValueError, match="backend: expected"):
        fuse(net, backend="cudnn")
    with pytest.raises(ValueError, match="example_inputs: the model does not take them: RuntimeError"):
        fuse(net, image(channels=3))


def test_example_inputs_leave_everything_as_it_was(net):
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls.add_(1)
            return self.net(x), x.argmax()

    model = Counter().train()
    state = copy.deepcopy(model.state_dict())
    x = image()
    fused = fuse(model, (x,))
    assert fused.training and fused.net.stem[1].training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_example_inputs_catch_a_difference(net, monkeypatch):
    from atrous.fusion import run

    right = run.fused.conv_bn_act
    monkeypatch.setattr(run.fused, "conv_bn_act", lambda *args: right(*args) * 1.01)
    with pytest.raises(RuntimeError, match="output 0 of the model and of its fused copy differ by"):
        fuse(net, image())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(net, dtype):
    model = net.to(dtype)
    x = image().to(dtype)
    fuse(model, x)
    fuse(model, x, freeze=True)


def test_autocast(net):
    fused, x = fuse(net), image()
    with torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16):
        ours, theirs = fused(x), net(x)
    assert ours.dtype is theirs.dtype
    torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05 * float(theirs.abs().max()))
