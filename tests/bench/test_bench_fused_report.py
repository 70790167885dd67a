"""Tests of the goals for the table of fused layers and networks, and of its report."""

import json
from pathlib import Path

import pytest

from bench.report import fused as report_fused
from bench.report import report
from bench.tables import fused_goals, layers

ROOT = Path(__file__).parents[2]

PLAN = [
    layers.FusedLayer("a", 2, 64, 64, 3, 1, 56),
    layers.FusedLayer("b", 1, 64, 128, 3, 2, 56, residual=True),
    layers.FusedLayer("b", 1, 64, 128, 3, 2, 56, dilation=2, residual=True),
    layers.FusedLayer("c", 1, 64, 128, 1, 2, 56, act=False),
]


def layer_row(layer, batch=256, fraction=0.6, cudnn=0.5, triton=1.0, auto="triton", dtype="bfloat16"):
    """A row in which backend library takes 1 ms."""
    shape = {key: getattr(layer, key) for key in vars(layer) if key != "name"}
    ms = {"library": 1.0, "triton": triton, "eager": 3.0, "convolution": 0.5}
    of_matmul = {"library": 0.3, "triton": fraction, "eager": 0.2, "convolution": cudnn}
    shape |= {"layer": layer.name, "batch": batch, "dtype": dtype}
    return {**shape, "auto": auto, "ms": ms, "of_matmul": of_matmul}


def network_row(batch, stride=32, peer=2.0, **ours):
    ms = {"eager_channels_last": 4.0, "compile": 1.9, "compile_max_autotune": peer, **ours}
    return {"batch": batch, "output_stride": stride, "size": 224, "dtype": "bfloat16", "ms": ms, "missing": {}}


def states(rows=(), networks=()):
    result = {"layers": list(rows), "networks": list(networks)}
    return {row["goal"]: (row["state"], row["measured"]) for row in fused_goals.goals(result, PLAN)}


def only(goals, *words):
    (answer,) = [value for goal, value in goals.items() if all(word in goal for word in words)]
    return answer


def test_nothing_measured_reaches_nothing():
    assert {state for state, _ in states().values()} == {"not measured"} and len(states()) == 13


def test_the_fraction_of_the_worst_layer_counts():
    rows = [layer_row(PLAN[0], fraction=0.41), layer_row(PLAN[1], fraction=0.56), layer_row(PLAN[2], fraction=0.54)]
    checked = states([*rows, layer_row(PLAN[3], fraction=0.1)])
    assert only(checked, ", 64 channels", "40%")[0] == "reached"
    state, measured = only(checked, "128 to 512", "55%")
    assert state == "not reached" and measured == "54% at worst (b dilation 2); 2 of 2 layers"
    assert only(states(rows[:2]), "128 to 512")[0] == "not measured"  # a missing layer may be slower
    assert only(states(rows[2:]), "128 to 512")[0] == "not reached"
    other = [layer_row(layer, batch=32) for layer in PLAN] + [layer_row(layer, dtype="float16") for layer in PLAN]
    assert only(states(other), "128 to 512")[0] == "not measured"


def test_no_layer_may_be_slower_than_the_library():
    rows = [layer_row(PLAN[0], triton=0.5), layer_row(PLAN[1], triton=1.01), layer_row(PLAN[2])]
    taken = layer_row(PLAN[3], triton=3.0, auto="library")
    state, measured = only(states([*rows, taken]), "batch 256", "slower")
    assert state == "reached" and "0.99x as fast at worst (b dilation 1)" in measured
    assert measured.endswith("4 of 4 layers, 3 of them by triton")
    slow = layer_row(PLAN[3], triton=1.1)
    assert only(states([*rows, slow]), "batch 256", "slower")[0] == "not reached"
    assert only(states(rows), "batch 256", "slower")[0] == "not measured"


def test_backend_native_is_compared_with_the_bare_convolution():
    rows = [layer_row(layer) for layer in PLAN]
    for row, ms in zip(rows, (0.6, 0.71, 0.5, 0.4)):
        row["ms"]["native"] = ms  # the bare convolution takes 0.5
    state, measured = only(states(rows), "backend native", "batch 256")
    assert state == "reached" and measured == "70% at worst (b dilation 1); 4 of 4 layers"
    rows[0]["ms"]["native"] = 0.8
    assert only(states(rows), "backend native", "batch 256")[0] == "not reached"
    del rows[0]["ms"]["native"]
    assert only(states(rows), "backend native", "batch 256")[0] == "not measured"


def test_the_library_decides_what_is_expected_of_the_network():
    """The fraction is that of the plain network: weighted by time and count, dilation 1 alone."""
    rows = [layer_row(PLAN[0], cudnn=0.5), layer_row(PLAN[1], cudnn=0.9), layer_row(PLAN[3], cudnn=0.3)]
    assert fused_goals.library_fraction({"layers": rows}, PLAN, 256) == pytest.approx((2 * 0.5 + 0.9 + 0.3) / 4)
    assert fused_goals.library_fraction({"layers": rows[:2]}, PLAN, 256) is None
    network = network_row(256, atrous=1.6)
    assert only(states([], [network]), "batch 256", "max-autotune") == ("not reached", "1.25x (atrous)")
    assert only(states(rows, [network]), "55%", "1.3x")[0] == "not reached"
    fast = [layer_row(layer, cudnn=0.7) for layer in PLAN]
    assert only(states(fast, [network]), "70%", "1.15x") == ("reached", "1.25x (atrous)")


def test_the_fastest_atrous_variant_counts_and_at_batch_1_only_graphs():
    rows = [network_row(1, atrous=0.1, atrous_cudagraph=1.4, atrous_compile_cudagraph=1.3)]
    assert only(states([], rows), "CUDA graph", "1.5x") == ("reached", "1.54x (atrous_compile_cudagraph)")
    assert only(states([], [network_row(1, atrous=0.1)]), "CUDA graph")[0] == "not measured"
    dilated = [network_row(8, 8, atrous=1.0, atrous_cudagraph=1.6), network_row(1, 8, atrous=1.8)]
    checked = states([], dilated)
    assert only(checked, "output stride 8", "batch 8") == ("reached", "2.00x (atrous)")
    assert only(checked, "output stride 8", "batch 1")[0] == "not reached"
    lacking = network_row(32, atrous=1.0)
    del lacking["ms"]["compile_max_autotune"]
    assert only(states([], [lacking]), "batch 32", "max-autotune")[0] == "not measured"


# The report


def fake_result(rows, networks, device="a GPU"):
    return {
        "device": device, "driver": "1.2", "date": "2030-01-02", "commit": "c",
        "versions": {"torch": "2.11.0", "triton": "3.6.0"}, "ceilings": {"matmul_tflops": 700.4, "copy_gb_s": 3000.0},
        "layers": rows, "networks": networks, "not_run": [], "goals": [],
    }  # fmt: skip


def test_the_report_has_the_layers_and_the_networks():
    rows = [layer_row(layer, batch=batch, triton=0.8) for batch in (32, 256) for layer in PLAN]
    rows += [layer_row(PLAN[0], batch=512, dtype="float16")]
    dilated = {**network_row(1, 8, atrous=2.0), "size": 512}
    text = report_fused.tables(fake_result(rows, [dilated, network_row(256, atrous=1.25)]), "a.json")
    assert "bfloat16 at batch 256" in text and "700 TFLOP/s" in text and "[a.json](bench/results/a.json)" in text
    assert "| | dilation 1 | dilation 2 |\n|---|---|---|\n" in text
    assert "| 3x3, 64 to 64, 56x56 | 60%, 50%, 1.25x |  |" in text
    assert "| 3x3, 64 to 128, 56x56, stride 2, residual | 60%, 50%, 1.25x | 60%, 50%, 1.25x |" in text
    assert "| | 224x224, batch 256 | 512x512, output stride 8, batch 1 |\n|---|---|---|\n" in text
    assert "| atrous | 3.20x (1.25) | 2.00x (2) |" in text and "atrous, CUDA graph" not in text


def test_the_slowest_mode_stands_in_the_column_of_its_network():
    slow = {**network_row(256), "ms": {"eager_channels_last": 6.0, "atrous": 3.0, "compile_max_autotune": 2.0}}
    plain = {**network_row(256), "ms": {"eager_channels_last": 4.0, "atrous": 2.0}}
    text = report_fused.tables({**fake_result([], [plain]), "max_autotune": [slow]}, "a.json")
    assert "| | 224x224, batch 256 |\n" in text and "| atrous | 2.00x (2) |" in text
    assert "| torch.compile, max-autotune (CUDA graph) | 3.00x (2) |" in text


def test_a_part_that_was_not_run_is_no_table():
    text = report_fused.tables(fake_result([], []), "a.json")
    assert "a GPU" in text and "|" not in text and not text.endswith("\n")


def test_the_newest_file_of_a_gpu_is_reported(tmp_path):
    for name, device in (("x-2030-01-01", "x"), ("x-2030-01-02", "x"), ("y-2029-01-01", "y")):
        result = fake_result([], [network_row(1)], device)
        tables = {"fused": {key: result.pop(key) for key in ("layers", "networks", "not_run", "goals")}}
        (tmp_path / f"{name}.json").write_text(json.dumps({**result, "tables": tables}))
    written = report.report("<!-- report: begin -->\n<!-- report: end -->\n", tmp_path)
    assert "x-2030-01-02" in written and "y-2029-01-01" in written and "x-2030-01-01" not in written
    assert report.report(written, tmp_path) == written


def test_the_readme_matches_the_results():
    readme = (ROOT / "README.md").read_text()
    assert report.report(readme, ROOT / "bench" / "results") == readme
