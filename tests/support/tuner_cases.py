"""Two small layers to tune, the tuner's results for listed layers, and a candidate that is wrong."""

from __future__ import annotations

import torch

from atrous.core.spec import Spec
from atrous.tools.explain.conv_layers import ConvLayer
from atrous.tools.tune import measure as tuner
from atrous.tools.tune.candidates import forms

CPU = torch.device("cpu")
SMALL = ConvLayer("small", (2, 16, 9, 9), (16, 16, 3, 3), Spec((1, 1), (2, 2), (2, 2)), "before")
ODD = ConvLayer("odd", (1, 6, 7, 11), (10, 3, 1, 3), Spec((2, 1), (0, 5), (1, 5), 2))


def tuned(*listed, seconds=60.0, dtype=torch.float32, layout=torch.contiguous_format):
    return list(tuner.tune(tuner.jobs(listed, forms(CPU, dtype, layout)), seconds))


def replace_native(monkeypatch, run):
    """Makes the candidate native compute run(its result)."""
    right = tuner.call

    def call(candidate, form, kwargs):
        native = right(candidate, form, kwargs)
        return (lambda: run(native())) if candidate == "native" else native

    monkeypatch.setattr(tuner, "call", call)
