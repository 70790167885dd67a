"""The tensors of a fuzzer's case, by name, surrounded by NaN."""

from __future__ import annotations

import math

import oracle
import torch
import torch.nn.functional as F
import triton_cases as cases
from fuzz_cases import SLOPES, Case
from fuzz_runs import before_activation, epilogue_of
from torch import Tensor

from atrous import reference
from atrous.core import layout
from atrous.core.spec import accumulate_type

MIN_VALUES, MIN_VARIANCE = 8, 1 / 16  # batch statistics below these amplify rounding errors: such cases get eps = 1


def tensors(case: Case, margins: oracle.Margins) -> tuple[Case, dict[str, Tensor]]:
    """The case, with a larger eps if its batch statistics would amplify rounding errors, and its operands by name."""
    device = case.device
    generator, dtype = torch.Generator().manual_seed(case.values), getattr(torch, case.dtype)
    vector_type = dtype if case.vectors == "same" else getattr(torch, case.vectors)
    statistics_type = accumulate_type(dtype) if (case.form, case.norm) == ("passes", "batch") else vector_type
    sliced, (first, second) = case.memory == "sliced", case.layouts
    operands: dict[str, Tensor] = {}

    def make(name: str, shape: tuple[int, ...], kind=dtype, scale=1.0, mean=0.0, layout="NCHW", sliced=sliced):
        values = torch.randn(shape, generator=generator) * scale + mean
        values = values.abs() + 0.25 if name == "running_var" else values
        values = values.half() if case.precision == "tf32" else values
        margin = 67 if case.memory == "odd" else 64
        operands[name] = margins.place(strided(values.to(device, kind), layout, sliced), margin)

    (input, weight), output, columns = case.shapes, case.output(), (case.out_channels,)
    make("input", input, layout=first)
    make("weight", weight, scale=(2 / math.prod(weight[1:])) ** 0.5, layout=second)
    if case.bias:
        make("bias", columns)
    if case.norm != "none":
        make("bn_bias", columns, vector_type)
    if case.norm in ("eval", "batch"):
        make("bn_weight", columns, vector_type)
        make("running_mean", columns, statistics_type)
        make("running_var", columns, statistics_type)
    if SLOPES[case.slope] is None:
        make("slope", (1,) if case.slope == "shared" else columns)
    if case.form not in ("forward", "training", "gradients"):  # tensors of y's size must be dense and in y's layout
        last = layout.memory_format(operands["input"], operands["weight"]) == torch.channels_last
        last = last or case.form == "winograd"
        first = second = "NHWC" if last else "NCHW"
        sliced = False
    if case.residual != "none":
        shape = (1, *output[1:3], 1) if case.broadcast else output
        make("residual", shape, layout=second, sliced=sliced)
    make("grad", output, mean=0.25, layout=first, sliced=sliced)
    if case.form == "passes":
        make("z", output, scale=2.0, mean=1.0, layout=first, sliced=False)
        make("means", (3, case.out_channels), accumulate_type(dtype), sliced=False)
    operands["seed"] = torch.randint(-(2**63), 2**63 - 1, (2,), generator=generator).to(device)
    if case.norm == "batch" and case.form != "passes":
        case = case._replace(eps=stable_eps(case, operands))
    zero_gradient_near_kink(case, operands)
    return case, {name: value.requires_grad_(name in case.needs) for name, value in operands.items()}


def strided(values: Tensor, layout: str, sliced: bool) -> Tensor:
    """The values with exactly the strides of torch.empty in this layout, or as a slice of a larger tensor."""
    if values.dim() == 4:
        more = (0, 3, 1, values.shape[3] + 1) if sliced else (0, 0, 0, 0)
        size, format = [a + b for a, b in zip(values.shape, more)], cases.LAYOUTS[layout]
        whole = torch.empty(size, dtype=values.dtype, device=values.device, memory_format=format)
        return (whole[:, 1:-2, 1:, 1::2] if sliced else whole).copy_(values)
    step = 1 + sliced
    return values.new_empty(*values.shape[:-1], values.shape[-1] * step)[..., ::step].copy_(values)


def stable_eps(case: Case, t: dict[str, Tensor]) -> float:
    z = oracle.wide(t)
    z = F.conv2d(z["input"], z["weight"], None, *case.geometry).transpose(0, 1).flatten(1)
    if not z.numel():
        return case.eps
    scalar = t["weight"][0].numel() == 1  # then the BatchNorm cancels the weight's scale, and dw is near 0
    unstable = z.shape[1] < MIN_VALUES or z.var(1, unbiased=False).min().item() < MIN_VARIANCE
    return 1.0 if scalar or unstable else case.eps


def zero_gradient_near_kink(case: Case, t: dict[str, Tensor]) -> None:
    """Sets grad to 0 where rounding could change the sign of u, since either slope is right there."""
    truth = oracle.wide(t)
    if case.form == "passes":
        u = reference.gradient(truth["grad"], truth["z"], epilogue_of(case, truth))[2]
    else:
        u = before_activation(case, truth)
    if u.numel():
        t["grad"].masked_fill_(u.abs() <= 64 * torch.finfo(t["grad"].dtype).eps * u.abs().max(), 0)
