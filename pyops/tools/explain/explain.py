"""Explain a model's convolutions: the backend and config that run each, and the lower bound of its time.

    lower bound = max(2 * MAC / peak, bytes / bandwidth)

bytes: input, weight, output and residual, each once. A measurement in the tuning table is reported beside the lower
bound. Backend triton can also be explained for a GPU that is not present: its configs then come from the heuristic.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import prod

import torch
from torch import nn

from ... import tuning
from ...backends import selection
from ...core.torch_compat import fake_tensors
from ...fusion import is_frozen
from ...nn import FrozenConv2d
from ...triton_kernels.conv.configs import ConvKey, conv_config, precision
from ...triton_kernels.gpus import INT32_ELEMENTS
from ...tuning.format import Entry
from .conv_layers import ConvLayer, conv_layers
from .layers import Layer, LayerSummary, summarize
from .target import Target


@dataclass(frozen=True)
class Choice:
    """The backend of a convolution. config: triton's. tuned: both come from the tuning table, not from the rule.

    Times are None where unknown; measured_us needs a table entry for this batch, backend and config.
    """

    layer: ConvLayer
    backend: str
    config: str | None
    tuned: bool
    bytes: int
    lower_bound_us: float | None
    measured_us: float | None

    def as_dict(self) -> dict:
        """The choice for JSON, flat."""
        fields = asdict(self)
        layer = fields.pop("layer")
        return {**layer, **layer.pop("spec")._asdict(), "output": self.layer.output, "macs": self.layer.macs, **fields}


@dataclass
class Explanation:
    """The layer summary of a model, and the choices for its convolutions as fuse() runs them."""

    summary: LayerSummary
    target: Target
    choices: list[Choice]

    @property
    def totals(self) -> dict:
        """Sums over all convolutions, None if a term is unknown. images_per_second: the lower bound's upper limit."""
        bound, measured = _sum(c.lower_bound_us for c in self.choices), _sum(c.measured_us for c in self.choices)
        images = self.summary.input[0] / bound * 1e6 if bound else None
        moved = sum(choice.bytes for choice in self.choices)
        return {"bytes": moved, "lower_bound_us": bound, "measured_us": measured, "images_per_second": images}

    def as_dict(self) -> dict:
        """The explanation for JSON."""
        summary = self.summary.as_dict()
        summary["totals"] |= self.totals
        convolutions = [choice.as_dict() for choice in self.choices]
        return {**summary, "target": self.target.as_dict(), "convolutions": convolutions}


def _sum(values: Iterable[float | None]) -> float | None:
    """The sum; None if a value is None."""
    known = list(values)
    return None if None in known else sum(known)  # type: ignore[arg-type]


def explain(model: nn.Module, input_shape: Sequence[int], backend: str, target: Target) -> Explanation:
    """backend: "auto" or a backend's name. Raises what the model and backends.selection.choose raise."""
    summary, layers = summarize(model, input_shape), conv_layers(model, input_shape)
    kinds = (nn.Conv2d, FrozenConv2d) if is_frozen(model) else FrozenConv2d
    frozen = {name for name, module in model.named_modules() if isinstance(module, kinds)}
    with fake_tensors():  # tensors of the target's device without memory: enough for backend selection and tuning
        choices = [_choice(layer, layer.name in frozen, backend, target) for layer in layers]
    _into_layers(summary.layers, choices)
    return Explanation(summary, target, choices)


def conv_key(layer: ConvLayer, target: Target) -> ConvKey:
    """The key under which the Triton kernels choose a config for a convolution on the target's GPU."""
    assert target.gpu is not None
    batch, channels, height, width = layer.input
    _, out_channels, out_height, out_width = layer.output
    layout = "nhwc" if target.layout == torch.channels_last else "nchw"
    return ConvKey(
        int(target.gpu.chip.removeprefix("sm_")), target.gpu.multiprocessors, target.dtype.itemsize,
        precision(target.dtype), layout, batch, channels, (height, width), out_channels,
        (out_height, out_width), (layer.weight[2], layer.weight[3]), layer.spec.stride, layer.spec.groups,
        int64_offsets=max(map(prod, (layer.input, layer.weight, layer.output))) >= INT32_ELEMENTS,
    )  # fmt: skip


def _choice(layer: ConvLayer, frozen: bool, backend: str, target: Target) -> Choice:
    entry = config = None
    if target.present:
        input, weight = (
            torch.empty(shape, dtype=target.dtype, device=target.device, memory_format=target.layout)
            for shape in (layer.input, layer.weight)
        )
        residual = layer.residual != "none"
        backend = selection.choose(backend, input, weight, layer.spec, frozen=frozen, residual=residual).name
        entry = tuning.measured(input, weight, layer.spec, residual, frozen)
        config = tuning.measured_config(input, weight, layer.spec, residual) if backend == "triton" else None
    tuned = entry is not None and entry.backend == backend
    if backend == "triton":
        tuned, config = config is not None, config or conv_config(conv_key(layer, target))
    moved = layer.bytes(target.dtype.itemsize)
    return Choice(
        layer, backend, config and config.describe(), tuned, moved,
        lower_bound_us=target.ceilings and target.ceilings.lower_bound_us(layer.macs, moved),
        measured_us=_measured_us(entry, backend, layer.input[0]),
    )  # fmt: skip


def _measured_us(entry: Entry | None, backend: str, batch: int) -> float | None:
    """The measured time of exactly this call. An entry also serves nearby batches, and it names triton's fastest
    config only where triton was the fastest backend: neither time is this call's."""
    if entry is None or backend not in entry.milliseconds or batch != tuning.bucket(batch):
        return None
    if backend == "triton" and entry.config is None:
        return None
    return 1e3 * entry.milliseconds[backend]


def _into_layers(layers: list[Layer], choices: list[Choice]) -> None:
    """Adds each choice to the layer of its module or of the module around it; a module that ran twice has two."""
    by_name: dict[str, list[Layer]] = {}
    for layer in layers:
        by_name.setdefault(layer.name, []).append(layer)
    for choice in choices:
        path = choice.layer.name
        while path and path not in by_name:
            path = path.rpartition(".")[0]
        candidates = by_name.get(path, [])
        if candidates:  # else a function outside of every layer called it: it counts in the totals alone
            layer = candidates.pop(0) if len(candidates) > 1 else candidates[0]
            layer.backend, layer.config, layer.bytes = choice.backend, choice.config, layer.bytes + choice.bytes
            layer.lower_bound_us = _sum((choice.lower_bound_us, layer.lower_bound_us or 0.0))
            layer.measured_us = _sum((choice.measured_us, layer.measured_us or 0.0))
