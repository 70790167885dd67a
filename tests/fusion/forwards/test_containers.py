"""Arguments and results in containers of every type, and features that a forward stores in some place."""

from __future__ import annotations

import collections
import dataclasses
import types

import pytest
import torch
from faults import as_list, copies, keeps_references, one_argument, stale
from outcomes import agree, equal_models, error_of, parts
from pairs import BOTH, Pair, image, written
from variants import SHARED, catches, layers

import atrous

Features = collections.namedtuple("Features", ["low", "high"])


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    features: list | None = None


class ModelOutput(collections.OrderedDict):
    """As in Hugging Face's transformers: a dict whose values are attributes too."""

    def __init__(self, **values):
        super().__init__(**values)
        for name, value in values.items():
            setattr(self, name, value)


class Levels(list):
    pass


RESULTS = {
    "dict": lambda x, y, z: {"low": y, "high": z, 3: x},
    "OrderedDict": lambda x, y, z: collections.OrderedDict(z=z, y=y),
    "namedtuple": lambda x, y, z: Features(y, high=z),
    "dataclass": lambda x, y, z: Output(z, features=[y, None]),
    "dict of a subclass": lambda x, y, z: ModelOutput(y=y, z=z),
    "list of a subclass": lambda x, y, z: Levels([y, z]),
    "defaultdict": lambda x, y, z: collections.defaultdict(list, y=[y], z=[z]),
    "nested": lambda x, y, z: [(y, {"z": [z, (x,)]}), []],
    "with numbers": lambda x, y, z: (z, None, 3, "name", 2.5, True, y.shape[1]),
    "a view": lambda x, y, z: (y, z.flatten(1), z[:, :2], z.permute(0, 2, 3, 1)),
    "namespace": lambda x, y, z: [types.SimpleNamespace(z=z).z, torch.Size([2])],
    "set": lambda x, y, z: (z, {"low", "high"}),
}


@pytest.mark.parametrize("pack", RESULTS.values(), ids=RESULTS)
@catches(as_list, gates=("frozen", "fused-eval"))
def test_results(make, training, pack):
    def forward(s, x):
        y = s.first(x)
        return pack(x, y, s.second(y, x))

    fused, plain = make.pair(equal_models(written(forward), training))
    agree(fused, plain, image())
    agree(fused, plain, image())
    assert layers(fused) == BOTH


@catches(copies, gates=("frozen",))
def test_the_same_object_comes_back(make):
    """The argument itself, a parameter itself, and one result twice."""

    def forward(s, x):
        y = s.second(s.first(x), x)
        return [x, y, y, s.prelu.weight, s.bn1.running_mean]

    fused = make(equal_models(written(forward))[0])
    x = image()
    for _ in range(2):
        result = fused(x)
        assert type(result) is list and result[0] is x and result[1] is result[2]
        assert result[3] is fused.prelu.weight and result[4] is fused.bn1.running_mean


def many(s, x, *rest, residual=None, scale=1.0, **named):
    """Every kind of parameter that Python has."""
    y = s.first(x)
    for value in rest:
        y = y + value
    y = y * scale + sum(named.values())
    return s.second(y, x if residual is None else residual), sorted(named)


CALLS = {
    "one": ((image(),), {}),
    "rest": ((image(), image(), 2.0), {}),
    "keyword": ((image(),), {"residual": image()}),
    "None": ((image(),), {"residual": None}),
    "number": ((image(),), {"scale": 0.5}),
    "named": ((image(), 1), {"b": image(), "a": 3}),
    "first by keyword": ((), {"x": image(), "scale": 2}),
}


@catches(one_argument, gates=("frozen",))
def test_arguments(make):
    """One copy takes all these calls, and refuses those that the model refuses, with the same type of error."""
    fused, plain = make.pair(equal_models(written(many)))
    for args, kwargs in CALLS.values():
        agree(fused, plain, *args, **kwargs)
    for args, kwargs in [((), {}), ((image(),), {"x": image()}), (("text",), {}), ((None,), {})]:
        assert error_of(fused, *args, **kwargs) is error_of(plain, *args, **kwargs) is not None
    assert layers(fused) == {**BOTH, "conv+bn+relu+add": 1}  # the second call adds an argument behind the first


def nested(s, batch, sizes=(1, 2), *, options):
    x = batch["image"] if isinstance(batch, dict) else batch.logits if isinstance(batch, Output) else batch[0]
    y = s.first(x)
    if options.get("double"):
        y = y * len(sizes)
    return s.second(y, x if options["residual"] is None else options["residual"][0])


@catches(one_argument, gates=("frozen",))
def test_nested_arguments(make):
    fused, plain = make.pair(equal_models(written(nested)))
    for batch in ([image()], {"image": image()}, (image(), None), Output(image())):
        agree(fused, plain, batch, options={"residual": None})
    agree(fused, plain, [image()], [1, 2, 3], options={"residual": [image()], "double": True})


class Stores(Pair):
    """Everything that a forward of public code stores: features for a loss, counters, a cache."""

    kept = None

    def __init__(self):
        super().__init__()
        self.features, self.table, self.recent = [], {}, collections.deque(maxlen=2)
        self.holder, self.calls, self.outputs = types.SimpleNamespace(last=None), 0, collections.OrderedDict()
        self.register_buffer("step", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.step += 1
        y = self.first(x)
        self.features.append(y)
        self.table["y"] = y.mean()
        z = self.second(y, x)
        self.recent.append(z)
        self.holder.last, self.outputs[self.calls], self.last = z, z.sum(), [y, z]
        self.conv1.seen = z.shape
        return z

    def stored(self):
        values = self.features, self.table, list(self.recent), self.holder.last, self.outputs, self.last, self.calls
        return dict(parts([*values, tuple(self.conv1.seen)]))


@catches(keeps_references, gates=("frozen",))
def test_what_a_forward_stores(make, training):
    """It is stored in the fused model, as tensors with values; none is of a tracer."""
    model, plain = equal_models(Stores, training)
    fused = make.pair((model, plain))[0]
    for number in range(3):
        x = image(batch=2 if number < 2 else 3)
        agree(fused, plain, x)
        ours, theirs = fused.stored(), plain.stored()
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert type(ours[name]) is type(value), name
            if isinstance(value, torch.Tensor):
                assert type(ours[name]) is torch.Tensor and ours[name].requires_grad == value.requires_grad
                torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-9)
            else:
                assert ours[name] == value, name
    assert layers(fused)


STORE: list = []


@catches(stale, variants=SHARED)
def test_stores_outside_the_model(make):
    """A global list; and with one state, what the fused model stores is in the model too."""

    def forward(s, x):
        y = s.first(x)
        STORE.append(y.detach())
        s.features = y
        return s.second(y, x)

    model, plain = equal_models(written(forward))
    fused = make(model)
    for _ in range(2):
        agree(fused, plain, image())
    assert len(STORE) == 4
    torch.testing.assert_close(STORE[1::2], STORE[::2], rtol=1e-9, atol=1e-9)
    STORE.clear()
    assert "features" in vars(model) and model.features is fused.features


def test_a_forward_that_belongs_to_the_instance():
    """A plain function, without self."""
    model = equal_models(Pair)[0]
    model.forward = lambda x, scale=None: model.first(x)
    fused, x = atrous.fuse(model), image()
    torch.testing.assert_close(fused(x, scale=None), model(x), rtol=1e-9, atol=1e-9)
    assert layers(fused) == {"conv+bn+relu": 1}
