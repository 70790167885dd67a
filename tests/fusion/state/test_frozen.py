"""fuse(freeze=True): a model of its own tensors, in eval, which folds again whatever it is given."""

from __future__ import annotations

import copy

import pytest
import torch
from faults import folds_once, itself, not_its_own_tensors, owns_its_state
from outcomes import agree, assert_alike, equal_models, error_of, randomize
from pairs import BOTH, Pair, image, written
from torch import nn
from variants import OWNED, catches, epilogues, layers

import atrous


def other_state():
    torch.manual_seed(5)
    return randomize(Pair()).double().state_dict()


@catches(not_its_own_tensors, variants=OWNED)
def test_it_owns_its_tensors(make):
    model, plain = equal_models(Pair, training=True)
    frozen = make(model)
    plain.eval().requires_grad_(False)
    assert model.training and model.bn1.training and not frozen.training and not frozen.bn1.training
    assert all(p.requires_grad for p in model.parameters()) and not any(p.requires_grad for p in frozen.parameters())
    agree(frozen, plain, image())
    own = {t.untyped_storage().data_ptr() for t in frozen.state_dict().values()}
    assert own.isdisjoint(t.untyped_storage().data_ptr() for t in model.state_dict().values())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model(image())
    agree(frozen, plain, image())


@catches(itself, variants=OWNED)
def test_it_does_not_train(make):
    frozen = make(equal_models(Pair)[0])
    for module in (frozen, nn.Sequential(frozen)):
        with pytest.raises(RuntimeError):
            module.train()
    assert frozen.eval() is frozen and frozen.train(False) is frozen and not frozen.bn1.training


@catches(folds_once, variants=OWNED)
def test_its_state_is_the_plain_models(make):
    """Names, values and shapes: what is folded is in no state_dict."""
    frozen, plain = make.pair(equal_models(Pair))
    agree(frozen, plain, image())
    assert list(frozen.state_dict()) == list(plain.state_dict())
    for name, value in plain.state_dict().items():
        assert torch.equal(frozen.state_dict()[name], value), name
    with torch.no_grad():
        x = image()
        torch.testing.assert_close(frozen.describe(x), plain.describe(x))  # a method beside the forward
    frozen.load_state_dict(other_state()), plain.load_state_dict(other_state())
    agree(frozen, plain, image())


@pytest.mark.parametrize("called", [False, True], ids=["new", "called"])
@catches(folds_once, variants=OWNED)
def test_a_plain_checkpoint(make, called):
    """Whole, in part without strict, in place and by assignment."""
    frozen, plain = make.pair(equal_models(Pair))
    if called or make.wrong:
        agree(frozen, plain, image())
    whole = other_state()
    half = {name: value * 2 for name, value in whole.items() if name.startswith(("conv1", "bn2"))}
    for state, options in [(whole, {}), (half, {"strict": False}), (other_state(), {"assign": True})]:
        ours, theirs = (m.load_state_dict(copy.deepcopy(state), **options) for m in (frozen, plain))
        assert ours == theirs
        plain.requires_grad_(False), frozen.requires_grad_(False)
        agree(frozen, plain, image())
    assert layers(frozen) == BOTH


@catches(folds_once, variants=OWNED)
def test_a_half_loaded_checkpoint_raises_as_torch_does(make):
    frozen, plain = make.pair(equal_models(Pair))
    agree(frozen, plain, image())
    missing = {name: value for name, value in other_state().items() if name != "bn1.weight"}
    unknown, unfit = {"more": torch.ones(1)}, {"conv1.weight": torch.ones(1)}
    for state in (missing, other_state() | unknown, other_state() | unfit):
        assert error_of(frozen.load_state_dict, state) is error_of(plain.load_state_dict, state) is RuntimeError
        agree(frozen, plain, image())  # torch has loaded what fits


WRITES = {
    "weight": lambda m: m.conv1.weight.mul_(2),
    "bias": lambda m: m.conv2.bias.add_(1),
    "gamma": lambda m: m.bn1.weight.neg_(),
    "beta": lambda m: m.bn2.bias.fill_(0.5),
    "mean": lambda m: m.bn1.running_mean.add_(1),
    "variance": lambda m: m.bn2.running_var.mul_(3),
    "slope": lambda m: m.prelu.weight.add_(1),
    "eps": lambda m: setattr(m.bn1, "eps", 0.5),
    "a slice": lambda m: m.conv1.weight[1:3].zero_(),
    "a new parameter": lambda m: setattr(m.conv1, "weight", nn.Parameter(m.conv1.weight * 2, requires_grad=False)),
    "a new buffer": lambda m: setattr(m.bn1, "running_mean", m.bn1.running_mean + 1),
    "two that cancel in a sum of versions": lambda m: (
        setattr(m.conv1, "bias", nn.Parameter(m.conv1.bias * 3, requires_grad=False)), m.conv1.weight.add_(1)
    ),
    "double and back": lambda m: (m.float(), m.conv1.weight.mul_(2), m.double()),
}  # fmt: skip


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@catches(folds_once, variants=OWNED)
@torch.no_grad()
def test_a_write_in_place_folds_again(make, write):
    frozen, plain = make.pair(equal_models(Pair))
    for _ in range(2):
        agree(frozen, plain, image())
        write(frozen), write(plain)
    agree(frozen, plain, image())
    agree(frozen, plain, image(batch=3, size=8))  # another graph, folded from the same tensors
    assert epilogues(frozen, image()) == 2


@catches(folds_once, variants=OWNED)
@torch.no_grad()
def test_a_write_through_data(make):
    """`.data` changes no version: refold() is the way to say that something was written."""
    frozen, plain = make.pair(equal_models(Pair))
    agree(frozen, plain, image())
    frozen.conv1.weight.data.mul_(2), plain.conv1.weight.data.mul_(2)
    getattr(frozen, "refold", lambda: None)()
    agree(frozen, plain, image())


@catches(owns_its_state, variants=OWNED)
def test_gradients_of_the_input(make):
    """Its parameters have none; an input may, and parameters that are asked for too."""
    if make.wrong:
        pytest.fail("parameters of a copy require gradients")
    frozen, plain = make.pair(equal_models(Pair))
    assert_alike(frozen, plain, image())
    agree(frozen, plain, image())
    frozen.requires_grad_(), plain.requires_grad_()
    if torch.__version__.startswith("2.11."):  # its Dynamo does not notice: docs/differences.md
        torch._dynamo.reset()
    assert_alike(frozen, plain, image())


@catches(folds_once, variants=OWNED)
def test_one_convolution_in_two_layers(make):
    """A convolution with each of two BatchNorms, one BatchNorm behind two convolutions, and an unfused use."""

    def forward(s, x):
        y = s.relu(s.bn1(s.conv1(x))) + s.relu(s.bn2(s.conv1(x)))
        return s.relu(s.bn1(s.conv2(y))) + torch.tanh(s.conv1(y)) + s.bn2(y)

    frozen, plain = make.pair(equal_models(written(forward)))
    for _ in range(2):
        agree(frozen, plain, image())
        frozen.load_state_dict(other_state()), plain.load_state_dict(other_state())
    agree(frozen, plain, image())


@catches(folds_once, variants=OWNED)
def test_several_graphs_fold_one_tensor(make):
    """A forward that depends on values has a graph for each branch."""

    def forward(s, x):
        y = s.first(x)
        y = s.second(y, x) if y.sum() > 0 else s.second(y + 1, -x)
        return s.first(y) if x.sum() > 0 else y

    frozen, plain = make.pair(equal_models(written(forward)))
    for _ in range(2):
        for x in (image().abs(), -image().abs()):
            agree(frozen, plain, x)
        frozen.load_state_dict(other_state()), plain.load_state_dict(other_state())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@catches(folds_once, variants=OWNED)
@torch.no_grad()
def test_layouts_and_views(make, layout):
    """Folded 3x3 convolutions may compute in channels_last: a view of a result is one of the plain strides."""

    def forward(s, x):
        y = s.first(x)
        z = s.second(y, x)
        return y, z.view(z.shape[0], -1) if z.is_contiguous() else z, z.stride(), s.first(z).permute(0, 2, 3, 1)

    for dtype in (torch.float64, torch.float32):
        frozen, plain = make.pair(tuple(m.to(dtype) for m in equal_models(written(forward))))
        x = torch.randn(2, 4, 24, 24, dtype=dtype).contiguous(memory_format=layout)
        agree(frozen, plain, x)
        frozen.load_state_dict(other_state()), plain.load_state_dict(other_state())
        agree(frozen, plain, x)


@pytest.mark.parametrize("written_in", ["the forward", "the result"])
@torch.no_grad()
def test_a_layer_of_parameters_alone(written_in):
    """Its result is computed once; what is written into it must not be seen by the next call."""

    def prepare(model):
        model.grid = nn.Parameter(torch.randn(1, 4, 6, 6, dtype=torch.float64).to(memory_format=torch.channels_last))

    def forward(s, x):
        y = s.first(s.grid)
        return y.mul_(x.mean()) if written_in == "the forward" else y

    model = equal_models(written(forward, prepare))[0]
    frozen = atrous.fuse(model, freeze=True)
    for _ in range(3):
        y = frozen(x := image())
        torch.testing.assert_close(y, model(x), rtol=1e-9, atol=1e-9)
        y.add_(1)


def test_inference_mode():
    """Frozen in inference mode; and folded there at first, then again outside."""
    x, model = image(), equal_models(Pair)[0]
    with torch.inference_mode():
        torch.testing.assert_close(atrous.fuse(model, freeze=True)(x), model(x), rtol=1e-9, atol=1e-9)
    frozen, plain = atrous.fuse(model, freeze=True), model
    with torch.inference_mode():
        frozen(x)
    with torch.no_grad():
        frozen.conv1.weight.mul_(2), plain.conv1.weight.mul_(2)
        torch.testing.assert_close(frozen(x), plain(x), rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True], ids=["BatchNorm", "bias"])
def test_a_chain_of_1x1_convolutions_copies_at_its_ends_alone(bias):
    """The strides of a 1x1 weight are NCHW and channels_last at once; packed and not packed."""
    for channels, size in ((8, 6), (128, 24)):
        norm = nn.Identity if bias else nn.BatchNorm2d
        modules = [[nn.Conv2d(channels, channels, 1, bias=bias), norm(channels), nn.ReLU()] for _ in range(4)]
        model = nn.Sequential(*(module for layer in modules for module in layer)).eval()
        frozen, x = atrous.fuse(model, freeze=True), torch.randn(2, channels, size, size)
        torch.testing.assert_close(frozen(x), model(x), rtol=1e-4, atol=1e-5)
        with torch.autograd.profiler.profile() as profile:
            frozen(x)
        assert sum(event.name == "aten::clone" for event in profile.function_events) <= 2


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@torch.no_grad()
def test_1x1_convolutions_with_residuals(layout):
    """The input, the weight and the residual of such a layer may each have either layout, packed and not packed."""

    class Layer(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.conv, self.bn, self.act = nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels), nn.PReLU()

        def forward(self, x, r):
            return self.act(self.bn(self.conv(x)) + r)

    for channels, size in ((8, 6), (128, 24)):
        model = Layer(channels).eval()
        frozen, x = (
            atrous.fuse(model, freeze=True),
            torch.randn(2, channels, size, size).contiguous(memory_format=layout),
        )
        for r in (x, x.contiguous(memory_format=torch.channels_last), x.contiguous(), x[:1, :, :1, :1]):
            actual, expected = frozen(x, r), model(x, r)
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
            assert actual.stride() == expected.stride()
        assert epilogues(frozen, x, x) == 1


@torch.no_grad()
def test_replaced_tensors_leave_nothing_behind():
    frozen, x = atrous.fuse(equal_models(Pair)[0], freeze=True), image()
    for _ in range(4):
        frozen.load_state_dict({k: v.clone() for k, v in frozen.state_dict().items()}, assign=True)
        frozen(x)
    assert len(frozen._atrous.compiler.store.known) == 1


def test_a_branch_of_one_pixel_does_not_lay_out_the_others_again():
    """torch.cat of channels_last maps and an enlarged one is NCHW: the small one is copied, and not the whole."""
    model = atrous.models.heads.ASPP(16, 16, rates=(1, 2)).eval()
    image = torch.randn(1, 16, 12, 12).contiguous(memory_format=torch.channels_last)
    fused = atrous.fuse(model, freeze=True)
    with torch.no_grad():
        torch.testing.assert_close(fused(image), model(image), rtol=1e-4, atol=1e-5)
        with torch.profiler.profile(record_shapes=True) as profile:
            fused(image)
    copied = [event.input_shapes[0] for event in profile.events() if event.name == "aten::copy_"]
    assert [1, 16, 12, 12] in copied and [1, 64, 12, 12] not in copied


@torch.no_grad()
@pytest.mark.skipif(atrous.ops.library_error is not None, reason="Winograd is the C++ library's")
@pytest.mark.parametrize(
    "dtype, autocast", [(torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)],
    ids=["fp32", "bf16", "autocast"],
)  # fmt: skip
def test_a_transformed_weight_is_the_only_copy(dtype, autocast):
    """Winograd's transform is of the model's own weight, in any layout: no folded one lies beside it."""
    conv, norm = nn.Conv2d(64, 64, 3, padding=1, bias=False), randomize(nn.BatchNorm2d(64))
    model = nn.Sequential(conv, norm, nn.PReLU(64)).to(torch.float32 if autocast else dtype).eval()
    x = torch.randn(2, 64, 28, 28, dtype=torch.float32 if autocast else dtype)
    frozen, x = atrous.fuse(model, freeze=True), x.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype, enabled=autocast):
        y, plain = frozen(x), model(x)
    exact = copy.deepcopy(model).double()(x.double())
    assert (y - exact).square().mean() <= 1.5 * (plain - exact).square().mean()
    (prepared,) = frozen._atrous.compiler.store.known.values()
    sizes = [value.numel() for value in prepared.values]
    assert max(sizes) > conv.weight.numel() and sizes.count(conv.weight.numel()) == int(autocast)
