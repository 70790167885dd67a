"""Tests of the bundle for a GPU machine: its archive, its installation and refusals."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from bundle_cases import FACTS, KEYS, TARGET, TOOLS

from bench.gpu.bundle import archive as bundle_archive
from bench.gpu.bundle import command as bundle
from bench.gpu.bundle import facts as bundle_facts
from bench.gpu.bundle import install as bundle_install
from bench.gpu.bundle.facts import BundleError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Triton's cache, empty."""
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def filled(folder: Path) -> Path:
    """A cache with a kernel and a module, as Triton leaves them."""
    kernel, module = (folder / bundle_archive.entry_name(key) for key in KEYS)
    for entry in (kernel, module):
        entry.mkdir(parents=True)
    for name in ("k.cubin", "k.json", "k.ptx", "k.ttir"):
        (kernel / name).write_text(name)
    children = {name: str(kernel / name) for name in ("k.cubin", "k.json", "k.ptx", "k.ttir")}
    (kernel / "__grp__k.json").write_text(json.dumps({"child_paths": children}))
    (module / "launcher.cpython-312.so").write_bytes(b"\0")
    return folder


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A bundle for TARGET with a placeholder wheel; the machine is made to match it."""
    content = tmp_path / "content"
    assert bundle_archive.copy_entries(filled(tmp_path / "triton"), KEYS, content / "triton") == 2
    about = bundle_facts.manifest(TARGET, FACTS, TOOLS)
    about |= {"wheel": "atrous.whl", "kernels": 1, "modules": 1}
    (content / "bundle.json").write_text(json.dumps(about))
    (content / "atrous.whl").write_text("none")
    bundle_archive.pack(content, tmp_path / "bundle.tar.xz")
    here(monkeypatch)
    return tmp_path / "bundle.tar.xz"


def here(monkeypatch, capability=(9, 0), **facts):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(bundle_facts, "here", lambda capability: FACTS | facts)


@pytest.fixture
def pip(monkeypatch):
    """The wheels that a fake pip, which always succeeds, was called to install."""
    installed, run = [], subprocess.run

    def fake(command, **options):
        if "pip" not in command:
            return run(command, **options)
        assert "--no-index" in command and options["env"]["PIP_NO_INDEX"] == "1"
        installed.append(Path(command[-1]).name)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", fake)
    return installed


def test_install(archive, cache, pip, capsys):
    assert bundle.main(["install", str(archive)]) == 0 and pip == ["atrous.whl"]
    assert "1 kernels in" in capsys.readouterr().out
    kernel = cache / bundle_archive.entry_name(KEYS[0])
    group = json.loads((kernel / "__grp__k.json").read_text())["child_paths"]
    assert group == {name: str(kernel / name) for name in ("k.cubin", "k.json")}
    assert {path.name for path in kernel.iterdir()} == {"k.cubin", "k.json", "__grp__k.json"}
    assert (cache / bundle_archive.entry_name(KEYS[1]) / "launcher.cpython-312.so").exists()
    assert bundle.main(["installed"]) == 0


def refused(capsys, cache, pip, *arguments) -> str:
    """The error message of a refused command; checks that nothing was installed."""
    assert bundle.main(list(map(str, arguments))) == 2
    message = capsys.readouterr().err
    assert message.startswith("bundle: ") and message.count("\n") == 1 and not pip and not cache.exists()
    return message


@pytest.mark.parametrize(
    "change, message",
    [
        ({"capability": (8, 0)}, "chip: the bundle is for 9.0, here is 8.0"),
        ({"capability": None}, "GPU: expected one of compute capability 9.0a, got none"),
        ({"python": "3.11"}, "python: the bundle is for 3.12, here is 3.11"),
        ({"torch": "2.12.0"}, "torch: the bundle is for 2.11.0, here is 2.12.0"),
        ({"triton": "3.7.1"}, "triton: the bundle is for 3.6.0, here is 3.7.1"),
        ({"cuda": "12.8"}, "cuda: the bundle is for 13.0, here is 12.8"),
        ({"compiler": "0ther", "cuda": "12.8"}, "cuda: the bundle is for 13.0, here is 12.8"),
    ],
)
def test_a_bundle_for_something_else(archive, cache, pip, capsys, monkeypatch, change, message):
    here(monkeypatch, **change)
    assert message in refused(capsys, cache, pip, "install", archive)


def test_kernels_of_another_compiler_are_left_out(archive, cache, pip, capsys, monkeypatch):
    """Triton would ignore them in its cache: that costs time to compile, and the wheel is as good."""
    here(monkeypatch, compiler="0ther")
    assert bundle.main(["install", str(archive)]) == 0 and pip == ["atrous.whl"]
    out, err = capsys.readouterr()
    warning = "compiler (Triton's files, ptxas and TRITON_ variables): the bundle is for c0de, here is 0ther"
    assert err == f"bundle: {warning}; its kernels are left out, and Triton compiles them\n"
    assert ": 0 kernels in" in out and [path.name for path in cache.iterdir()] == [bundle_install.MARK]
    assert bundle.main(["installed"]) == 0
    here(monkeypatch)
    assert bundle.main(["install", str(archive)]) == 0 and len(list(cache.iterdir())) == 3


def test_a_bundle_of_another_compiler_and_commit_is_refused(archive, cache, pip, capsys, monkeypatch):
    here(monkeypatch, compiler="0ther")
    monkeypatch.setattr(bundle_facts, "source", lambda: "other")
    assert "(sources other)" in refused(capsys, cache, pip, "install", archive)


def test_a_bundle_of_another_commit(archive, cache, pip, capsys, monkeypatch):
    monkeypatch.setattr(bundle_facts, "source", lambda: "other")
    monkeypatch.setenv("ATROUS_COMMIT", "a1b2c3")
    assert "here is a1b2c3 (sources other)" in refused(capsys, cache, pip, "install", archive)


@pytest.mark.parametrize("fraction", (0.0, 0.3, 0.99))
def test_a_truncated_archive(archive, cache, pip, capsys, fraction):
    whole = archive.read_bytes()
    archive.write_bytes(whole[: int(fraction * len(whole))])
    assert "archive: expected a whole bundle" in refused(capsys, cache, pip, "install", archive)


def test_an_archive_that_does_not_exist(tmp_path, cache, pip, capsys):
    assert "expected a whole bundle" in refused(capsys, cache, pip, "install", tmp_path / "none.tar.xz")


def test_a_wheel_that_pip_refuses(archive, cache, capfd):
    assert bundle.main(["install", str(archive)]) == 2
    assert "wheel: expected pip to install atrous.whl" in capfd.readouterr().err
    assert bundle.main(["installed"]) == 2


def test_a_cache_that_cannot_be_written(archive, tmp_path, pip, capsys, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file" / "cache"))
    message = refused(capsys, tmp_path / "file" / "cache", pip, "install", archive)
    assert "cache: expected a folder that can be written" in message


def test_a_moved_or_damaged_cache(archive, cache, pip, capsys, monkeypatch, tmp_path):
    assert "expected an installed bundle" in refused(capsys, cache, pip, "installed")
    bundle.main(["install", str(archive)])
    cache.rename(tmp_path / "moved")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "moved"))
    assert bundle.main(["installed"]) == 2
    assert f"expected it in {cache}" in capsys.readouterr().err
    bundle.main(["install", str(archive)])  # again, over the moved cache: writes its new paths
    (tmp_path / "moved" / bundle_archive.entry_name(KEYS[1])).rename(tmp_path / "elsewhere")
    assert bundle.main(["installed"]) == 2
    assert "expected 2 entries" in capsys.readouterr().err


def test_the_same_content_gives_the_same_archive(archive, tmp_path):
    bundle_archive.pack(tmp_path / "content", tmp_path / "again.tar.xz")
    assert archive.read_bytes() == (tmp_path / "again.tar.xz").read_bytes()


def test_an_archive_that_is_too_large(tmp_path, monkeypatch):
    (tmp_path / "bundle.json").write_text("{}")
    monkeypatch.setattr(bundle_archive, "MAX_BYTES", 10)
    with pytest.raises(BundleError, match="expected at most 10 bytes, got"):
        bundle_archive.pack(tmp_path, tmp_path / "out" / "bundle.tar.xz")
    assert not list((tmp_path / "out").iterdir())
