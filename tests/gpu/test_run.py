""".ci/gpu as a whole, on a GPU that is not there: a made-up PYTHON and nvidia-smi answer in its place."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "bench" / "gpu"))

import steps as plan  # noqa: E402

ABOUT = {
    "device": "NVIDIA H100 80GB HBM3", "driver": "580.1", "commit": "c0ffee", "date": "2030-01-02",
    "versions": {"torch": "2.11.0+cu130", "triton": "3.6.0"},
}  # fmt: skip
NAME = "nvidia-h100-80gb-hbm3-2030-01-02"
LIMITS = {"right": 270, "fast": 420}
# In PYTHON's place: it runs run.py with the real one, answers for torch, and notes every step's command, its processes
# and what the file of the day says meanwhile. BEHAVE says what a step does whose command holds some words.
FAKE_PYTHON = r"""#!{python} -SE
import json, os, signal, subprocess, sys, time
from pathlib import Path
words = " ".join(sys.argv[1:])
if "gpu/run.py" in words:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
if "bench/record.py" in words:
    print({about!r})
    sys.exit()
folder = Path(os.environ["FAKE"])
path = folder / "results" / "{name}.json"
seen = json.loads(path.read_text())
child = subprocess.Popen(["sleep", "600"])
states = [step["state"] for step in seen["phases"][os.environ["PHASE"]]["steps"]]
given = [os.environ.get(name) for name in ("PIP_NO_INDEX", "ATROUS_COMMIT")]
note = {{"pids": [os.getpid(), child.pid], "states": states, "given": given}}
with (folder / "notes").open("a") as notes:
    notes.write(json.dumps(note) + "\n")
print("hello from", words, flush=True)
behaviour = next((what for key, what in json.loads(os.environ["BEHAVE"]).items() if key in words), 0)
if behaviour == "hang":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    time.sleep(600)
elif behaviour == "write":
    seen["tables"]["fused"] = {{"sites": [{{"ms": 1.0}}]}}
    path.with_suffix(".mine").write_text(json.dumps(seen))
    path.with_suffix(".mine").replace(path)
elif isinstance(behaviour, str):
    os.kill(os.getpid(), getattr(signal, behaviour))
else:
    sys.exit(behaviour)
"""


class Machine:
    """A folder with a PYTHON and an nvidia-smi; `start` runs .ci/gpu there."""

    def __init__(self, folder: Path):
        self.folder, self.results = folder, folder / "results"
        self.path = self.results / f"{NAME}.json"
        text = FAKE_PYTHON.format(python=sys.executable, about=json.dumps(ABOUT), name=NAME)
        self.script("fake-python", text)
        self.script("nvidia-smi", "#!/bin/sh\necho '1980, 2619, 45, 300.50, 580.1'\n")

    def script(self, name, text):
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)

    def start(self, phase, *options, **behave):
        environment = {
            **os.environ, "PYTHON": str(self.folder / "fake-python"), "FAKE": str(self.folder), "PHASE": phase,
            "PATH": f"{self.folder}:{os.environ['PATH']}", "BEHAVE": json.dumps(behave.get("behave", {})),
        }  # fmt: skip
        command = [str(ROOT / ".ci" / "gpu"), phase, str(self.results), *map(str, options)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def run(self, *arguments, **behave):
        process = self.start(*arguments, **behave)
        out, _ = process.communicate(timeout=120)
        return process.returncode, out

    def record(self):
        return json.loads(self.path.read_text())

    def steps(self, phase):
        return self.record()["phases"][phase]["steps"]

    def notes(self):
        path = self.folder / "notes"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def machine(tmp_path):
    made = Machine(tmp_path)
    yield made
    for note in made.notes():
        for pid in filter(alive, note["pids"]):
            os.kill(pid, signal.SIGKILL)


def alive(pid):
    """Whether it still runs; a process that ended and that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def watched(machine):
    """Reads the file of the day all the time: it holds valid JSON whenever it is there. Returns the number of reads."""
    reads, end = [], threading.Event()

    def watch():
        while not end.wait(0.002):
            if machine.path.exists():
                try:
                    reads.append(bool(machine.record()["phases"]) or True)
                except ValueError:
                    reads.append(False)

    thread = threading.Thread(target=watch)
    thread.start()
    yield reads
    end.set()
    thread.join()
    assert len(reads) > 50 and all(reads)


FAULTS = {
    "right": {"tests/launches.py": 1, "-m gpu": "hang", "--device cuda tests/test_cases": "SIGSEGV"},
    "fast": {"atrous tune": 1, "--part sites": "hang", "pointwise_table": "SIGSEGV", "--part networks": "write"},
}


@pytest.mark.parametrize("phase", FAULTS)
def test_a_phase_with_a_failure_a_hang_and_a_crash_runs_every_step(machine, watched, phase):
    status, out = machine.run(phase, "--limit", 8, behave=FAULTS[phase])
    found, notes = machine.steps(phase), machine.notes()
    count = len(plan.steps(phase, "python", machine.results, None))
    assert len(found) == count == len(notes) and status == 128 + signal.SIGSEGV
    assert machine.record()["phases"][phase]["exit_status"] == status
    faults = {entry["state"]: entry for entry in found if entry["state"] != "passed"}
    assert faults.keys() == {"failed", "timed out", "killed"}
    assert [faults[state]["exit_status"] for state in faults] == [1, 124, 139]
    assert 8 <= faults["timed out"]["seconds"] < 12 and faults["killed"]["reason"] == "killed by SIGSEGV"
    assert "hello from" in faults["failed"]["reason"] and faults["failed"]["reason"] in out
    for index, note in enumerate(notes):  # what was done is in the file while the next step runs
        assert note["states"][index:] == ["running"] + ["not reached"] * (count - index - 1)
        assert note["states"][:index] == [entry["state"] for entry in found[:index]]
        assert note["given"] == ["1", ABOUT["commit"]] and not any(map(alive, note["pids"]))
    if phase == "fast":
        assert machine.record()["tables"] == {"fused": {"sites": [{"ms": 1.0}]}}


def test_the_file_says_where_it_comes_from_and_how_the_gpu_was(machine):
    assert machine.run("right")[0] == machine.run("fast")[0] == 0
    held = machine.record()
    assert {key: held[key] for key in ABOUT} == ABOUT and list(held["phases"]) == ["right", "fast"]
    sensors = {"sm_mhz": "1980", "memory_mhz": "2619", "celsius": "45", "watt": "300.50", "driver": "580.1"}
    for entry in machine.steps("right") + machine.steps("fast"):
        assert entry["gpu_before"] == entry["gpu_after"] == sensors and entry["state"] == "passed"
    logs = {path.name for path in machine.results.iterdir()} - {machine.path.name}
    assert logs == {f"{NAME}-right.log", f"{NAME}-fast.log"}  # with a tuned table: 4 of at most 8 files
    text = (machine.results / f"{NAME}-right.log").read_text()
    assert [entry["name"] for entry in machine.steps("right")] == re.findall(r"^== (.*?): ", text, re.MULTILINE)


def test_a_failed_installation_ends_the_phase(machine):
    status, _ = machine.run("right", behave={"-m atrous info": 4})
    states = [entry["state"] for entry in machine.steps("right")]
    assert status == 4 and states == ["passed", "failed"] + ["not reached"] * (len(states) - 2)


def test_what_a_machine_cannot_run_is_no_failure(machine):
    status, _ = machine.run("right", behave={"sanitize.py": plan.NOT_AVAILABLE})
    entry = next(entry for entry in machine.steps("right") if entry["name"] == "memcheck")
    assert status == 0 and entry["state"] == "not available" and "hello from" in entry["reason"]
    status, _ = machine.run("right", behave={"launches.py": plan.NOT_AVAILABLE})  # only where the step may say so
    assert status == plan.NOT_AVAILABLE


def test_an_informative_step_decides_nothing(machine):
    assert machine.run("full", behave={"sanitize.py racecheck": 1, "sanitize.py initcheck": "SIGSEGV"})[0] == 0
    states = {entry["name"]: entry["state"] for entry in machine.steps("full")}
    assert (states["racecheck"], states["initcheck"], states["memcheck"]) == ("failed", "killed", "passed")
    assert machine.run("full", behave={"sanitize.py memcheck": 1})[0] == 1


def began(machine, process, count):
    deadline = time.monotonic() + 60
    while len(machine.notes()) < count:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    return machine.notes()[-1]["pids"]


def test_a_run_that_was_killed_leaves_valid_json(machine):
    process = machine.start("right", behave={"launches.py": "hang"})
    began(machine, process, 3)
    process.kill()
    process.communicate()
    states = [entry["state"] for entry in machine.steps("right")]
    assert states[:4] == ["passed", "passed", "running", "not reached"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_stops_its_step(machine, number):
    process = machine.start("right", behave={"launches.py": "hang"})
    pids = began(machine, process, 3)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 128 + number and machine.steps("right")[2]["state"] == "interrupted"
    deadline = time.monotonic() + 10
    while any(map(alive, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


# Without a GPU


def gpu(*arguments, python=sys.executable, **more):
    environment = {**os.environ, "PYTHON": python, "CUDA_VISIBLE_DEVICES": "", **more}
    command = [str(ROOT / ".ci" / "gpu"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


@pytest.mark.parametrize("phase", LIMITS)
def test_a_dry_run_prints_the_steps_that_would_run(machine, phase):
    python = machine.folder / "fake-python"
    done = gpu(phase, machine.results, "--dry-run", python=str(python))
    *lines, total = [re.fullmatch(r" *(\d+) s  (.*)", line).groups() for line in done.stdout.splitlines()]
    assert done.returncode == 0 and not machine.results.exists()
    assert total == (str(sum(int(limit) for limit, _ in lines)), "in all") and int(total[0]) <= LIMITS[phase]
    machine.run(phase)
    assert [(int(limit), command) for limit, command in lines] == [
        (entry["limit_s"], entry["command"]) for entry in machine.steps(phase)
    ]


def test_a_bundle_is_installed_where_there_is_one(tmp_path):
    (tmp_path / "a bundle.tar.zst").touch()
    done = gpu("right", tmp_path, "--dry-run", ATROUS_BUNDLE=str(tmp_path / "a bundle.tar.zst"))
    first = done.stdout.splitlines()[0]
    assert first.endswith(f"bench/gpu/bundle.py install '{tmp_path}/a bundle.tar.zst'")


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [(["right"], 3, "no NVIDIA GPU that the torch of"), (["fast"], 3, "no NVIDIA GPU"), (["full"], 3, "no NVIDIA GPU"),
     (["paint"], 2, "expected a phase, got 'paint'"), ([], 2, "bundle|right|fast|full"),
     (["right", ".", "--limit", "0"], 2, "--limit: expected a positive number of seconds, got 0"),
     (["right", ".", "--continue"], 2, "--continue"),
     *(([old], 2, f"'{old}' is now part of '{new}'") for old, new in plan.NOW.items())],
)  # fmt: skip
def test_why_it_does_not_run_is_one_line(arguments, status, told):
    done = gpu(*arguments)
    assert done.returncode == status and told in done.stderr and done.stderr.count("\n") == 1 and not done.stdout


def test_every_file_that_a_step_names_is_there(tmp_path):
    for phase in plan.PHASES:
        for bundle in (None, tmp_path / "bundle.tar.zst"):
            for step in plan.steps(phase, "python", tmp_path, bundle):
                for name in re.findall(r"(?<![\w/])(?:tests|bench)/[\w/*\[\].-]+", step.command):
                    assert list(ROOT.glob(name)), (phase, step.name, name)
