"""The README's part of `make bench`: which file is shown, its tables, sentences and pictures."""

from pathlib import Path

import pytest

from bench import hardware
from bench.report import cpu, picture, report
from bench.subjects.layers import ALONE

pytest.importorskip("matplotlib")


def timed(part, case, provider, dtype, speedup, spread=0.01, **more):
    numbers = {"speedup": speedup, "spread": spread, "counted": spread <= 0.05, "median_ms": 10 / speedup, "error": 1.0}
    return {"part": part, "case": case, "provider": provider, "dtype": dtype, **numbers, **more}


@pytest.fixture
def result():
    speeds = {"eager NCHW": 1.0, "compile, freezing": 1.2, "OpenVINO": 1.3, "atrous frozen": 1.5}
    cases = [("ResNet34", "PReLU b1"), ("ResNet34", "512 os8 b1"), ("training step (bf16: autocast)", "PReLU b8")]
    rows = [timed(*case, name, "float32", speed) for case in cases for name, speed in speeds.items()]
    rows += [timed("ResNet34", "PReLU b1", "atrous frozen", "bfloat16", 2.5, 0.2)]
    rows += [{**rows[0], "provider": "ONNX Runtime", "reason": "not installed"}]
    del rows[-1]["median_ms"]
    layer = {"batch": 1, "count": 3, "macs": 1e9, "moved_bytes": 5e8, "product_macs": 1e9}
    ratios = (("fastest product", 1, 0), (ALONE, 0.9, 0.06), ("atrous frozen", 1.4, 0))
    rows += [timed("layers", "layer1 3x3 64>64 x3", name, "float32", *ratio, **layer) for name, *ratio in ratios]
    figures = {"saved_mb": 20.3, "allocated_mb": 44.5, "peak_mb": 99}
    rows += [{"part": "memory", "case": "224 b8", "provider": "atrous", "dtype": "float32"} | figures]
    return {
        "device": "a CPU", "capability": "AVX2", "threads": 2, "date": "2026-11-29", "versions": {"torch": "2.13.0"},
        "peers": {"openvino": "1.0", "onnxruntime": None}, "ceilings": {"gmac_s_float32": 100.0, "copy_gb_s": 30.0},
        "rows": rows,
    }  # fmt: skip


def test_the_newest_file_is_shown(result):
    older, others = result | {"date": "2026-11-28"}, {"cpu-old.json": {"inference": [1], "date": "2027-01-01"}}
    results = {"cpu-avx2-b.json": result, "cpu-avx2-c.json": older, "segmenter.json": result, **others}
    assert cpu.newest(results) == "cpu-avx2-b.json" and cpu.newest(others) is None


def test_tables(result):
    text = cpu.tables(result, "cpu-avx2.json")
    assert "| ResNet34 | PReLU b1 | 512 os8 b1 |\n|---|---|---|\n| eager NCHW | 1.00x ± 1 % | 1.00x ± 1 % |" in text
    assert "| atrous frozen bf16 | (2.50x ± 20 %) |  |" in text and "| atrous | 20 / 44 / 99 |" in text
    assert "| layer1 3x3 64>64 x3 | 7.143 ms, 140%; (90%) |" in text and "ONNX" not in text
    assert "100 GMAC/s in float32, 30 GB/s in a copy" in text and "parentheses: noisy" in text


def test_the_hardware_is_named_if_the_file_has_it(result, tmp_path):
    assert cpu.origin(result).startswith("a CPU, AVX2, 2 threads; torch 2.13.0")
    assert cpu.origin(result | {"threads": 1}).startswith("a CPU, AVX2, 1 thread; torch 2.13.0")
    (tmp_path / "cpuinfo").write_text(
        "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n"
        "cpu MHz\t\t: 2596.140\ncache size\t: 1024 KB\nflags\t\t: fpu hypervisor avx2\n\nprocessor\t: 1\ncpu MHz\t: 1\n"
    )
    (tmp_path / "meminfo").write_text("MemTotal:       24683652 kB\nMemFree:        11310704 kB\n")
    known = hardware.describe(tmp_path) | {"cpus": 2}
    assert known == {
        "vendor": "AuthenticAMD", "family": 25, "model": 17, "mhz": 2596, "cache": "1024 KB", "cpus": 2,
        "memory_gib": 23.5, "virtual": True,
    }  # fmt: skip
    line = cpu.origin(result | {"hardware": known})
    assert "2 threads, family 25 model 17, 2 CPUs at 2.6 GHz, 23.5 GiB, virtual machine; torch" in line
    unknown = hardware.describe(tmp_path / "none") | {"cpus": 4}
    assert hardware.text(unknown) == "4 CPUs" and unknown["virtual"] is None


def test_the_sentences_name_the_file_and_the_means(result):
    text = cpu.caption(result, "cpu-avx2.json", report.PICTURES)
    words = " ".join(text.split())
    assert "1.50x as fast as eager" in words and "with freezing 1.20x" in words and "openvino 1.0" in words
    assert "bench/results/cpu-avx2.json" in text and all(f"({path.as_posix()})" in text for path in report.PICTURES)
    assert max(map(len, text.splitlines())) <= 120
    assert "of the 2 float32 networks where neither was noisy" in words and "Winograd" in words
    assert "below the CPU's limits" not in words


def test_both_means_are_of_the_networks_where_neither_is_noisy(result):
    """A third network, twice as fast, of which one provider was noisy, changes neither mean."""
    for noisy in ("atrous frozen", "compile, freezing"):
        third = [
            timed("ResNet34", "ReLU b8", name, "float32", 4.0, 0.2 if name == noisy else 0.01)
            for name in ("eager NCHW", "atrous frozen", "compile, freezing")
        ]
        text = cpu.caption(result | {"rows": result["rows"] + third}, "cpu-avx2.json", report.PICTURES)
        assert text == cpu.caption(result, "cpu-avx2.json", report.PICTURES)
    quiet = [row | {"spread": 0.0, "counted": True} for row in third]
    text = cpu.caption(result | {"rows": result["rows"] + quiet}, "cpu-avx2.json", report.PICTURES)
    assert "of the 3 float32 networks" in " ".join(text.split())
    none = [row | {"counted": False} for row in result["rows"]]
    assert "geometric mean" not in cpu.caption(result | {"rows": none}, "cpu-avx2.json", report.PICTURES)


def test_pictures_are_drawn(result, tmp_path):
    for name, (draw, inches) in picture.DRAWN.items():
        picture.save(tmp_path / name.name, draw, inches, result, "cpu-avx2.json")
        content = Path(tmp_path / name.name).read_bytes()
        assert content.startswith(b"\x89PNG") and b"cpu-avx2.json" in content and len(content) > 10_000
