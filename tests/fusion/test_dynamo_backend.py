"""torch.compile(model, backend="atrous") and atrous.fuse_graph, for those who do not call fuse()."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from outcomes import assert_alike, equal_models
from pairs import BOTH, Pair, image
from torch import nn
from variants import epilogues
from zoo import ZOO

import atrous
from atrous.core import graph_compat


def fused_count(run, x):
    run(x)  # compiling calls the operators on fake tensors
    with torch.autograd.profiler.profile() as profile:
        run(x)
    return sum(event.name.startswith("atrous::") and "epilogue" in event.name for event in profile.function_events)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("options", [None, {}, {"backend": "library"}, {"recompute": False}], ids=str)
def test_compile(training, options):
    model, plain = equal_models(Pair, training)
    compiled = torch.compile(model, backend="atrous", fullgraph=True, options=options)
    for x in (image(), image(3), image().to(memory_format=torch.channels_last)):
        assert_alike(compiled, plain, x)
    if not training:
        with torch.no_grad():
            assert fused_count(compiled, image()) == 2
            model.conv1.weight.mul_(2), plain.conv1.weight.mul_(2)
            torch.testing.assert_close(compiled(x), plain(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("training", [False, pytest.param(True, marks=pytest.mark.gate)])
def test_compile_then_inductor(training, monkeypatch):
    """Inductor compiles the graph, or its forward and its backward."""
    finished, report = [], atrous.fusion.Report()
    run = graph_compat.with_inductor
    monkeypatch.setattr(graph_compat, "with_inductor", lambda *a, **k: finished.append(run(*a, **k)) or finished[-1])
    model, plain = equal_models(Pair, training)
    compiled = torch.compile(model, backend="atrous", options={"then": "inductor", "report": report})
    assert_alike(compiled, plain, image())
    assert len(finished) == 2 and [graph.fallbacks for graph in report.graphs] == [[]]
    if not training:
        with torch.no_grad():
            assert fused_count(compiled, image()) == 2


def test_a_compiled_function():
    """Any function of modules and tensors, in which the model is a part."""
    model, plain = equal_models(Pair, training=True)

    def loss(model, x, y):
        return torch.nn.functional.mse_loss(model(x), y)

    x, y = image(), image()
    compiled = torch.compile(lambda x, y: loss(model, x, y), backend="atrous")
    assert_alike(compiled, lambda x, y: loss(plain, x, y), x, y)
    for ours, theirs in zip(model.parameters(), plain.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-9)


def test_two_instances_through_the_backend():
    """Dynamo hands one instance's graph to the other: nothing in it may depend on a weight's value."""
    models = [torch.compile(m, backend="atrous") for m in (equal_models(Pair)[0], Pair().double().eval())]
    plains = [m._orig_mod for m in models]
    with torch.no_grad():
        for compiled, plain in [*zip(models, plains), *zip(models, plains)]:
            x = image()
            torch.testing.assert_close(compiled(x), plain(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("options, text", [({"backend": "cudnn"}, "backend"), ({"fast": 1}, "fast"),
                                           ({"then": "onnx"}, "then")])  # fmt: skip
def test_wrong_options(options, text):
    with pytest.raises(Exception, match=text):
        torch.compile(Pair().eval(), backend="atrous", options=options)(image(dtype=torch.float32))


def test_it_is_found_without_an_import():
    program = (
        "import torch; m = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU());"
        "x = torch.randn(1, 3, 6, 6); m.eval(); torch.set_grad_enabled(False);"
        "assert 'atrous' in torch._dynamo.list_backends();"
        "torch.testing.assert_close(torch.compile(m, backend='atrous')(x), m(x), rtol=1e-4, atol=1e-4)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def symbolic(model, x):
    return torch.fx.symbolic_trace(model)


def exported(model, x):
    return torch.export.export(model, (x,)).module()


@pytest.mark.parametrize("name", ["TorchvisionBasic", "FunctionsAlone", "Darknet", "PreActivation"])
@pytest.mark.parametrize("trace", [symbolic, exported], ids=lambda trace: trace.__name__)
@torch.no_grad()
def test_fuse_graph(trace, name):
    """A graph of torch's functions and one of aten's operators are fused by the same patterns."""
    entry = ZOO[name]
    model, plain = equal_models(entry.build)
    x = entry.inputs()
    fused = atrous.fuse_graph(trace(model, x), (x,))
    assert fused_count(fused, x) in [patterns.total() for patterns in entry.patterns(False)]
    for y in (x, x * 2):
        torch.testing.assert_close(fused(y), plain(y), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("act", [nn.LeakyReLU, nn.RReLU])
@torch.no_grad()
def test_defaults_that_an_export_leaves_out(act):
    """An operator of the graph lacks the arguments that have aten's defaults."""
    plain, x = equal_models(lambda: nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), act()))[0], image()
    fused = atrous.fuse_graph(exported(plain, x), (x,))
    assert fused_count(fused, x) == 1
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-9, atol=1e-9)


def test_fuse_graph_refuses_what_is_no_graph():
    with pytest.raises(TypeError, match="gm: expected .*GraphModule.*got"):
        atrous.fuse_graph(nn.ReLU(), (image(),))


def test_the_compiled_and_the_fused_agree():
    """One pass behind both: the same layers."""
    model = equal_models(Pair)[0]
    with torch.no_grad():
        assert epilogues(atrous.fuse(model, (image(),)), image()) == len(BOTH)
        assert fused_count(torch.compile(model, backend="atrous"), image()) == len(BOTH)
