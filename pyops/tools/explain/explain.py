"""What runs each convolution of a model, in which config, and the least time that it takes.

    floor = max(2 * MAC / peak, bytes / bandwidth)

bytes: input, weight, output and residual, each once. Where the tuning table holds a measurement it is set beside the
floor. The row triton is also explained for a card that is not here: by the rule, and marked as not measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ... import tuning
from ...backends import selection
from ...nn import FrozenConv2d
from ...triton_kernels.conv.configs import ConvKey, conv_config, precision
from ...triton_kernels.gpus import INT32_ELEMENTS
from ...tuning.format import Entry
from .conv_sites import Site, sites
from .layers import Row, walk
from .report import Choice, Explanation, total
from .target import Target


def explain(model: nn.Module, input_shape: Sequence[int], backend: str, target: Target) -> Explanation:
    """backend: "auto" or a row's name. Raises what walk and dispatch.choose raise."""
    walked, found = walk(model, input_shape), sites(model, input_shape)
    frozen = {name for name, module in model.named_modules() if isinstance(module, FrozenConv2d)}
    with FakeTensorMode():  # tensors of the target's device, without memory: dispatch and tuning ask for no more
        choices = [_choice(site, site.name in frozen, backend, target) for site in found]
    _into_rows(walked.rows, choices)
    return Explanation(walked, target, choices)


def conv_key(site: Site, target: Target) -> ConvKey:
    """A convolution as the Triton kernels see it on the target's card."""
    assert target.card is not None
    batch, channels, height, width = site.input
    _, out_channels, out_height, out_width = site.output
    layout = "last" if target.layout == torch.channels_last else "planes"
    return ConvKey(
        int(target.card.chip.removeprefix("sm_")), target.card.multiprocessors, target.dtype.itemsize,
        precision(target.dtype), layout, batch, channels, (height, width), out_channels,
        (out_height, out_width), (site.weight[2], site.weight[3]), site.spec.stride, site.spec.groups,
        wide=max(map(prod, (site.input, site.weight, site.output))) >= INT32_ELEMENTS,
    )  # fmt: skip


def _choice(site: Site, frozen: bool, backend: str, target: Target) -> Choice:
    entry = config = None
    if target.here:
        input, weight = (
            torch.empty(shape, dtype=target.dtype, device=target.device, memory_format=target.layout)
            for shape in (site.input, site.weight)
        )
        residual = site.residual != "none"
        backend = selection.choose(backend, input, weight, site.spec, frozen=frozen, residual=residual).name
        entry = tuning.measured(input, weight, site.spec, residual, frozen)
        config = tuning.measured_config(input, weight, site.spec, residual) if backend == "triton" else None
    tuned = entry is not None and entry.backend == backend
    if backend == "triton":
        tuned, config = config is not None, config or conv_config(conv_key(site, target))
    moved = site.bytes(target.dtype.itemsize)
    return Choice(
        site, backend, config and config.describe(), tuned, moved,
        floor_us=target.ceilings and target.ceilings.floor(site.macs, moved),
        measured_us=_measured_us(entry, backend, site.input[0]),
    )  # fmt: skip


def _measured_us(entry: Entry | None, backend: str, batch: int) -> float | None:
    """Of this very call: an entry serves the batches near its own too, and of triton it names the fastest config alone
    where triton was the fastest row."""
    if entry is None or backend not in entry.milliseconds or batch != tuning.bucket(batch):
        return None
    if backend == "triton" and entry.config is None:
        return None
    return 1e3 * entry.milliseconds[backend]


def _into_rows(rows: list[Row], choices: list[Choice]) -> None:
    """Each choice to the row of its module, or of the module around it; a module that ran twice has two rows."""
    waiting: dict[str, list[Row]] = {}
    for row in rows:
        waiting.setdefault(row.name, []).append(row)
    for choice in choices:
        path = choice.site.name
        while path and path not in waiting:
            path = path.rpartition(".")[0]
        found = waiting.get(path, [])
        if found:  # else it is a function's call outside of every row: it counts in the sums alone
            row = found.pop(0) if len(found) > 1 else found[0]
            row.backend, row.config, row.bytes = choice.backend, choice.config, row.bytes + choice.bytes
            row.floor_us = total((choice.floor_us, row.floor_us or 0.0))
            row.measured_us = total((choice.measured_us, row.measured_us or 0.0))
