"""Tests of the Markdown summary of a run, compared with the last committed file of the same GPU."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
GPU, BUSY = {"sm_mhz": "1980", "celsius": "45"}, {"sm_mhz": "1755", "celsius": "60"}


def write_run(folder, date, ms, device="H100", **more):
    """Writes a results file with two layers, one of them twice as slow as the other, and one row of the cuDNN table."""
    layers = [
        {"layer": "a", "batch": 1, "auto": "triton", "ms": {"library": 1.0, "triton": ms}, "tflops": {"triton": 9.0}},
        {"layer": "b", "batch": 1, "auto": "library", "ms": {"library": 1.0, "triton": 2 * ms}},
    ]
    step = {"name": "layers", "state": "failed", "limit_s": 95, "seconds": 12.34, "reason": "a | b"}
    step |= {"gpu_before": GPU, "gpu_during": BUSY}
    cudnn = {"convolutions": [{"layer": "a", "pass": "dgrad", "ms": 3.0}], "not_run": [{"part": "models"}]}
    contents = {
        "device": device, "date": date, "driver": "580.1", "commit": f"commit-{date}", "versions": {"torch": "2.11.0"},
        "ceilings": {"copy_gb_s": 3000.4 / ms}, "phases": {"fast": {"steps": [step]}},
        "tables": {"fused": {"layers": layers, "goals": [{"goal": "g"}]}, "cudnn": cudnn}, **more,
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / f"{device}-{date}.json").write_text(json.dumps(contents))


def run(*arguments):
    command = [sys.executable, "-m", "bench.gpu.summary", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_run_is_compared_with_the_last_committed_file(tmp_path):
    write_run(tmp_path / "committed", "2030-01-01", 9.0)
    write_run(tmp_path / "committed", "2030-01-02", 0.25)
    write_run(tmp_path / "committed", "2030-01-03", 7.0, device="H200")
    (tmp_path / "committed" / "cpu.json").write_text('{"inference": []}')
    write_run(tmp_path / "here", "2030-02-01", 0.5)
    done = run(tmp_path / "here", tmp_path / "committed")
    assert done.returncode == 0 and not done.stderr
    assert "commit commit-2030-02-01" in done.stdout and "commit commit-2030-01-02" in done.stdout
    assert "commit-2030-01-01" not in done.stdout and "commit-2030-01-03" not in done.stdout
    assert "| fast | layers | failed | 12.3 of 95 | 1980, 1755, - | 45, 60, - | a / b |" in done.stdout
    assert "| copy_gb_s | 6001 | 1.2e+04 |" in done.stdout
    assert "| fused, layers | triton | 2 of 2 | 1.5 | 0.75 | 0.50x | 0.50x: layer a, batch 1 |" in done.stdout
    assert "| fused, layers | library | 2 of 2 | 2 | 2 | 1.00x |" in done.stdout
    assert "| cudnn, convolutions | dgrad | 1 of 1 | 3 | 3 | 1.00x | 1.00x: layer a, pass dgrad |" in done.stdout


def test_the_first_run_of_a_gpu_has_no_comparison(tmp_path):
    write_run(tmp_path / "here", "2030-02-01", 0.5)
    done = run(tmp_path / "here", tmp_path / "here")  # it is not its own predecessor
    assert "No file of this GPU is committed yet." in done.stdout
    assert "| fused, layers | triton | 0 of 2 | 1.5 | - | - | - |" in done.stdout


def test_a_folder_without_a_run_is_one_sentence(tmp_path):
    for arguments in ((tmp_path,), ()):
        done = run(*arguments)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "expected" in done.stderr and not done.stdout
