"""Losses of a training from one seed, plain and fused, in fp32 and under bf16 autocast, beside plain training in fp64.

    python -m bench.commands.training_curve [--steps 200] [--seeds 5] [--json FILE] [--plot FILE]
    python -m bench.commands.training_curve --draw FILE --plot FILE      draw an earlier result again

A dilated ResNet with PReLU learns scikit-learn's scanned digits. All runs of a seed have equal weights and batches. A
row has the losses of each step and, in eval mode, those of held-out images, which show the running statistics.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import atrous
from atrous.models.resnet import BasicBlock, ResNet
from bench import record

PRECISIONS = {"fp32": False, "bf16": True}  # name -> under bf16 autocast
KINDS = ("eager", "fused")
EVERY = 5  # steps between two losses of the held-out images
BATCH, HELD_OUT = 32, 297
Row = dict[str, Any]


class Data(NamedTuple):
    """images: (N, 1, side, side) in fp32 with mean 0 and standard deviation 1. digits: (N)."""

    images: Tensor
    digits: Tensor

    def order(self, steps: int, seed: int) -> Tensor:
        """(steps, BATCH): the images of each step, drawn without those that are held out."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(len(self.images) - HELD_OUT, (steps, BATCH), generator=generator)


class Curve(NamedTuple):
    """training: the loss of each step. held_out: the loss of held-out images after each EVERY steps. right: of them."""

    training: list[float]
    held_out: list[float]
    right: float

    def errors(self, exact: Curve) -> dict[str, list[float]]:
        """|loss - exact loss| of each step in training and of the held-out images."""
        pairs = {"training": (self.training, exact.training), "held out": (self.held_out, exact.held_out)}
        return {name: [abs(a - b) for a, b in zip(*curves)] for name, curves in pairs.items()}


def digits(scale: float = 1.0) -> Data:
    """The 1797 images of 8 x 8, enlarged."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    images = torch.tensor(loaded.images, dtype=torch.float32)[:, None]
    if scale != 1.0:
        images = F.interpolate(images, scale_factor=scale, mode="bilinear")
    return Data((images - images.mean()) / images.std(), torch.tensor(loaded.target))


def network(width: int) -> nn.Module:
    """A ResNet whose last two stages are dilated."""
    return ResNet(
        BasicBlock, (1, 1, 1, 1), num_classes=10, act="prelu", output_stride=2, in_channels=1, width=width,
        stem_stride=1,
    )  # fmt: skip


def train(model: nn.Module, start: dict[str, Tensor], data: Data, order: Tensor, bf16: bool = False) -> Curve:
    """Trains from the weights `start`, in the dtype of the model."""
    model.load_state_dict(start)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    images = data.images.to(next(model.parameters()).dtype)

    def logits(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return model(x).to(x.dtype)

    training, held_out, right = [], [], 0.0
    for step, chosen in enumerate(order, 1):
        loss = F.cross_entropy(logits(images[chosen]), data.digits[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        training.append(loss.item())
        if step % EVERY == 0:
            model.eval()
            with torch.no_grad():
                y = logits(images[-HELD_OUT:])
            held_out.append(F.cross_entropy(y, data.digits[-HELD_OUT:]).item())
            right = (y.argmax(1) == data.digits[-HELD_OUT:]).double().mean().item()
            model.train()
    return Curve(training, held_out, right)


def curves(
    make: Callable[[], nn.Module],
    data: Data,
    steps: int,
    seeds: Sequence[int],
    fault: Callable[[nn.Module], None] = lambda model: None,
) -> list[Row]:
    """A row of each seed and precision. fault: changes the fused model, for tests.

    The models are compiled once: each seed loads its weights into them.
    """
    models = {"eager": make()}
    models["fused"] = atrous.fuse(copy.deepcopy(models["eager"]))
    exact = copy.deepcopy(models["eager"]).double()
    fault(models["fused"])
    rows = []
    for seed in seeds:
        torch.manual_seed(seed)
        start, order = make().state_dict(), data.order(steps, seed)
        truth = train(exact, start, data, order)
        for precision, bf16 in PRECISIONS.items():
            ours = {kind: train(model, start, data, order, bf16) for kind, model in models.items()}
            errors = {kind: curve.errors(truth) for kind, curve in ours.items()}
            shown = {kind: curve._asdict() for kind, curve in {"fp64": truth, **ours}.items()}
            rows.append({"seed": seed, "precision": precision, "errors": errors, "curves": shown})
    return rows


def ratios(rows: Sequence[Row], precision: str) -> dict[str, float]:
    """Errors of fused over eager, in training and of the held-out images: of each the median over steps and seeds.

    In one seed of ten a rounding decides on which side of an activation's kink an element is, in eager or in fused:
    the errors of that seed grow a thousandfold, so that a mean over the seeds would be theirs alone.
    """
    chosen = [row["errors"] for row in rows if row["precision"] == precision]
    eager, fused = (
        {name: statistics.median(off for errors in chosen for off in errors[kind][name]) for name in chosen[0][kind]}
        for kind in KINDS
    )
    return {name: fused[name] / eager[name] for name in fused}


def text(rows: Sequence[Row]) -> list[str]:
    """A line for each row, then one for each precision."""
    lines = []
    for row in rows:
        eager, fused = (statistics.median(row["errors"][kind]["training"]) for kind in KINDS)
        right = ", ".join(f"{kind} {curve['right']:.1%}" for kind, curve in row["curves"].items())
        lines.append(
            f"seed {row['seed']} {row['precision']}: median |loss - fp64's| {eager:.1e} eager, {fused:.1e} fused; "
            f"held-out images right: {right}"
        )
    for precision in PRECISIONS:
        over = ", ".join(f"{ratio:.2f}x {name}" for name, ratio in ratios(rows, precision).items())
        lines.append(f"{precision}: fused over eager {over}")
    return lines


def main(argv: list[str] | None = None) -> int:
    from bench.report import curves as picture

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds; the first is drawn (default 5)")
    parser.add_argument("--width", type=int, default=8, help="channels of the first stage (default 8)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    parser.add_argument("--draw", type=Path, metavar="FILE", help="measure nothing, read this result")
    args = parser.parse_args(argv)
    if args.draw is None:
        rows = curves(lambda: network(args.width), digits(2.0), args.steps, range(args.seeds))
        print("\n".join(text(rows)))
        if args.json:
            over = {precision: ratios(rows, precision) for precision in PRECISIONS}
            first = [row for row in rows if row["seed"] == 0]
            record.write_rows(args.json, first, steps=args.steps, width=args.width, seeds=args.seeds, ratios=over)
    source = args.draw or args.json
    if args.plot:
        if source is None:
            parser.error("--plot: expected --json or --draw too, got neither")
        picture.save(args.plot, source)
    return 0


if __name__ == "__main__":
    sys.exit(main())
