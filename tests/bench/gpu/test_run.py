"""Tests of .ci/gpu as a whole without a GPU: a fake PYTHON and a fake nvidia-smi replace it."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest

from bench.gpu import phase as phase_module
from bench.gpu import process_group
from bench.gpu import run as command_line
from bench.gpu import steps as plan
from bench.gpu.bundle import facts
from bench.gpu.phase import Phase

ROOT = Path(__file__).parents[3]

ABOUT = {
    "device": "NVIDIA H100 80GB HBM3", "driver": "580.1", "commit": "c0ffee", "date": "2030-01-02",
    "versions": {"torch": "2.11.0+cu130", "triton": "3.6.0"},
}  # fmt: skip
NAME = "nvidia-h100-80gb-hbm3-2030-01-02"
LIMITS = {"right": 270, "fast": 420}
# Replaces PYTHON: runs bench.gpu.run with the real one, answers for torch, and notes the process ids of every step and
# the states in the results file. BEHAVE maps words of a step's command to its behaviour.
FAKE_PYTHON = r"""#!{python} -SE
import json, os, signal, subprocess, sys, time
from pathlib import Path
words = " ".join(sys.argv[1:])
if "bench.gpu.run" in words:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
if "bench.record" in words:
    print({about!r})
    sys.exit()
folder = Path(os.environ["FAKE"])
path = folder / "results" / "{name}.json"
seen = json.loads(path.read_text())
child = subprocess.Popen(["sleep", "600"])
states = [step["state"] for step in seen["phases"][os.environ["PHASE"]]["steps"]]
given = [os.environ.get(name) for name in ("PIP_NO_INDEX", "PIP_BREAK_SYSTEM_PACKAGES", "ATROUS_COMMIT", "ATROUS_DATE")]
note = {{"pids": [os.getpid(), child.pid], "states": states, "given": given}}
with (folder / "notes").open("a") as notes:
    notes.write(json.dumps(note) + "\n")
print("hello from", words, flush=True)
behaviour = next((value for key, value in json.loads(os.environ["BEHAVE"]).items() if key in words), 0)
if behaviour == "hang":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    time.sleep(600)
elif behaviour == "write":
    seen["tables"]["fused"] = {{"layers": [{{"ms": 1.0}}]}}
    path.with_suffix(".mine").write_text(json.dumps(seen))
    path.with_suffix(".mine").replace(path)
elif isinstance(behaviour, str):
    os.kill(os.getpid(), getattr(signal, behaviour))
else:
    sys.exit(behaviour)
"""


class Machine:
    """A folder with a fake PYTHON and nvidia-smi; `start` runs .ci/gpu there."""

    def __init__(self, folder: Path):
        self.folder, self.results = folder, folder / "results"
        self.path = self.results / f"{NAME}.json"
        text = FAKE_PYTHON.format(python=sys.executable, about=json.dumps(ABOUT), name=NAME)
        self.script("fake-python", text)
        self.script("nvidia-smi", "#!/bin/sh\necho '1980, 2619, 45, 300.50, 580.1'\n")
        self.bundle = folder / "a bundle.tar.xz"
        self.bundle.touch()

    def script(self, name, text):
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)

    def start(self, phase, *options, **behave):
        environment = {
            **os.environ, "PYTHON": str(self.folder / "fake-python"), "FAKE": str(self.folder), "PHASE": phase,
            "PATH": f"{self.folder}:{os.environ['PATH']}", "BEHAVE": json.dumps(behave.get("behave", {})),
            "ATROUS_BUNDLE": str(behave.get("bundle", self.bundle)),
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
    fake = Machine(tmp_path)
    yield fake
    for note in fake.notes():
        for pid in filter(alive, note["pids"]):
            os.kill(pid, signal.SIGKILL)


def alive(pid):
    """True if the process still runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def watched(machine):
    """Reads the results file all the time and asserts that it is always valid JSON. Yields the reads' outcomes."""
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
    "right": {"tests/support/kernels/launches.py": 1, "-m gpu": "hang", "--device cuda tests/": "SIGSEGV"},
    "fast": {"atrous tune": 1, "--part layers": "hang", "tables.pointwise": "SIGSEGV", "--part networks": "write"},
}


@pytest.mark.gate
@pytest.mark.parametrize("phase", FAULTS)
def test_a_phase_with_a_failure_a_hang_and_a_crash_runs_every_step(machine, watched, phase):
    status, out = machine.run(phase, "--limit", 8, behave=FAULTS[phase])
    entries, notes = machine.steps(phase), machine.notes()
    count = len(plan.steps(phase, "python", machine.results, machine.bundle))
    assert len(entries) == count == len(notes) and status == 128 + signal.SIGSEGV
    assert machine.record()["phases"][phase]["exit_status"] == status
    faults = {entry["state"]: entry for entry in entries if entry["state"] != "passed"}
    assert faults.keys() == {"failed", "timed out", "killed"}
    assert [faults[state]["exit_status"] for state in faults] == [1, 124, 139]
    assert faults["timed out"]["gpu_during"]["watt"] == "300.50" and "gpu_during" not in faults["failed"]
    assert 8 <= faults["timed out"]["seconds"] < 12 and faults["killed"]["reason"] == "killed by SIGSEGV"
    assert "hello from" in faults["failed"]["reason"] and faults["failed"]["reason"] in out
    for index, note in enumerate(notes):  # the file has the finished steps while the next one runs
        assert note["states"][index:] == ["running"] + ["not reached"] * (count - index - 1)
        assert note["states"][:index] == [entry["state"] for entry in entries[:index]]
        assert note["given"] == ["1", "1", ABOUT["commit"], ABOUT["date"]] and not any(map(alive, note["pids"]))
    if phase == "fast":
        assert machine.record()["tables"] == {"fused": {"layers": [{"ms": 1.0}]}}


def test_the_file_has_its_origin_and_the_sensors(machine):
    assert machine.run("right")[0] == machine.run("fast")[0] == 0
    contents = machine.record()
    assert {key: contents[key] for key in ABOUT} == ABOUT and list(contents["phases"]) == ["right", "fast"]
    sensors = {"sm_mhz": "1980", "memory_mhz": "2619", "celsius": "45", "watt": "300.50", "driver": "580.1"}
    for entry in machine.steps("right") + machine.steps("fast"):
        assert entry["gpu_before"] == entry["gpu_after"] == sensors and entry["state"] == "passed"
    logs = {path.name for path in machine.results.iterdir()} - {machine.path.name}
    assert logs == {f"{NAME}-right.log", f"{NAME}-fast.log"}
    # With the tuning table, tune.json and fuzz.json these are 6 of at most 8 files.
    text = (machine.results / f"{NAME}-right.log").read_text()
    assert [entry["name"] for entry in machine.steps("right")] == re.findall(r"^== (.*?): ", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("phase", "bundle", "broken", "done"),
    [("right", None, "bundle.command install", 0), ("fast", None, "bundle.command install", 0),
     ("right", None, "-m atrous info --require native,triton", 1),
     ("right", "none", "-m atrous info --require triton", 1), ("fast", "none", "pip install", 0)],
)  # fmt: skip
def test_a_failed_installation_ends_the_phase(machine, phase, bundle, broken, done):
    status, _ = machine.run(phase, behave={broken: 4}, bundle=bundle or machine.bundle)
    states = [entry["state"] for entry in machine.steps(phase)]
    assert status == 4 and states == ["passed"] * done + ["failed"] + ["not reached"] * (len(states) - done - 1)


def test_a_step_that_the_machine_cannot_run_is_no_failure(machine):
    status, _ = machine.run("right", behave={"bench.gpu.sanitize": plan.NOT_AVAILABLE})
    entry = next(entry for entry in machine.steps("right") if entry["name"] == "memcheck")
    assert status == 0 and entry["state"] == "not available" and "hello from" in entry["reason"]
    status, _ = machine.run("right", behave={"launches.py": plan.NOT_AVAILABLE})  # only optional steps may exit with it
    assert status == plan.NOT_AVAILABLE


@pytest.mark.gate
def test_an_informative_step_does_not_change_the_status(machine):
    assert machine.run("full", behave={"sanitize racecheck": 1, "sanitize initcheck": "SIGSEGV"})[0] == 0
    states = {entry["name"]: entry["state"] for entry in machine.steps("full")}
    assert (states["racecheck"], states["initcheck"], states["memcheck"]) == ("failed", "killed", "passed")
    assert machine.run("full", behave={"sanitize memcheck": 1})[0] == 1


def test_a_step_that_loses_the_gpu_goes_on_in_a_new_process(machine):
    """It has failed, by the names of what lost the GPU; what it measured counts, and the phase goes on."""
    layers = f"-m bench.tables.fused {machine.results} --part layers --seconds 60"
    behave = {f"{layers} --continue": 0, "--part layers": plan.GPU_LOST, "tables.pointwise": 0}
    status, out = machine.run("fast", behave=behave)
    entry = next(entry for entry in machine.steps("fast") if entry["name"] == "layers")
    assert (status, entry["state"], entry["exit_status"]) == (plan.GPU_LOST, "failed", plan.GPU_LOST)
    assert entry["reason"] == f"hello from {layers}" and entry["reason"] in out
    assert {entry["state"] for entry in machine.steps("fast")} == {"passed", "failed"}
    commands = re.findall(r"^== layers: .* layers (.*)$", machine.path.with_name(f"{NAME}-fast.log").read_text(), re.M)
    assert len(commands) == 2 and commands[0] == "--seconds 60"
    assert re.fullmatch(r"--seconds 60 --continue --seconds 5\d", commands[1])


def test_a_step_goes_on_until_its_time_is_over(machine, monkeypatch):
    """Each process that lost the GPU is in the reason; the state and the status are those of the last one."""
    phase, now = Phase("fast", [step := plan.Step("a", 50, "a")], machine.path, "c0ffee", "2030-01-02"), [0.0]
    ran, ends = [], [("failed", 75), ("failed", 75), ("timed out", 124)]

    def execute(step, command, limit):
        ran.append((command, limit))
        now[0] += 20.0
        state, status = ends[len(ran) - 1]
        return {"state": state, "exit_status": status, "reason": f"reason {len(ran)}"}

    monkeypatch.setattr(phase, "execute", execute)
    monkeypatch.setattr(phase_module.time, "monotonic", lambda: now[0])
    entry = phase.outcome(step)
    assert ran == [("a", 50.0), ("a --continue", 30.0), ("a --continue", 10.0)]
    assert entry == {
        "state": "timed out", "exit_status": 124, "reason": "reason 1; reason 2; reason 3", "seconds": 60.0,
    }  # fmt: skip
    ran.clear()
    entry = phase.outcome(plan.Step("a", 45, "a"))  # too little is left for a third process
    assert len(ran) == 2 and (entry["state"], entry["reason"]) == ("failed", "reason 1; reason 2")


def began(machine, process, count):
    deadline = time.monotonic() + 60
    while len(machine.notes()) < count:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    return machine.notes()[-1]["pids"]


@pytest.mark.gate
def test_a_run_that_was_killed_leaves_valid_json(machine):
    process = machine.start("right", behave={"launches.py": "hang"})
    began(machine, process, 3)
    process.kill()
    process.communicate()
    states = [entry["state"] for entry in machine.steps("right")]
    assert states[:4] == ["passed", "passed", "running", "not reached"]


@pytest.mark.gate
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
    done = gpu(phase, machine.results, "--dry-run", python=str(python), ATROUS_BUNDLE="none")
    *lines, total = [re.fullmatch(r" *(\d+) s  (.*)", line).groups() for line in done.stdout.splitlines()]
    assert done.returncode == 0 and not machine.results.exists()
    assert total == (str(sum(int(limit) for limit, _ in lines)), "in all") and int(total[0]) <= LIMITS[phase]
    machine.run(phase, bundle="none")
    assert [(int(limit), command) for limit, command in lines] == [
        (entry["limit_s"], entry["command"]) for entry in machine.steps(phase)
    ]


def bundle_of(path, source):
    """A bundle whose bundle.json alone is whole, as a machine without a GPU packs it."""
    about = json.dumps({"source": source, "commit": "c0ffee"}).encode()
    with tarfile.open(path, "w:xz") as archive:
        member = tarfile.TarInfo("bundle.json")
        member.size = len(about)
        archive.addfile(member, io.BytesIO(about))
    return path


@pytest.mark.parametrize("phase", LIMITS)
def test_a_dry_run_refuses_a_bundle_of_another_tree(machine, phase):
    """The same message as at the installation, but before a GPU machine is lent."""
    python = str(machine.folder / "fake-python")
    same = bundle_of(machine.folder / "same.tar.xz", facts.source())
    other = bundle_of(machine.folder / "other.tar.xz", "0ther")
    done = gpu(phase, machine.results, "--dry-run", python=python, ATROUS_BUNDLE=str(same))
    assert (done.returncode, done.stderr) == (0, "")
    refused = gpu(phase, machine.results, "--dry-run", python=python, ATROUS_BUNDLE=str(other))
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and refused.stdout.endswith(" s  in all\n")
    assert f"{other}: commit: the bundle is of c0ffee (sources 0ther), here is" in refused.stderr
    broken = gpu(phase, machine.results, "--dry-run", python=python, ATROUS_BUNDLE=str(machine.bundle))
    assert broken.returncode == 2 and "expected a whole bundle" in broken.stderr and broken.stderr.count("\n") == 1


def test_the_runner_imports_no_torch():
    """A machine's own Python may run it, before the bundle is installed."""
    command = [sys.executable, "-c", "import sys, bench.gpu.run; assert 'torch' not in sys.modules"]
    assert subprocess.run(command, cwd=ROOT).returncode == 0


@pytest.mark.parametrize("phase", LIMITS)
def test_a_bundle_is_installed_first(machine, phase):
    done = gpu(phase, machine.results, "--dry-run", ATROUS_BUNDLE=str(machine.bundle))
    lines = done.stdout.splitlines()
    assert lines[0].endswith(f"-m bench.gpu.bundle.command install '{machine.bundle}'")
    assert int(lines[-1].split()[0]) <= LIMITS[phase]


def test_without_a_bundle_nothing_runs_unless_requested(machine, monkeypatch, capsys):
    """The checkout may have no C++ library: half of the tests would be skipped."""
    monkeypatch.delenv("ATROUS_BUNDLE", raising=False)
    monkeypatch.setattr(command_line.record, "bundle", lambda: None)
    monkeypatch.setattr(command_line, "probe", lambda python: ABOUT)
    for phase in LIMITS:
        assert command_line.main([phase, str(machine.results), "--dry-run"]) == 0
        assert "bundle.command install" in capsys.readouterr().out.splitlines()[0]
        assert command_line.main([phase, str(machine.results)]) == 2 and not machine.results.exists()
        assert "expected a bundle in out/ or in ATROUS_BUNDLE" in capsys.readouterr().err
    assert machine.run("right", bundle="none")[0] == 0


@pytest.mark.parametrize("bundle", [None, Path("bundle.tar.xz")])
def test_the_limits_of_both_phases_fit_into_15_minutes(tmp_path, bundle):
    """270 and 420 seconds: the rest is for the start of the machine and the transfers."""
    sums = {phase: sum(step.limit for step in plan.steps(phase, "python", tmp_path, bundle)) for phase in LIMITS}
    assert all(sums[phase] <= LIMITS[phase] for phase in LIMITS), sums


def test_a_step_that_counts_its_seconds_has_time_to_start_and_to_end(tmp_path):
    """A step is interrupted shortly before its limit; importing torch takes 3 to 4 s, and the last job overruns."""
    for phase in LIMITS:
        for step in plan.steps(phase, "python", tmp_path, None):
            for seconds in map(int, re.findall(r"--seconds (\d+)", step.command)):
                assert step.limit - process_group.GRACE - seconds >= 8, step


@pytest.mark.parametrize(
    ("answer", "message"),
    [("import sys; sys.exit('no module named torch')", "got no module named torch"),
     ("import time; time.sleep(60)", "did not answer within 1 s"), ("raise SystemExit(3)", "no NVIDIA GPU that")],
)  # fmt: skip
def test_reasons_for_no_gpu(tmp_path, monkeypatch, answer, message):
    (tmp_path / "python").write_text(f"#!{sys.executable} -SE\n{answer}\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(command_line, "PROBE_SECONDS", 1.0)
    assert message in command_line.probe(str(tmp_path / "python"))


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [(["right"], 3, "no NVIDIA GPU that the torch of"), (["fast"], 3, "no NVIDIA GPU"), (["full"], 3, "no NVIDIA GPU"),
     (["paint"], 2, "expected a phase, got 'paint'"), ([], 2, "bundle|right|fast|full"),
     (["right", ".", "--limit", "0"], 2, "--limit: expected a positive number of seconds, got 0"),
     (["right", ".", "--continue"], 2, "--continue"),
     *(([old], 2, f"'{old}' is now part of '{new}'") for old, new in plan.REPLACED.items())],
)  # fmt: skip
def test_a_refusal_is_one_line(arguments, status, message):
    done = gpu(*arguments)
    assert done.returncode == status and message in done.stderr and done.stderr.count("\n") == 1 and not done.stdout


def test_every_file_that_a_step_names_exists(tmp_path):
    for phase in plan.PHASES:
        for bundle in (None, tmp_path / "bundle.tar.xz"):
            for step in plan.steps(phase, "python", tmp_path, bundle):
                for name in re.findall(r"(?<![\w/])(?:tests|bench)/[\w/*\[\].-]+", step.command):
                    assert list(ROOT.glob(name)), (phase, step.name, name)


@pytest.mark.gate
def test_the_gpu_tests_are_in_the_files_that_their_step_names():
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    files = dict.fromkeys(line.partition("::")[0] for line in done.stdout.splitlines() if re.match(r"tests/.*::", line))
    assert done.returncode == 0 and files.keys() == set(plan.GPU_TESTS), done.stdout[-2000:]
    assert len(plan.GPU_TESTS) == len(files)  # each once
    is_conv = ["conv" in Path(name).name for name in plan.GPU_TESTS]
    assert is_conv == sorted(is_conv, reverse=True)  # the convolutions run first


def test_workers_that_compile_do_not_start_a_process_for_each_cpu(tmp_path):
    for phase in ("right", "full"):
        for step in plan.steps(phase, "python", tmp_path, None):
            assert "-m pytest" not in step.command or step.command.startswith("TORCHINDUCTOR_COMPILE_THREADS=2 "), step
