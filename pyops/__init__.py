"""atrous: fused (dilated) conv2d + BatchNorm + activation + residual add as torch operators."""

from . import fusion, models, nn
from .audit import Audit, audit_dilation
from .functional import add_act, bn_act, conv_bn_act
from .fusion import fuse, fuse_graph
from .models.prelu_training import param_groups

__version__ = "0.1.0"
__all__ = [
    "Audit", "add_act", "audit_dilation", "bn_act", "conv_bn_act", "fuse", "fuse_graph", "fusion", "models", "nn",
    "param_groups",
]  # fmt: skip


def __dir__() -> list[str]:
    """The public names; the modules behind them are imported here too."""
    return [name for name in globals() if name in __all__ or name.startswith("__")]
