"""Times a training step of examples/vessels on 48x48 patches, fused and plain, in turns, and counts what it saves.

    python -m bench.commands.vessel_step [--batch 32] [--seconds 30] [--json FILE]

The fused network is channels_last, as `python -m examples.vessels train` makes it; the plain one is timed as it is and
in channels_last. Saved bytes are those that autograd keeps between forward and backward, weights aside, beside those of
plain activations that do not overwrite their input, torch's default, and of those that do, as in atrous.models.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

import atrous
from atrous.tools import timing
from bench import record
from examples.vessels.config import Config
from examples.vessels.network import build
from examples.vessels.report.cost import saved_bytes

ACTS = ("relu", "leaky_relu", "prelu")
GOALS = {"relu": (1.25, 0.65), "leaky_relu": (1.25, 0.5), "prelu": (1.25, 0.5)}  # speed-up over plain, saved bytes
BOUND = 1e-3  # between the losses of fused and plain, relative, after ten steps
PEERS = ("plain", "plain channels_last", "fused")


def step(config: Config, peer: str, x: torch.Tensor, y: torch.Tensor) -> Callable[[], float]:
    """Returns a step of SGD, which returns its loss."""
    model = build(config).train()
    if peer != "plain":
        model, x = (value.to(memory_format=torch.channels_last) for value in (model, x))
    trained = atrous.fuse(model) if peer == "fused" else model
    optimizer = torch.optim.SGD(model.parameters(), config.lr, config.momentum)

    def run() -> float:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(trained(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return run


def row(config: Config, seconds: float) -> dict:
    """Raises RuntimeError if the losses differ."""
    torch.manual_seed(0)
    x = torch.rand(config.batch, 1, config.patch, config.patch)
    y = (F.avg_pool2d(x, 3, 1, 1) > 0.55).float()
    steps = {peer: step(config, peer, x, y) for peer in PEERS}
    losses = {peer: [run() for _ in range(10)][-1] for peer, run in steps.items()}
    if max(losses.values()) - min(losses.values()) > BOUND * losses["plain"]:
        raise RuntimeError(f"{config.act}: expected losses within {BOUND}, got {losses}")
    ms = timing.medians(timing.interleaved(steps, torch.device("cpu"), seconds))
    fused, default, in_place = (saved_bytes(config, *how) for how in ((False,), (True, False), (True, True)))
    saved = {"saved": fused / default, "saved_in_place": fused / in_place}
    return {"act": config.act, "batch": config.batch, "patch": config.patch, "median_ms": ms, **saved}


def text(row: dict) -> str:
    ms = row["median_ms"]
    over = ", ".join(f"{ms[peer] / ms['fused']:.2f}x {peer}" for peer in PEERS[:-1])
    speed, most = GOALS[row["act"]]
    reached = ms["plain"] / ms["fused"] >= speed and row["saved"] <= most
    goal = f"goals {speed}x plain and {most}: {'reached' if reached else 'not reached'}"
    saved = f"saves {row['saved']:.2f} of plain's bytes, {row['saved_in_place']:.2f} of those in place"
    return f"{row['act']:<10} {over}; {saved} ({goal})"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--width", type=int, default=16, help="channels of the first stage (default 16)")
    parser.add_argument("--patch", type=int, default=48, help="side of a patch (default 48)")
    parser.add_argument("--seconds", type=float, default=30.0, help="of measurement for each activation (default 30)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    base = Config(batch=args.batch, width=args.width, patch=args.patch)
    rows = []
    for act in ACTS:
        rows.append(row(dataclasses.replace(base, act=act), args.seconds))
        print(text(rows[-1]), flush=True)
    if args.json:
        record.write_rows(args.json, rows)


if __name__ == "__main__":
    main()
