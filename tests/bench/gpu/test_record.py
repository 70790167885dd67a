"""Tests of the results file: the commit in it, and that earlier measurements are never overwritten."""

import json
import subprocess
import tarfile

import pytest

from bench import record

ABOUT = {
    "device": "NVIDIA H100",
    "driver": "1",
    "commit": "a" * 40,
    "date": "2030-01-02",
    "versions": {"torch": "2.11"},
}


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with one commit; returns a function that runs git there."""
    monkeypatch.setattr(record, "ROOT", tmp_path)
    monkeypatch.delenv("ATROUS_COMMIT", raising=False)

    def git(*arguments):
        options = ("-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false")
        return subprocess.run(
            ["git", *options, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    git("init", "-q")
    for name in ("source.py", "bench/results/a.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    git("add", ".")
    git("commit", "-qm", "one")
    return git


def test_the_commit_is_that_of_git_and_says_when_the_sources_differ(checkout, tmp_path):
    head = checkout("rev-parse", "HEAD").strip()
    assert record.commit() == head and len(head) == 40
    (tmp_path / "bench/results/a.json").write_text("2")  # files that a run writes are no source changes
    assert record.commit() == head
    (tmp_path / "source.py").write_text("2")
    assert record.commit() == f"{head}-dirty"


def test_without_git_the_commit_is_that_of_the_bundle_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "ROOT", tmp_path)
    monkeypatch.delenv("ATROUS_COMMIT", raising=False)
    monkeypatch.delenv("ATROUS_BUNDLE", raising=False)
    assert record.commit() == "unknown"
    archive = tmp_path / "out" / "gpu-bundle-sm90.tar.xz"
    archive.parent.mkdir()
    (tmp_path / "bundle.json").write_text(json.dumps({"commit": "b" * 40}))
    with tarfile.open(archive, "w:xz") as tar:
        tar.add(tmp_path / "bundle.json", "bundle.json")
    assert record.bundle() == archive and record.commit() == "b" * 40
    archive.write_bytes(archive.read_bytes()[:40])
    assert record.commit() == "unknown"
    monkeypatch.setenv("ATROUS_COMMIT", "c" * 40)
    assert record.commit() == "c" * 40


def test_a_file_of_the_same_run_is_continued_and_another_is_renamed(tmp_path):
    path, contents = record.open_record(tmp_path / "new", ABOUT)
    assert path.name == "nvidia-h100-2030-01-02.json" and contents == {**ABOUT, "phases": {}, "tables": {}}
    record.write(path, {**contents, "tables": {"fused": 1}})
    assert record.open_record(tmp_path / "new", ABOUT)[1]["tables"] == {"fused": 1}
    for change in ({"commit": "b" * 40}, {"driver": "2"}, {"versions": {}}):
        assert record.open_record(tmp_path / "new", {**ABOUT, **change}) == (
            path,
            {**ABOUT, **change, "phases": {}, "tables": {}},
        )
        renamed = path.with_name(f"nvidia-h100-2030-01-02-{'a' * 8}.json")
        assert not path.exists() and record.read(renamed)["tables"] == {"fused": 1}
        renamed.rename(path)


def test_renamed_files_are_never_overwritten(tmp_path):
    """Alternating commits on one day: every run gets a file of its own."""
    first, second = ABOUT, {**ABOUT, "commit": "a" * 40 + "-dirty"}
    for number, about in enumerate((first, second, first, second)):
        path, contents = record.open_record(tmp_path, about)
        assert not contents["tables"]
        record.write(path, {**contents, "tables": {"number": number}})
    numbers = {file.stem.removeprefix(path.stem): record.read(file)["tables"]["number"] for file in tmp_path.iterdir()}
    assert numbers == {"": 3, "-aaaaaaaa": 0, "-aaaaaaaa-2": 1, "-aaaaaaaa-3": 2}


def test_a_driver_that_did_not_answer_once_is_no_other_driver(tmp_path):
    path, contents = record.open_record(tmp_path, {**ABOUT, "driver": record.UNKNOWN})
    record.write(path, {**contents, "tables": {"fused": 1}})
    path, contents = record.open_record(tmp_path, ABOUT)
    assert contents == {**ABOUT, "phases": {}, "tables": {"fused": 1}}
    record.write(path, contents)
    assert record.open_record(tmp_path, {**ABOUT, "driver": record.UNKNOWN})[1] == contents
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_phase_fills_the_file_of_the_day_on_which_it_began(tmp_path, monkeypatch):
    monkeypatch.setenv("ATROUS_DATE", "2030-01-02")
    path, _ = record.open_record(tmp_path, record.about("NVIDIA H100", {}))
    assert path.name == "nvidia-h100-2030-01-02.json"


def test_without_nvidia_smi_there_are_no_sensors(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert record.sensors() == {}
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'Unable to determine the device handle'\nexit 6\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert record.sensors() == {}


def test_the_architecture_of_9_0_is_the_whole(capsys):
    assert (record.arch_list((9, 0)), record.arch_list((8, 6)), record.arch_list((10, 0))) == ("9.0a", "8.6", "10.0")
