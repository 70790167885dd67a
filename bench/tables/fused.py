"""Measure fused layers and networks against cuDNN and torch.compile; run it after the tests and the tuning.

    python -m bench.tables.fused RESULTS_DIR [--part NAME] [--seconds S] [--continue]

layers: each convolution of ResNet34 at dilation 1, 2 and 4 with its epilogue in the network, by backend library
(cuDNN's convolution and one epilogue kernel), triton, native if it is built for the GPU, plain eager, and cuDNN's
convolution alone. networks: ResNet34 and its dilated form, plain and fused. compiled: torch.compile against eager.
max_autotune: torch.compile's slowest mode, last because it takes minutes per network. Then the goals.

Written to tables.fused in RESULTS_DIR/<gpu>-<date>.json after each row and each variant of a network. Each part has a
time budget; measurements that do not fit are listed under "not_run", and `--continue` runs them in another call.
Exit status 1: a backend gave a wrong result.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch

from atrous import testing
from atrous.tools.timing import ceilings
from bench.tables import fused_goals, fused_layers, fused_models
from bench.tables import table as tables
from bench.tables.fused_models import Network
from bench.tables.layers import FusedLayer, dilated, fusable_layers

SECONDS = {"layers": 100.0, "networks": 60.0, "compiled": 120.0, "max_autotune": 300.0}


def table(
    device: torch.device,
    result: tables.Result,
    save: Callable[[], None],
    size: int = 224,
    batches: tuple[int, ...] = (256, 1, 32),  # most goals depend on the first
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16),
    backends: tuple[str, ...] = fused_layers.BACKENDS,
    networks: tuple[Network, ...] = fused_models.NETWORKS,
    backend: str = "auto",
    seconds: dict[str, float] = SECONDS,
    **ceiling: int,
) -> None:
    """Fills the result; `save` is called after each row, so that an interrupted run loses nothing."""
    if "ceilings" not in result:
        result["ceilings"] = ceilings(device, **ceiling)
    every = dilated(fusable_layers(size))

    def one_layer(layer: FusedLayer, batch: int, dtype: torch.dtype) -> dict[str, Any]:
        return fused_layers.measure(layer, batch, dtype, device, result["ceilings"], backends)

    def one_network(network: Network, dtype: torch.dtype) -> tables.GrowingRow:
        return fused_models.measure(network, dtype, device, backend)

    def compiled_network(network: Network, dtype: torch.dtype) -> tables.GrowingRow:
        variants = fused_models.compiled(network.batch)
        return fused_models.measure(network, dtype, device, backend, variants=variants)

    def slow_network(network: Network, dtype: torch.dtype) -> tables.GrowingRow:
        return fused_models.measure(network, dtype, device, backend, variants=fused_models.BESIDE_SLOW)

    def checked() -> None:
        result["goals"] = fused_goals.goals(result, every)
        save()

    parts = {
        "layers": ((one_layer, layer, batch, dtype) for dtype in dtypes for batch in batches for layer in every),
        "networks": ((one_network, network, dtypes[0]) for network in networks),
        "compiled": ((compiled_network, network, dtypes[0]) for network in networks),
        "max_autotune": ((slow_network, network, dtypes[0]) for network in networks),
    }
    tables.fill(result, parts, seconds, checked)


def show(result: tables.Result) -> str:
    top = result["ceilings"]
    lines = [f"{result['device']}: matmul {top['matmul_tflops']:.0f} TFLOP/s, copy {top['copy_gb_s']:.0f} GB/s"]
    lines += _layers(result.get("layers", [])) + _networks(fused_goals.network_rows(result))
    return "\n".join(lines + fused_goals.show(result["goals"], result["device"]) + tables.missing(result))


def _layers(rows: list[dict[str, Any]]) -> list[str]:
    """Each variant's fraction of the matmul ceiling; for the second backend also its fraction of the lower bound, its
    speed-up over the first, and its milliseconds."""
    lines = []
    for dtype, batch in dict.fromkeys((row["dtype"], row["batch"]) for row in rows):
        group = [row for row in rows if (row["dtype"], row["batch"]) == (dtype, batch)]
        names = list(group[0]["ms"])
        base, ours = names[:2]
        tuned = f"tuned: {sum(row['tuned'] for row in group)} of {len(group)}"
        lines.append(
            f"{dtype}, batch {batch}, {tuned}: of the matmul ceiling; then {ours}: of its bound, over {base}, ms"
        )
        lines.append(
            f"{'':<22}{'dilation':>9}{'residual':>9}" + "".join(f"{name:>12}" for name in names)
            + f"{'bound':>8}{'ratio':>8}{'ms':>10}  auto"
        )  # fmt: skip
        for row in group:
            fractions = "".join(f"{row['of_matmul'][name]:>12.0%}" for name in names)
            more = f"{row['of_bound'][ours]:>8.0%}{row['ms'][base] / row['ms'][ours]:>7.2f}x{row['ms'][ours]:>10.4f}"
            added = "yes" if row["residual"] else "no"
            lines.append(f"{row['layer']:<22}{row['dilation']:>9}{added:>9}{fractions}{more}  {row['auto']}")
    return lines


def _networks(rows: list[dict[str, Any]]) -> list[str]:
    lines = []
    for row in rows:
        where = f"output stride {row['output_stride']}, {row['size']}x{row['size']}, batch {row['batch']}"
        where += f", tuned: {row['tuned']}"
        lines.append(f"ResNet34, {row['dtype']}, {where}: over eager NHWC, milliseconds, images per second")
        eager = row["ms"].get("eager_channels_last")
        for name, ms in row["ms"].items():
            ratio = f"{eager / ms:.2f}x" if eager else "-"
            lines.append(f"  {fused_models.LABELS[name]:<42}{ratio:>8}{ms:>10.3f}{row['images_s'][name]:>10.0f}")
        lines += [f"  {fused_models.LABELS[name]:<42} not run: {reason}" for name, reason in row["missing"].items()]
    return lines


def wrong(result: tables.Result) -> bool:
    """True if a backend or a fused network gave a wrong result."""
    networks = [
        reason
        for row in fused_goals.network_rows(result)
        for name, reason in row["missing"].items()
        if "atrous" in name
    ]
    layers = [entry["reason"] for entry in result["not_run"]]
    return any(reason.startswith(("AssertionError", "disagrees")) for reason in networks + layers)


def run(
    args: argparse.Namespace, device: torch.device, result: tables.Result, save: Callable[[], None]
) -> tuple[str, int]:
    table(device, result, save, seconds=args.seconds)
    return show(result), int(wrong(result))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure fused layers and networks against cuDNN and torch.compile.")
    return tables.main(parser, argv, "fused", SECONDS, run)


if __name__ == "__main__":
    testing.exit_with(main())
