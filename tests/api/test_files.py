"""core/files.py: a file is the old one or the new one, whatever happens while it is written."""

import os
import stat
import threading
from pathlib import Path

import pytest
from file_limit import contents, file_limit, in_child, killed_in

from atrous.core import files
from atrous.core.checks import UsageError
from atrous.fusion import Report

OLD, NEW = b"an older file", b"a newer file of more bytes " * 100


def test_a_file_is_written_in_either_type(tmp_path):
    path = tmp_path / "a.txt"
    files.write(path, "Grüße\n")
    assert path.read_text(encoding="utf-8") == "Grüße\n"
    files.write(path, NEW)
    assert contents(tmp_path) == {"a.txt": NEW}


@pytest.mark.parametrize("old", [OLD, None], ids=["over an older one", "a new one"])
def test_a_full_disk_leaves_what_was_there(tmp_path, old):
    path = tmp_path / "a.txt"
    if old is not None:
        path.write_bytes(old)
    before = contents(tmp_path)
    with file_limit(100), pytest.raises(OSError, match=rf"^\[Errno 27\] File too large: '{path}'$"):
        files.write(path, NEW)
    assert contents(tmp_path) == before
    with file_limit(100), pytest.raises(UsageError, match=r"^--some: \[Errno 27\] File too large: "):
        files.save("--some", path, NEW)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_kill_leaves_what_was_there_and_the_next_write_works(tmp_path, step):
    path = tmp_path / "a.txt"
    path.write_bytes(OLD)
    killed_in(step, lambda: files.write(path, NEW))
    assert path.read_bytes() == OLD
    files.write(path, NEW)
    assert path.read_bytes() == NEW


def test_a_reader_sees_whole_files_while_threads_write_one(tmp_path):
    path = tmp_path / "a.txt"
    texts = [bytes([number]) * (1000 + 700 * number) for number in range(8)]
    files.write(path, texts[0])
    writers = [threading.Thread(target=lambda t=t: [files.write(path, t) for _ in range(20)]) for t in texts]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        seen.add(path.read_bytes())
    assert seen <= set(texts) and set(contents(tmp_path)) == {"a.txt"}


def test_permissions_and_links_stay(tmp_path):
    target, link = tmp_path / "target.txt", tmp_path / "link.txt"
    target.write_bytes(OLD)
    target.chmod(0o640)
    link.symlink_to(target)
    files.write(link, NEW)
    assert link.is_symlink() and target.read_bytes() == NEW and stat.S_IMODE(target.stat().st_mode) == 0o640


def test_the_standard_output_is_appended_to_where_it_goes_to_a_file(tmp_path):
    """/dev/stdout is then that file, which others write too, and no name that a new file could take."""
    path, saved = tmp_path / "out.txt", os.dup(1)
    with open(path, "wb", 0) as file:
        try:
            os.dup2(file.fileno(), 1)
            os.write(1, b"printed\n")
            files.write(Path("/dev/stdout"), "written\n")
            files.write(path, "by name\n")
        finally:
            os.dup2(saved, 1)
            os.close(saved)
    assert path.read_bytes() == b"printed\nwritten\nby name\n" and Path("/dev/stdout").is_symlink()


def test_a_device_that_is_full():
    files.writable("--json", Path("/dev/full"))
    with pytest.raises(OSError, match=r"^\[Errno 28\] No space left on device: '/dev/full'$"):
        files.write(Path("/dev/full"), NEW)
    assert not Path("/dev/full").is_file()


def unprivileged(call):
    """Runs a function in a process that permissions bind, unlike one of root's."""

    def run():
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        call()

    return in_child(run)


@pytest.mark.parametrize("file, folder, expected", [(0o666, 0o777, 0), (0o666, 0o555, 1), (0o444, 0o777, 1)])
def test_a_file_or_a_folder_that_is_read_only(tmp_path, file, folder, expected):
    """It is refused before the work; write() needs the folder for its temporary file."""
    (inner := tmp_path / "inner").mkdir()
    (path := inner / "a.txt").write_bytes(OLD)
    path.chmod(file)
    inner.chmod(folder)
    for parent in inner.parents:  # pytest's own folders belong to one user
        if not (mode := parent.stat().st_mode) & 0o001:
            parent.chmod(mode | 0o011)

    def check():
        try:
            files.writable("--json", path)
        except UsageError as error:
            assert str(error) == f"--json: expected a file that can be written, got '{path}'"
            os._exit(1)

    status = unprivileged(check)
    inner.chmod(0o755)
    assert status == expected


def test_a_report_of_fuse_on_a_full_disk(tmp_path):
    report = Report(False)
    report.save(tmp_path)
    before = contents(tmp_path)
    assert set(before) == {"report.txt", "report.json"}
    report.plain_calls["a reason"] = 3
    with file_limit(10), pytest.raises(OSError, match=r"File too large: '.*report.txt'"):
        report.save(tmp_path)
    assert contents(tmp_path) == before
