"""Records the names of the operators that run."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode


class OperatorNames(TorchDispatchMode):
    """Records the name of each operator that is called, in order."""

    def __init__(self):
        super().__init__()
        self.called: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.called.append(func.name())
        return func(*args, **(kwargs or {}))

    @property
    def ours(self) -> list[str]:
        """The names of convolutions and of our own operators."""
        return [name for name in self.called if name.startswith("atrous") or "aten::convolution" in name]
