"""bench.compare with synthetic timers: a planted slowdown fails, unchanged code passes, and both kinds of BASE."""

import json
import random

import pytest

from bench.compare import __main__ as command
from bench.compare import files, noise, versions

CASES = {"frozen": 20.0, "training": 300.0, "add_act": 0.05}  # milliseconds


class Timer:
    """A worker whose times have a noise of 5 %, outliers of 50 %, and 1 % by which each process differs."""

    def __init__(self, seed, slowdown=1.0):
        self.random, self.closed = random.Random(seed), False
        self.factors = {case: slowdown * self.random.gauss(1, 0.01) for case in CASES}

    def time(self, case):
        late = 1.5 if self.random.random() < 0.1 else 1.0
        return CASES[case] * self.factors[case] * self.random.lognormvariate(0, 0.05) * late

    def close(self):
        self.closed = True


def run(seed, slowdown=1.0, cases=tuple(CASES)):
    """The slower cases of a comparison with a commit: the working tree (None) is slower by the factor."""
    seeds = random.Random(seed)

    def start(library):
        return Timer(seeds.random(), 1.0 if library else slowdown)

    return command.confirmed(lambda cases: command.with_commit(cases, 25, "base", start), list(cases))


@pytest.mark.parametrize("seed", range(10))
def test_unchanged_code_passes(seed):
    assert run(seed) == []


@pytest.mark.parametrize("seed", range(10))
def test_a_slowdown_of_15_percent_is_found(seed, capsys):
    assert run(seed, 1.15) and "again: " in capsys.readouterr().out
    assert not run(seed, 0.85)


def test_the_noise_is_the_difference_of_two_equal_versions():
    base, slow = {case: [1.0] * 9 for case in "abc"}, {"a": [1.08] * 9, "b": [1.08] * 9, "c": [1.0] * 9}
    changed = noise.changes(base, base | {"b": [1.1] * 9}, slow)
    assert changed["a"] == (pytest.approx(1.08), noise.SMALLEST, True)  # one case that differs is not usual
    assert changed["b"].noise == pytest.approx(0.1) and not changed["b"].slower
    noisy = noise.changes(base, {"a": [1.05] * 9, "b": [1.1] * 9, "c": [1.05] * 9}, slow)
    assert noisy["a"].noise == pytest.approx(0.1) and not noisy["a"].slower


def test_one_process_works_at_a_time_and_each_has_every_round():
    log = []

    class Logged(Timer):
        def time(self, case):
            log.append(case)
            return super().time(case)

    times = noise.measured({"base": Logged(0), "new": Logged(1)}, list(CASES), 3)
    assert all(len(values) == 3 for part in times.values() for values in part.values())
    assert log == [case for _ in range(3) for case in CASES for _ in range(2)]


def rows(ours, eager=1.2, spread=0.01):
    common = {"part": "ResNet34", "case": "b1", "dtype": "float32", "spread": spread, "counted": spread <= 0.05}
    return [{**common, "provider": name, "speedup": s} for name, s in (("eager NHWC", eager), ("atrous", ours))]


def test_a_file_is_compared_by_its_ratios_over_eager():
    changed = files.changes(rows(1.5), rows(1.2))
    assert [change.slower for change in changed.values()] == [True] and "atrous" in next(iter(changed))
    assert not any(change.slower for change in files.changes(rows(1.5), rows(1.48)).values())
    # an unchanged peer differs by more: nothing can be said
    assert not any(change.slower for change in files.changes(rows(1.5, 1.5), rows(1.2, 1.1)).values())
    with pytest.raises(ValueError, match="in common"):
        files.changes(rows(1.5, spread=0.2), rows(1.2))


@pytest.mark.parametrize("now, status", [(1.5, 0), (1.2, 1)])
def test_exit_status_of_a_file(tmp_path, monkeypatch, capsys, now, status):
    base = tmp_path / "base.json"
    base.write_text(json.dumps({"rows": rows(1.5)}))

    def bench(arguments, **options):
        folder = command.Path(arguments[arguments.index("--results") + 1])
        (folder / "cpu.json").write_text(json.dumps({"rows": rows(now)}))

    monkeypatch.setattr(command.subprocess, "run", bench)
    assert command.main([str(base)]) == status
    printed = capsys.readouterr().out
    assert "another machine's times mean nothing" in printed and ("slower: ResNet34" in printed) == bool(status)


def test_an_unknown_base_is_refused(capsys):
    assert command.main(["no-such-commit"]) == 2 and "expected a commit or a results file" in capsys.readouterr().err


def test_a_process_answers_and_its_end_is_an_error():
    program = "import sys\nfor line in sys.stdin:\n    if line == 'bad\\n': sys.exit(3)\n    print(len(line))"
    worker = versions.Process(command=("-c", program))
    assert [worker.time(case) for case in ("a", "bcd")] == [2.0, 4.0]
    with pytest.raises(RuntimeError, match="bad: expected a time, but the process ended with status 3"):
        worker.time("bad")
    worker.close()
