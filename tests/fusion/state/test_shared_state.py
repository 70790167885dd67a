"""One state, two classes: what is done to the model is done to the fused one, and copies of it are fused models."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from faults import forgets_its_class, old_parameters, owns_its_state, stale
from outcomes import TOLERANCES, agree, assert_alike, equal_models, randomize
from pairs import BOTH, Pair, image
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from variants import ALL, SHARED, catches, count, layers

import atrous


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


def through_torch_save(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def fp32_other():
    torch.manual_seed(5)
    return randomize(Pair()).double()


@catches(forgets_its_class, variants=ALL)
def test_it_is_a_model_of_the_class(make):
    model, plain = equal_models(Pair)
    fused = make.pair((model, plain))[0]
    x = image()
    assert isinstance(fused, Pair) and isinstance(fused, nn.Module)
    assert [(name, type(m)) for name, m in fused.named_modules()][1:] == [
        (n, type(m)) for n, m in plain.named_modules()
    ][1:]
    assert list(fused.state_dict()) == list(plain.state_dict())
    assert [n for n, _ in fused.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert repr(fused).partition("(")[2] == repr(plain).partition("(")[2]
    with torch.no_grad():
        torch.testing.assert_close(fused.describe(x), plain.describe(x))  # a method beside the forward
        torch.testing.assert_close(fused.forward(x), plain(x))
    assert not hasattr(fused, "no_such_attribute")


@catches(owns_its_state, variants=SHARED)
def test_one_state(make):
    model = equal_models(Pair)[0]
    fused = make(model)
    fused(image())
    for ours, theirs in zip(fused.state_dict(keep_vars=True).values(), model.state_dict(keep_vars=True).values()):
        assert ours is theirs
    assert all(ours is theirs for ours, theirs in zip(list(fused.children()), list(model.children())))
    fused.train()
    assert model.training and model.bn1.training
    model.eval()
    assert not fused.training and not fused.bn1.training
    model.extra = 3
    fused.register_buffer("more", torch.ones(2))
    assert fused.extra == 3 and "more" in model.state_dict()
    del model.extra
    assert not hasattr(fused, "extra")
    model.requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in fused.parameters())


@catches(stale, variants=SHARED)
def test_the_model_runs_as_before(make):
    """The model itself has no fused call, before and after its fused one was called."""
    model, plain = equal_models(Pair)
    fused = make(model)
    seen = []
    model.conv1.register_forward_hook(lambda *args: seen.append(1))
    plain.conv1.register_forward_hook(lambda *args: None)
    for run in (model, fused, model):
        agree(run, plain, image())
    assert type(model) is Pair and len(seen) == 3


CONVERSIONS = {
    "float": lambda m: m.float(),
    "bfloat16": lambda m: m.bfloat16(),
    "half": lambda m: m.half(),
    "to": lambda m: m.to(torch.float32, memory_format=torch.channels_last),
    "meta and back": lambda m: m.to("cpu"),
}


class ReadsDtype(Pair):
    def forward(self, x):
        x = x.to(dtype=self.conv1.weight.dtype, device=next(self.parameters()).device)
        y = self.first(x) + torch.ones((), dtype=next(self.buffers()).dtype)
        return self.second(y, x)


@pytest.mark.parametrize("convert", CONVERSIONS.values(), ids=CONVERSIONS)
@catches(stale, gates=("frozen", "fused-eval"))
def test_dtypes(make, training, convert):
    """A dtype and a device that the forward reads from a parameter, then another one of all parameters."""
    fused, plain = make.pair(equal_models(ReadsDtype, training))
    agree(fused, plain, image())
    if convert is CONVERSIONS["meta and back"]:
        with torch.no_grad():
            fused.bn1.bias.add_(1), plain.bn1.bias.add_(1)
    convert(fused), convert(plain)
    tolerance = TOLERANCES[plain.conv1.weight.dtype]
    agree(fused, plain, image(), tolerance=tolerance)
    agree(fused, plain, image(dtype=torch.float32), tolerance=tolerance)
    assert layers(fused)


COPIES = {"deepcopy": copy.deepcopy, "pickle": through_pickle, "torch.save": through_torch_save}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("called", [False, True], ids=["new", "called"])
@catches(stale)
def test_copies(make, copied, called):
    """A copy is a fused model of its own tensors, whether the fused one was called or not."""
    if make.wrong and copied is not copy.deepcopy:
        pytest.fail("a class of a test's function cannot be pickled")
    model, plain = equal_models(Pair)
    fused = make.pair((model, plain))[0]
    if called:
        agree(fused, plain, image())
    again = copied(fused)
    own = {id(t) for t in again.state_dict(keep_vars=True).values()}
    assert own.isdisjoint(id(t) for t in fused.state_dict(keep_vars=True).values())
    agree(again, plain, image())
    assert layers(again) == BOTH and isinstance(again, Pair)
    with torch.no_grad():
        again.conv1.weight.mul_(2)
        x = image()
        assert not torch.allclose(again(x), plain(x))
    agree(fused, plain, image())
    if make.frozen:
        with pytest.raises(RuntimeError):
            again.train()


@catches(old_parameters, variants=SHARED)
def test_loading_either(make):
    """load_state_dict into the model and into the fused one, by copies and by assignment."""
    model, plain = equal_models(Pair)
    fused = make(model)
    for target in (model, fused):
        for assign in (False, True):
            state = fp32_other().state_dict()
            plain.load_state_dict(copy.deepcopy(state))
            target.load_state_dict({k: v.clone() for k, v in state.items()}, assign=assign)
            agree(fused, plain, image())
            with torch.no_grad():
                plain.conv1.weight.add_(0.1), fused.conv1.weight.add_(0.1)
            agree(fused, plain, image())


@catches(old_parameters, variants=SHARED)
def test_averages(make):
    """An average of the fused model's weights is a fused model; its BatchNorms are updated from data."""
    model, plain = equal_models(Pair, training=True)
    fused = make(model)
    averages = [AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(0.5)) for m in (fused, plain)]
    for _ in range(3):
        agree(fused, plain, image())
        for m, average in zip((fused, plain), averages):
            with torch.no_grad():
                for parameter in m.parameters():
                    parameter -= 0.1 * parameter.grad
            average.update_parameters(m)
    data = [image() for _ in range(2)]
    for average in averages:
        update_bn(data, average)
        average.eval()
    agree(averages[0], averages[1], image())
    assert layers(averages[0].module)


@catches(stale, variants=SHARED)
def test_fuse_of_a_fused_model(make):
    model, plain = equal_models(Pair)
    fused = make(make(model))
    agree(fused, plain, image())
    assert layers(fused) == BOTH and fused.conv1 is model.conv1
    with torch.no_grad():
        fused.conv1.weight.mul_(2), plain.conv1.weight.mul_(2)
    agree(fused, plain, image())


@catches(stale, variants=SHARED)
def test_a_fused_model_as_a_child(make):
    """It stays fused in another model, and has the names that the plain child has there."""
    model, plain = equal_models(Pair, training=True)
    outer, outer_plain = (nn.Sequential(child, nn.Conv2d(4, 2, 1).double()) for child in (make(model), plain))
    outer_plain.load_state_dict(outer.state_dict())
    for training in (True, False):
        outer.train(training), outer_plain.train(training)
        with torch.no_grad():
            outer[0].prelu.weight.add_(0.2), outer_plain[0].prelu.weight.add_(0.2)
        assert_alike(outer, outer_plain, image())
    assert layers(outer[0]) == BOTH and count(outer[0]) == (2, 2)


@pytest.mark.parametrize("freeze", [False, True])
def test_what_a_model_makes_of_its_class_is_plain(freeze):
    """A slice of nn.Sequential holds the model's own modules, which run as they are by themselves."""
    model = nn.Sequential(nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3), nn.ReLU()).double().eval()
    fused, x = atrous.fuse(model, freeze=freeze), image()
    head, tail = fused[:1], fused[1:]
    assert type(head) is type(tail) is nn.Sequential and head[0] is fused[0]
    torch.testing.assert_close(tail(head(x)), model(x))


def test_a_shallow_copy_has_attributes_of_its_own():
    model = Pair()
    model.number = 1
    other = copy.copy(atrous.fuse(model))
    other.number = 2
    assert model.number == 1 and other.conv1 is model.conv1 and type(other).__mro__[2] is Pair


def test_a_class_that_asks_of_its_subclasses():
    class Base(Pair):
        def __init_subclass__(cls, *, key, **kwargs):
            super().__init_subclass__(**kwargs)

    class Model(Base, key=1):
        pass

    model, x = Model().double(), image()
    torch.testing.assert_close(atrous.fuse(model)(x), model(x), rtol=1e-9, atol=1e-9)


def test_attributes_of_a_class_with_slots():
    class Scaled(Pair):
        __slots__ = ("factor",)

        def forward(self, x):
            return super().forward(x) * self.factor

    model, x = Scaled().double(), image()
    fused = atrous.fuse(model)
    with pytest.raises(AttributeError, match="factor"):
        fused(x)
    model.factor = 2.0
    torch.testing.assert_close(fused(x), model(x), rtol=1e-9, atol=1e-9)
    fused.factor = 3.0
    assert model.factor == fused.factor == 3.0
    torch.testing.assert_close(fused(x), model(x), rtol=1e-9, atol=1e-9)
    del fused.factor
    assert not hasattr(model, "factor")
