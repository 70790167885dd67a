"""The parts that the models are composed from: residual blocks with torchvision's names, and conv-BN-act layers."""

from __future__ import annotations

from torch import Tensor, nn

from ..core import activation


def conv_bn_act(
    in_channels: int, channels: int, kernel: int = 3, stride: int = 1, dilation: int = 1, act: str = "relu"
) -> list[nn.Module]:
    """Returns a convolution without bias, its BatchNorm and its activation; padding keeps H / stride, rounded up."""
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(in_channels, channels, kernel, stride, padding, dilation, bias=False)
    return [conv, nn.BatchNorm2d(channels), activation.make(act, channels)]


def shortcut(in_channels: int, channels: int, stride: int) -> nn.Sequential | None:
    """Returns a 1x1 convolution with its BatchNorm where a block changes the shape, else None: x itself is added."""
    if stride == 1 and in_channels == channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))


class BasicBlock(nn.Module):
    """y = act2(bn2(conv2(act1(bn1(conv1(x))))) + identity(x)), identity a 1x1 convolution where the shape changes.

    x: (N, in_channels, H, W). Returns (N, channels, ceil(H / stride), ceil(W / stride)): padding equals dilation.
    dilations: those of conv1, which has the stride, and of conv2.
    residual: False leaves out the sum, as the last layers of DRN-C do.
    """

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        dilations: tuple[int, int] = (1, 1),
        act: str = "relu",
        residual: bool = True,
    ):
        super().__init__()
        first, second = dilations
        self.residual = residual
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=first, dilation=first, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = activation.make(act, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=second, dilation=second, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.act2 = activation.make(act, channels)
        self.downsample = shortcut(in_channels, channels, stride) if residual else None

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.act1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.residual:
            out += identity
        return self.act2(out)


class Bottleneck(nn.Module):
    """y = act3(bn3(conv3(act2(bn2(conv2(act1(bn1(conv1(x)))))))) + identity(x)), conv2 3x3, conv1 and conv3 1x1.

    x: (N, in_channels, H, W). Returns (N, 4 channels, ceil(H / stride), ceil(W / stride)); conv1 and conv2 have
    `channels` channels. conv2 has the stride, as in torchvision's V1.5, and the first of the two dilations.
    """

    expansion = 4

    def __init__(
        self, in_channels: int, channels: int, stride: int = 1, dilations: tuple[int, int] = (1, 1), act: str = "relu"
    ):
        super().__init__()
        dilation, out_channels = dilations[0], self.expansion * channels
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = activation.make(act, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.act2 = activation.make(act, channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.act3 = activation.make(act, out_channels)
        self.downsample = shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.act1(self.bn1(self.conv1(x)))
        out = self.act2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += identity
        return self.act3(out)


def init_fan_out_(model: nn.Module) -> None:
    """Initializes the convolutions as torchvision's ResNets: Kaiming normal, fan_out."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
