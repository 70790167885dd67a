"""Single layers: activations, dropout, padding, groups, biases, and activations that end a layer at the BatchNorm."""

import torch
import torch.nn.functional as F
from torch import nn

from .entry import cb, cbr, conv, entry


class SubclassPReLU(nn.PReLU):
    """timm's PReLU: a subclass whose forward is written out."""

    def __init__(self, num_parameters=1, init=0.25, inplace=False):
        super().__init__(num_parameters, init)

    def forward(self, input):
        return F.prelu(input, self.weight)


@entry("4 conv+bn+prelu, conv+bn+leaky_relu, conv+bn+relu")
def activations():
    """PReLUs of one slope and of one a channel, subclasses, LeakyReLU with a slope above 1."""
    acts = nn.PReLU(), nn.PReLU(4), SubclassPReLU(), SubclassPReLU(4), nn.LeakyReLU(1.5), nn.ReLU()
    return nn.Sequential(*(cbr(act=act) for act in acts))


@entry("conv+bn+rrelu, conv+bn+add+rrelu", random=True, nchw=True)
class RandomSlopes(nn.Module):
    """RReLU: the mean of its bounds in eval, drawn slopes in training."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.act = cbr(act=nn.RReLU(0.1, 0.4, inplace=True)), cb(), nn.RReLU()

    def forward(self, x):
        return self.act(self.second(self.first(x)) + x)


@entry("6 conv+bn, conv+bn+relu")
def activations_that_end_a_layer():
    acts = nn.SiLU(), nn.ReLU6(), nn.Hardswish(), nn.GELU(), nn.ELU(), nn.Sigmoid()
    return nn.Sequential(*(cbr(act=act) for act in acts), cbr())


@entry("conv+relu, conv+leaky_relu, conv+prelu", convs=4)
def without_batch_norm():
    acts = nn.ReLU(inplace=True), nn.LeakyReLU(0.2, inplace=True), nn.PReLU()
    return nn.Sequential(*(m for act in acts for m in (conv(bias=True), act)), conv(4, 3, bias=True))


class Child(nn.Module):
    def __init__(self):
        super().__init__()
        self.before, self.conv = nn.ReflectionPad2d(1), nn.Conv2d(4, 4, 3)

    def forward(self, x):
        return self.conv(self.before(x))


@entry("conv+bn+relu, conv+bn+prelu")
class ConvolutionAtAChildsEnd(nn.Module):
    """A child ends with its convolution; its parent holds BatchNorm and activation."""

    def __init__(self):
        super().__init__()
        self.child1, self.child2, self.bn1, self.bn2 = Child(), Child(), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.act = nn.PReLU(4)

    def forward(self, x):
        return self.act(self.bn2(self.child2(F.relu(self.bn1(self.child1(x))))))


@entry("conv+bn+relu, conv+bn+prelu, conv+bn+relu", "2 conv+bn, conv+bn+relu+dropout", random=True)
class Dropouts(nn.Module):
    """Before the activation, where it ends the layer in training, and behind it, where it belongs to the layer."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.Dropout2d(0.3), nn.ReLU(inplace=True))
        self.second = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.Dropout(0.2), nn.PReLU())
        self.third = nn.Sequential(cbr(), nn.Dropout(0.4))

    def forward(self, x):
        return self.third(self.second(self.first(x)))


@entry("conv+bn+relu, conv+bn+add+relu", "conv+bn+relu, conv+bn, add+relu+dropout", random=True)
class DropoutBeforeASum(nn.Module):
    """Identities in eval: dropout between the BatchNorm and the sum, and behind the activation."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.drop = cbr(), cb(), nn.Dropout(0.5)

    def forward(self, x):
        return F.dropout(F.relu(self.drop(self.second(self.first(x))) + x), 0.1, self.training)


class OwnPReLU(nn.PReLU):
    """timm's: another constructor, and a forward of its own."""

    def __init__(self, num_parameters=1, init=0.25, inplace=False):
        super().__init__(num_parameters, init)

    def forward(self, input):
        return F.prelu(input, self.weight)


class OwnLeakyReLU(nn.LeakyReLU):
    pass


@entry("conv+bn+prelu, conv+bn+leaky_relu, conv+bn+add+prelu")
class SubclassesOfActivations(nn.Module):
    """Activations of classes that are derived from torch's."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(*cb(), OwnPReLU(4), *cb(), OwnLeakyReLU(0.1))
        self.second, self.act = cb(), OwnPReLU()

    def forward(self, x):
        return self.act(self.second(self.first(x)) + x)


@entry("8 conv+bn+relu", shape=(2, 4, 10, 11))
def paddings():
    """Strings, tuples and padding modes; "same" with a dilation and with an even kernel, which pads unevenly."""
    options = (
        dict(padding="same", dilation=2), dict(kernel_size=(2, 4), padding="same"), dict(padding="valid"),
        dict(padding=(2, 0)), dict(padding=1, padding_mode="reflect"), dict(padding=1, padding_mode="circular"),
        dict(padding=(0, 2), padding_mode="replicate"), dict(padding="same", padding_mode="reflect"),
    )  # fmt: skip
    convs = (nn.Conv2d(4, 4, option.pop("kernel_size", 3), **option) for option in options)
    return nn.Sequential(*(nn.Sequential(c, nn.BatchNorm2d(4), nn.ReLU()) for c in convs))


@entry("6 conv+bn+relu", shape=(2, 4, 12, 13))
def geometries():
    """Groups; strides, dilations and kernels that differ between the axes; a kernel as large as the input."""
    return nn.Sequential(
        cbr(groups=2), cbr(groups=4, dilation=3), cbr(kernel=7, stride=(2, 1)),
        cbr(kernel=(1, 3), padding=(0, 2), dilation=(1, 2)), cbr(kernel=(3, 1), stride=(1, 2), padding=(1, 0)),
        cbr(4, 6, (6, 7), padding=0),
    )  # fmt: skip


@entry("2 conv+relu, conv+bn+relu, conv+bn+add+relu")
class NonBottleneck1d(nn.Module):
    """ERFNet: kernels of 3x1 and 1x3, dilated, with biases, only every second one with a BatchNorm."""

    def __init__(self):
        super().__init__()
        options = [dict(kernel_size=(3, 1), padding=(1, 0)), dict(kernel_size=(1, 3), padding=(0, 1)),
                   dict(kernel_size=(3, 1), padding=(2, 0), dilation=(2, 1)),
                   dict(kernel_size=(1, 3), padding=(0, 2), dilation=(1, 2))]  # fmt: skip
        self.conv3x1_1, self.conv1x3_1, self.conv3x1_2, self.conv1x3_2 = (nn.Conv2d(4, 4, **o) for o in options)
        self.bn1, self.bn2 = nn.BatchNorm2d(4, eps=1e-3), nn.BatchNorm2d(4, eps=1e-3)
        self.dropout = nn.Dropout2d(0.0)

    def forward(self, input):
        output = F.relu(self.conv3x1_1(input))
        output = F.relu(self.bn1(self.conv1x3_1(output)))
        output = F.relu(self.conv3x1_2(output))
        output = self.bn2(self.conv1x3_2(output))
        if self.dropout.p != 0:
            output = self.dropout(output)
        return F.relu(output + input)


@entry("conv+bn+relu, 2 conv+bn+relu+add", "conv+bn+relu", once=True)
class SharedLayers(nn.Module):
    """One layer applied to its own output, as the heads of detectors are applied to each level.

    In training its BatchNorm runs again before the sum, and its running statistics are updated in that order.
    """

    def __init__(self):
        super().__init__()
        self.layer = cbr()

    def forward(self, x):
        y = self.layer(x)
        return self.layer(y) + torch.flip(self.layer(y + x), (3,))
