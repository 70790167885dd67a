"""The arms of the comparison: the reference, and others that differ from it in one factor."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Arm:
    """name: as in the table; changes: options of Config that differ from the reference's."""

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    about: str = ""

    @property
    def folder(self) -> str:
        return re.sub(r"[^\w.]+", "_", self.name)

    @property
    def title(self) -> str:
        return f"{self.name} ({self.about})" if self.about else self.name


FIXED: dict[str, Any] = {"act": "prelu", "rates": (1, 2, 5), "dropout": 0.0}  # the reference's
REFERENCE = Arm("prelu", {}, "rates 1,2,5, dropout 0")
ARMS = (
    REFERENCE,
    Arm("relu", {"act": "relu"}),
    Arm("leaky_relu 0.01", {"act": "leaky_relu", "slope": 0.01}),
    Arm("leaky_relu 1/5.5", {"act": "leaky_relu", "slope": 1 / 5.5}),
    Arm("rrelu", {"act": "rrelu"}),
    Arm("rates none", {"rates": (1, 1, 1)}, "no dilation"),
    Arm("rates 2,2,2", {"rates": (2, 2, 2)}, "gridding: their common factor is 2"),
    Arm("rates 1,2,9", {"rates": (1, 2, 9)}, "one large rate"),
    Arm("dropout 0.5", {"dropout": 0.5}),
)
