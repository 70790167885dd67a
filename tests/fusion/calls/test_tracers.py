"""Tracers of a fused model: torch.compile, torch.export, onnx, jit.trace, fx, quantization, counters, modes."""

from __future__ import annotations

import importlib.util
import warnings

import pytest
import torch
from faults import doubles, doubles_forward, scales, stale
from outcomes import agree, assert_alike, equal_models
from pairs import BOTH, Pair, image, written
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch.utils.flop_counter import FlopCounterMode
from variants import ALL, SHARED, catches, layers

import atrous

BACKENDS = ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.gate)]


def fused_nodes(graph):
    """The nodes of a graph that run operators of the package."""
    return [node for node in graph.nodes if "atrous" in str(node.target) and "epilogue" in str(node.target)]


def no_batch_norm(graph):
    return not any("batch_norm" in str(node.target) for node in graph.nodes)


@pytest.mark.parametrize("backend", BACKENDS)
@catches(scales, variants=ALL, gates=("frozen",))
def test_compile_of_a_fused_model(make, training, backend):
    """One graph, in which the layers are still fused; and a change is seen through it."""
    fused, plain = make.pair(equal_models(Pair, training))
    graphs = []

    def keep(gm, inputs):
        graphs.append(gm.graph)
        return make_boxed_func(gm.forward)

    assert_alike(torch.compile(fused, fullgraph=True, backend=backend), plain, image())
    with torch.set_grad_enabled(training):
        torch.compile(fused, fullgraph=True, backend=aot_autograd(fw_compiler=keep))(image())
    if not make.plain:
        assert no_batch_norm(graphs[0]) and len(fused_nodes(graphs[0])) == 2, graphs[0]


@catches(stale)
def test_a_change_under_compile(make):
    fused, plain = make.pair(equal_models(Pair))
    compiled = torch.compile(fused, fullgraph=True, backend="eager")
    with torch.no_grad():
        for change in (lambda m: None, lambda m: m.conv1.weight.mul_(2), lambda m: setattr(m, "relu", nn.Tanh()),
                       lambda m: m.bn2.running_mean.add_(1)):  # fmt: skip
            change(fused), change(plain)
            x = image()
            torch.testing.assert_close(compiled(x), plain(x), rtol=1e-9, atol=1e-9)


@catches(scales, training=True, gates=("frozen", "fused-eval"))
def test_a_fused_model_in_a_compiled_function(make, training):
    """A compiled loss around it, and a graph that breaks before and behind it."""
    fused, plain = make.pair(equal_models(Pair, training))

    def loss(model, x):
        y = torch.sin(x) + 1
        print(end="")
        return torch.cos(model(y)) * 2

    def forward(x, model):
        return torch.compile(loss, backend="aot_eager")(model, x)

    x = image()
    for y, model in ((x, fused), (x * 2, fused)):
        with torch.set_grad_enabled(training):
            ours, theirs = forward(y, model), loss(plain, y)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    agree(fused, plain, x)


@catches(stale, variants=SHARED)
def test_a_child_that_was_compiled_in_place(make):
    """`child.compile()` leaves a module of its class: it is fused with the rest, or left, and right."""
    model, plain = equal_models(lambda: nn.Sequential(Pair(), Pair()))
    model[0].compile(backend="eager")
    fused = make(model)
    agree(fused, plain, image())
    with torch.no_grad():
        model[0].conv1.weight.mul_(2), plain[0].conv1.weight.mul_(2)
    agree(fused, plain, image())
    assert layers(fused)


@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
@catches(scales)
@torch.no_grad()
def test_export(make, strict):
    """An exported program of a fused model has every fused layer, of a variable batch too."""
    fused, plain = make.pair(equal_models(Pair))
    for shapes in (None, ({0: torch.export.Dim("batch", min=1, max=64)},)):
        program = torch.export.export(fused, (image(),), strict=strict, dynamic_shapes=shapes)
        for x in (image(),) if shapes is None else (image(), image(5), image(1)):
            torch.testing.assert_close(program.module()(x), plain(x), rtol=1e-9, atol=1e-9)
        assert make.frozen or program.state_dict.keys() == plain.state_dict().keys()
        if not make.plain:
            assert no_batch_norm(program.graph) and len(fused_nodes(program.graph)) == 2, program.graph


@catches(scales)
def test_a_saved_program(make, tmp_path):
    """Exported with gradients enabled, as is usual."""
    fused, plain = make.pair(equal_models(Pair))
    torch.export.save(torch.export.export(fused, (image(),)), tmp_path / "program.pt2")
    x = image()
    y = torch.export.load(tmp_path / "program.pt2").module()(x)
    torch.testing.assert_close(y, plain(x), rtol=1e-9, atol=1e-9)


@catches(scales, training=True, variants=SHARED)
def test_export_for_training(make):
    """Values, gradients and statistics of a program that was exported in training are the model's."""
    fused, plain = make.pair(equal_models(Pair, training=True))
    program = torch.export.export(fused, (image(),)).module()
    agree(program, plain, image())


@pytest.mark.skipif(not importlib.util.find_spec("onnxscript"), reason="onnxscript is not installed")
@catches(scales)
def test_onnx(make):
    fused, plain = make.pair(equal_models(Pair))
    program = torch.onnx.export(fused.float(), (image(dtype=torch.float32),), dynamo=True)
    x = image(dtype=torch.float32)
    torch.testing.assert_close(program(x)[0], plain.float()(x), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@catches(scales, gates=("frozen",))
def test_jit_trace(make):
    """A trace has the plain operators, before and after a call; the copy is as it was."""
    fused, plain = make.pair(equal_models(Pair))
    for _ in range(2):
        x = image()
        program = torch.jit.trace(fused, x)
        assert "aten::batch_norm" in str(program.inlined_graph) and "atrous" not in str(program.inlined_graph)
        with torch.no_grad():
            torch.testing.assert_close(program(x * 2), plain(x * 2), rtol=1e-9, atol=1e-9)
        agree(fused, plain, x)
    assert layers(fused) == BOTH


@pytest.mark.filterwarnings("ignore")
@catches(scales, gates=("frozen",))
def test_fx(make):
    """symbolic_trace and make_fx see the plain operators, or ours of equal values."""
    from torch.fx.experimental.proxy_tensor import make_fx

    fused, plain = make.pair(equal_models(Pair))
    x = image()
    for program in (torch.fx.symbolic_trace(fused), make_fx(fused)(x)):
        with torch.no_grad():
            torch.testing.assert_close(program(x * 2), plain(x * 2), rtol=1e-9, atol=1e-9)
    agree(fused, plain, x)
    assert layers(fused) == BOTH
    fused = make(torch.fx.symbolic_trace(equal_models(Pair)[0]))  # a graph's module is one to fuse
    agree(fused, plain, x)
    assert layers(fused) == BOTH


@pytest.mark.filterwarnings("ignore")
@catches(doubles_forward, gates=("frozen",))
def test_quantization(make):
    """prepare_fx observes the plain layers; a quantized child in a fused model computes as in the plain one."""
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    fused, plain = (model.float() for model in make.pair(equal_models(Pair)))
    x, results = image(dtype=torch.float32), []
    for model in (fused, plain):
        prepared = prepare_fx(model, get_default_qconfig_mapping("x86"), (x,))
        prepared(x)
        results.append(convert_fx(prepared)(x))
    torch.testing.assert_close(*results, rtol=0.05, atol=0.1)


@catches(doubles, variants=SHARED, gates=("fused-eval",))
def test_flops(make, training):
    """FlopCounterMode counts a fused model's operations as the plain model's, forward and backward."""
    fused, plain = make.pair(equal_models(Pair, training))
    for _ in range(2):
        totals, x = [], image()
        for model in (fused, plain):
            with FlopCounterMode(display=False) as counter:
                y = model(x)
                if training:
                    y.sum().backward()
            totals.append(counter.get_total_flops())
        assert totals[0] == totals[1] > 0
        agree(fused, plain, image())


@catches(scales, gates=("frozen",))
def test_under_modes_and_subclasses(make):
    """A dispatch mode and a function mode see the operators; a tensor subclass stays one."""
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

    class Marked(torch.Tensor):
        pass

    class Sees(TorchDispatchMode):
        names: list = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.names.append(str(function))
            return function(*args, **(kwargs or {}))

    class Functions(TorchFunctionMode):
        names: list = []

        def __torch_function__(self, function, types, args=(), kwargs=None):
            self.names.append(str(function))
            return function(*args, **(kwargs or {}))

    fused, plain = make.pair(equal_models(Pair))
    x = image()
    with torch.no_grad():
        expected = plain(x)
        old = torch.__version__.startswith("2.11.")  # its Dynamo refuses Functions: docs/differences.md
        for mode in (Sees(),) if old else (Sees(), Functions()):
            with mode:
                torch.testing.assert_close(fused(x), expected, rtol=1e-9, atol=1e-9)
            assert any("conv" in name for name in type(mode).names)
        marked = fused(x.as_subclass(Marked))
        assert type(marked) is type(plain(x.as_subclass(Marked)))
        torch.testing.assert_close(marked.as_subclass(torch.Tensor), expected, rtol=1e-9, atol=1e-9)
    agree(fused, plain, x)


@catches(scales, gates=("frozen",))
def test_meta_and_fake_tensors(make):
    """Shapes alone, as summaries of models compute them."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    fused, plain = make.pair(equal_models(written(lambda s, x: s.second(s.first(x), x))))
    agree(fused, plain, image())
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert fused(torch.empty(3, 4, 7, 7, dtype=torch.float64)).shape == (3, 4, 7, 7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        copied = type(plain)().to("meta").double().eval()
    assert (make(copied) if not make.frozen else copied)(image().to("meta")).shape == (2, 4, 6, 6)
    agree(fused, plain, image())


@torch.no_grad()
def test_two_fused_models_in_one_graph():
    """Each has its own options; what stands between them is left as it is."""

    class Both(nn.Module):
        def __init__(self, models):
            super().__init__()
            self.first, self.second = models

        def forward(self, x):
            return self.second(torch.tanh(self.first(x)))

    plain = Both(equal_models(Pair))
    model, graphs = Both((atrous.fuse(plain.first), atrous.fuse(plain.second, freeze=True))), []

    def keep(gm, inputs):
        graphs.append(gm.graph)
        return gm.forward

    x = image()
    torch.testing.assert_close(torch.compile(model, backend=keep)(x), plain(x), rtol=1e-9, atol=1e-9)
    assert no_batch_norm(graphs[0]) and len(fused_nodes(graphs[0])) == 4
    assert layers(model.first) == layers(model.second) == BOTH
