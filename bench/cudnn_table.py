"""The first table on a card: what the library reaches before anything of ours is tuned.

    python bench/cudnn_table.py RESULTS_DIR

TFLOP/s of the library's forward, dgrad and wgrad for each convolution of ResNet34 at dilation 1, 2 and 4; images a
second of eager and torch.compile, inference and training step; and the two ceilings of the same run: a large matrix
product and a copy. Writes RESULTS_DIR/<gpu>-<date>.json. Each part has a budget; what does not fit into it is listed
under "not_run".
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from layers import dilated, layers
from measures import PASSES, ceilings, convolution, dtype_name, network

from atrous import build_info

SECONDS = {"convolutions": 200.0, "models": 270.0}  # under the ten minutes of a phase, with the start of Python


def fill(jobs, rows: list[dict], not_run: list[dict], seconds: float, save: Callable[[], None]) -> None:
    """Runs (measure, arguments) one after the other until the time is up; a failure is a line, not an end."""
    started = time.monotonic()
    for measure, *arguments in jobs:
        named = [dtype_name(a) if isinstance(a, torch.dtype) else getattr(a, "name", a) for a in arguments]
        told = {"part": measure.__name__, "arguments": [str(a) for a in named]}
        if time.monotonic() - started > seconds:
            not_run.append({**told, "reason": f"the {seconds:g} s of this part were over"})
            continue
        try:
            rows.append(measure(*arguments))
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
            not_run.append({**told, "reason": reason})
        torch.compiler.reset()
        save()


def described(device: torch.device) -> dict[str, Any]:
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {
        "device": card,
        "driver": _answer("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "commit": _answer("git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"),
        "date": datetime.date.today().isoformat(),
        "versions": build_info.versions(),
    }


def _answer(*command: str) -> str:
    """The first line that a command prints, or "unknown"."""
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.split("\n")
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return lines[0].strip() or "unknown"


def table(
    device: torch.device,
    save: Callable[[dict], None],
    size: int = 224,
    batch: int = 32,
    batches: tuple[int, ...] = (1, 32, 256),
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16),
    seconds: dict[str, float] = SECONDS,
    **ceiling: int,
) -> dict[str, Any]:
    """The whole result; `save` gets it after each row, so that nothing is lost when the run is cut off."""
    result: dict[str, Any] = {**described(device), "not_run": [], "convolutions": [], "models": []}
    result["ceilings"] = ceilings(device, **ceiling)
    convolutions = (
        (convolution, layer, direction, batch, dtype, device)
        for dtype in dtypes for layer in dilated(layers(size)) for direction in PASSES
    )  # fmt: skip
    networks = (
        (network, variant, training, count, device, size, dtypes[0])
        for variant in ("eager", "eager_channels_last", "compile") for training in (False, True) for count in batches
    )  # fmt: skip
    for part, jobs in (("convolutions", convolutions), ("models", networks)):
        fill(jobs, result[part], result["not_run"], seconds[part], lambda: save(result))
    save(result)
    return result


def show(result: dict[str, Any]) -> str:
    """Ratios first: the share of the matrix ceiling that each convolution reaches."""
    top = result["ceilings"]["matmul_tflops"]
    lines = [f"{result['device']}: matmul {top:.0f} TFLOP/s, copy {result['ceilings']['copy_gb_s']:.0f} GB/s"]
    known = {(r["dtype"], r["layer"], r["dilation"], r["pass"]): r["tflops"] for r in result["convolutions"]}
    lines.append(f"{'share of matmul':<22}{'dtype':<10}{'dilation':>8}" + "".join(f"{name:>9}" for name in PASSES))
    for dtype, layer, dilation in dict.fromkeys(key[:3] for key in known):
        found = [known.get((dtype, layer, dilation, name)) for name in PASSES]
        shares = "".join("        -" if t is None else f"{t / top:>9.0%}" for t in found)
        lines.append(f"{layer:<22}{dtype:<10}{dilation:>8}{shares}")
    for row in result["models"]:
        lines.append(f"{row['mode']:<10}{row['variant']:<21}batch {row['batch']:<4}{row['images_s']:>9.0f} img/s")
    lines += [f"not run: {row['part']} {' '.join(row['arguments'])}: {row['reason']}" for row in result["not_run"]]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What cuDNN and torch.compile reach on this card.")
    parser.add_argument("results", type=Path, metavar="RESULTS_DIR")
    parser.add_argument("--batch", type=int, default=32, help="of the convolutions (default 32)")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("bench: no NVIDIA card that torch can use; the table is for one", file=sys.stderr)
        return 3
    torch.backends.cudnn.benchmark = True  # the library at its best
    device = torch.device("cuda", torch.cuda.current_device())
    args.results.mkdir(parents=True, exist_ok=True)
    about = described(device)
    card = re.sub(r"[^a-z0-9]+", "-", about["device"].lower()).strip("-")
    path = args.results / f"{card}-{about['date']}.json"
    result = table(device, lambda result: _write(path, result), batch=args.batch)
    print(f"{show(result)}\nwritten: {path}")
    return 0


def _write(path: Path, result: dict[str, Any]) -> None:
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
