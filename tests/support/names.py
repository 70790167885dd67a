"""Which operators run, by name."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode


class Names(TorchDispatchMode):
    """Notes the names of what is called, in order."""

    def __init__(self):
        super().__init__()
        self.called: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.called.append(func.name())
        return func(*args, **(kwargs or {}))

    @property
    def ours(self) -> list[str]:
        """Those that are convolutions or of a namespace of ours."""
        return [name for name in self.called if name.startswith("atrous") or "aten::convolution" in name]
