"""The same layers spelled as functions, methods, operators and Python: nothing here is a module that a list knows."""

import torch
import torch.nn.functional as F
from torch import nn

from .entry import cb, cbr, conv, entry


class Functional(nn.Module):
    """Parameters and buffers of its own; the forward is written with functions."""

    def __init__(self):
        super().__init__()
        for i in range(3):
            self.register_parameter(f"w{i}", nn.Parameter(torch.randn(4, 4, 3, 3) * 0.2))
            self.register_parameter(f"gamma{i}", nn.Parameter(torch.rand(4) + 0.5))
            self.register_parameter(f"beta{i}", nn.Parameter(torch.randn(4) * 0.3))
            self.register_buffer(f"mean{i}", torch.randn(4) * 0.3)
            self.register_buffer(f"var{i}", torch.rand(4) + 0.5)
        self.slope = nn.Parameter(torch.rand(4))

    def norm(self, z, i):
        return F.batch_norm(z, getattr(self, f"mean{i}"), getattr(self, f"var{i}"), getattr(self, f"gamma{i}"),
                            getattr(self, f"beta{i}"), self.training, 0.2, 1e-4)  # fmt: skip


@entry("conv+bn+relu, conv+bn+add+prelu, conv+bn+leaky_relu+add")
class FunctionsAlone(Functional):
    def forward(self, x):
        y = F.relu(self.norm(F.conv2d(x, self.w0, padding=1), 0), inplace=True)
        y = self.norm(torch.conv2d(y, self.w1, None, 1, 2, 2), 1)
        y += x
        y = torch.prelu(y, self.slope)
        z = F.leaky_relu_(self.norm(F.conv2d(y, self.w2, bias=None, stride=1, padding="same"), 2), 0.2)
        return torch.add(z, y)


@entry("2 conv+bn+relu, conv+bn+add+leaky_relu")
class MethodsAndKeywords(Functional):
    """Methods in place, keyword arguments, torch.batch_norm, a `functional` under another name."""

    def forward(self, x):
        y = torch.batch_norm(F.conv2d(input=x, weight=self.w0, padding=(1, 1)), self.gamma0, self.beta0, self.mean0,
                             self.var0, self.training, 0.1, 1e-5, False).relu_()  # fmt: skip
        z = F.batch_norm(input=F.conv2d(y, self.w1, padding=1), running_mean=self.mean1, running_var=self.var1,
                         weight=self.gamma1, bias=self.beta1, training=self.training)  # fmt: skip
        z = F.leaky_relu(input=z.add_(y), negative_slope=0.3, inplace=True)
        act = getattr(F, "relu")  # noqa: B009  # as configurations name it
        return act(self.norm(F.conv2d(z, self.w2), 2))


@entry("conv+bn+relu, conv+bn+leaky_relu, conv+bn+prelu")
class ActivationByName(nn.Module):
    """An activation chosen by a string: from a ModuleDict, by getattr on torch.nn, by eval of an expression."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([cb(), cb(), cb()])
        self.acts = nn.ModuleDict({"relu": nn.ReLU(), "leaky": nn.LeakyReLU(0.1), "unused": nn.Sigmoid()})
        self.names, self.prelu = ["relu", "leaky"], eval("nn.PReLU(num_parameters=4)")

    def forward(self, x):
        for name, layer in zip([*self.names, None], self.layers):
            x = layer(x)
            x = self.prelu(x) if name is None else self.acts[name](x)
        return x


@entry("4 conv+bn+relu")
class ModuleListsInLoops(nn.Module):
    """Loops over ModuleLists, a ModuleList in a ModuleDict, children by name, an index from the end."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([conv() for _ in range(2)])
        self.bns = nn.ModuleList([nn.BatchNorm2d(4) for _ in range(2)])
        self.table = nn.ModuleDict({"a": nn.ModuleList([cbr()])})
        self.add_module("layer-1", cbr())

    def forward(self, x):
        for i, (convolution, bn) in enumerate(zip(self.convs, self.bns)):
            x = F.relu(bn(convolution(x)), inplace=bool(i))
        for module in self.table["a"]:
            x = module(x)
        return self._modules["layer-1"](x)


@entry("conv+bn+add+relu, conv+bn+add+prelu, conv+bn+add, 2 conv+bn")
class SumsOfBothSides(nn.Module):
    """Both operands are layers; the other operand is on the left; a sum without an activation."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d, self.e = cb(), cb(), cb(), cb(kernel=1), cb()
        self.act = nn.PReLU(4)

    def forward(self, x):
        y = F.relu(self.a(x) + self.b(x))
        z = self.act(torch.add(input=y, other=self.c(y)))
        return torch.add(self.d(z), self.e(y), alpha=1)


@entry("conv+bn, conv+bn+add+relu, conv+bn+relu")
class SumsThatDoNotFit(nn.Module):
    """A scaled sum and a sum with a number end the layer; a residual of one pixel a channel broadcasts."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = cb(), cb(), cbr()

    def forward(self, x):
        y = torch.tanh(torch.add(self.a(x), x, alpha=2))
        y = F.relu(self.b(y) + x.mean((2, 3), keepdim=True))
        return self.c(y) - 1.0


@entry("conv+bn+relu, conv+bn, conv+bn+relu")
class NoSumsAtAll(nn.Module):
    """Products, differences, a maximum and a value that is used twice end a layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = cb(), cb(), cbr()

    def forward(self, x):
        y = F.relu(self.a(x))
        u = self.b(y)
        return self.c(torch.maximum(u, y) * F.softplus(u) - y)


@entry("conv+bn+relu, add+relu, add+prelu, add+leaky_relu")
class SumsWithoutConvolutions(nn.Module):
    """An addition and an activation whose operands come from elsewhere."""

    def __init__(self):
        super().__init__()
        self.layer, self.act, self.pool = cbr(), nn.PReLU(4), nn.AvgPool2d(3, 1, 1)

    def forward(self, x):
        x = F.relu(torch.sin(x) + self.pool(x))
        y = torch.cos(self.layer(x))
        y = self.act(y.add(x))
        return F.leaky_relu((y * 0.5).add_(x), 0.2)


@entry("bn+relu, bn+add+relu, bn+relu+add, bn+prelu")
class NormsOfAnInput(nn.Module):
    """BatchNorm, activation and sums without a convolution."""

    def __init__(self):
        super().__init__()
        self.bns, self.act = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(4)), nn.PReLU()

    def forward(self, x):
        y = torch.sin(F.relu(self.bns[0](x)))
        y = torch.sin(F.relu(x + self.bns[1](y)))
        y = torch.sin(F.relu(self.bns[2](y)) + x)
        return self.act(self.bns[3](y))
