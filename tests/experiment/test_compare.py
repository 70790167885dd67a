"""`compare` on tiny runs: its files, resuming run by run and from a checkpoint, refused arms, its sentences."""

import json
import shutil

import numpy as np
import pytest
import vessel_images
from PIL import Image

from examples.vessels import checkpoint, cli, training
from examples.vessels.comparison import pictures, runs, table
from examples.vessels.comparison.arms import ARMS, REFERENCE
from examples.vessels.comparison.runs import RESULT

pytestmark = pytest.mark.gate  # they train

OPTIONS = {
    "--width": 8, "--batch": 4, "--steps": 3, "--epochs": 2, "--patch": 24, "--stride": 12, "--validation": 1,
    "--seeds": 2, "--device": "cpu",
}  # fmt: skip


def arguments(data, output, *only, **changes):
    options = {**OPTIONS, **{f"--{name}": value for name, value in changes.items()}}
    words = ["compare", "--data", data, "--output", output, *(part for pair in options.items() for part in pair)]
    return [str(word) for word in (*words, "--only", *only)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of images and that of a comparison of two arms, two seeds each."""
    data, output = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("compare")
    assert cli.main(arguments(vessel_images.draw(data, test=2), output, "relu", "rates 1,2,9")) == 0
    return data, output


def test_results_and_table(finished):
    _, output = finished
    results = json.loads((output / "results.json").read_text())
    assert [len(results["runs"][name]) for name in ("prelu", "relu")] == [2, 2]
    assert results["runs"]["relu"][0]["images"] == ["test0", "test1"]
    page = (output / "table.md").read_text()
    assert "| prelu (rates 1,2,5, dropout 0) |" in page and "| relu |" in page
    for text in ("2 epochs of 3 steps", "stride 12", "seeds 0, 1", "2 for training, 1 for validation, 2 for test"):
        assert text in page
    assert "SYNTHETIC" not in page
    for picture in ("differences.png", "rates.png"):
        assert Image.open(output / picture).size[0] > 300
    # Two images: the smallest p is 0.5.
    assert "- relu: no difference is shown in F1, ROC area, sensitivity of thin vessels and" in page


def test_an_arm_that_the_audit_refuses_is_listed_with_its_number(finished):
    page = (finished[1] / "table.md").read_text()
    refused = page.partition("Not in the table:")[2]
    assert (
        "- rates 1,2,9: --rates 1,2,9: " in refused and "of the head's taps read padding on a map of 12x12" in refused
    )


def test_finished_runs_are_not_run_again_and_a_killed_one_goes_on(finished, tmp_path, monkeypatch):
    data, first = finished
    output = tmp_path / "again"
    shutil.copytree(first, output)
    (output / "runs/relu-seed1" / RESULT).unlink()  # killed behind its last epoch
    shutil.rmtree(output / "runs/relu-seed0")  # never begun, and killed in its second epoch below
    step, started = training.Run._step, []

    def killed(self, x, y, number):
        started.append((self.config.folder.name, number))
        if number == 4:
            raise KeyboardInterrupt
        return step(self, x, y, number)

    monkeypatch.setattr(training.Run, "_step", killed)
    command = arguments(data, output, "relu", "rates 1,2,9")
    assert cli.main(command) == 130
    assert started == [("relu-seed0", number) for number in range(5)]
    assert checkpoint.load(output / "runs/relu-seed0").epochs == 1
    monkeypatch.setattr(training.Run, "_step", lambda *args: started.append(("", args[-1])) or step(*args))
    assert cli.main(command) == 0
    assert [number for _, number in started[5:]] == [3, 4, 5]
    ours, expected = (json.loads((folder / "results.json").read_text()) for folder in (output, first))
    assert ours["arms"] == expected["arms"]


def test_results_of_other_options_are_refused(finished, capsys):
    data, output = finished
    assert cli.main(arguments(data, output, "relu", stride=6)) == 2
    assert "is the result of another run: stride 12 instead of 6" in capsys.readouterr().err
    assert cli.main(arguments(data, output, "relu", steps=4)) == 2
    assert "steps 3 instead of 4" in capsys.readouterr().err
    assert cli.main(arguments(data, output, "gelu")) == 2
    assert "--only: expected arms among prelu; relu" in capsys.readouterr().err
    assert cli.main(arguments(data, output, "relu", stride=25)) == 2


def test_an_arm_that_diverges_is_listed(tmp_path, monkeypatch):
    data, step = vessel_images.draw(tmp_path / "images"), training.Run._step

    def diverging(self, x, y, number):
        return step(self, x * float("nan") if self.config.act == "relu" else x, y, number)

    monkeypatch.setattr(training.Run, "_step", diverging)
    assert cli.main(arguments(data, tmp_path / "out", "relu", seeds=1, epochs=1)) == 0
    page = (tmp_path / "out/table.md").read_text()
    assert "- relu: seed 0: the loss became nan at step 1" in page and "| relu |" not in page


def test_sentences_say_no_more_than_the_intervals():
    line = {"median": -0.02, "low": -0.03, "high": -0.01, "p_holm": 0.004, "shown": True}
    result = {"f1": line, "roc_auc": line | {"shown": False}, "thin": line, "thick": line | {"shown": False}}
    relu = next(arm for arm in ARMS if arm.name == "relu")
    text = table.sentence(relu, result)
    assert text.startswith("relu: F1 is lower (-0.0200 [-0.0300, -0.0100], p 0.004) and sensitivity of thin vessels is")
    assert text.endswith("; no difference is shown in ROC area and sensitivity of thick vessels.")
    assert table.table([REFERENCE], {}) == [["arm", "F1", "ROC area", *list(table.METRICS.values())[2:]]]


def test_the_spread_over_seeds():
    values = {
        "f1": [[0.5, 0.7], [0.8, None]],
        "roc_auc": [[0.9], [0.9]],
        "thin": [[None], [None]],
        "thick": [[1.0], [0.5]],
    }
    text = table.spread(values)
    assert "F1 0.6000 to 0.8000, ROC area 0.9000 to 0.9000, sensitivity of thick vessels 0.5000 to 1.0000." in text


def test_the_time_left(monkeypatch):
    monkeypatch.setattr(runs.time, "monotonic", lambda: 160.0)
    assert runs._left(100.0, 1, 3) == "2:00" and runs._left(100.0, 3, 3) == "0:00"


def test_the_part_of_an_image_that_is_drawn():
    mask = np.zeros((50, 70), bool)
    mask[30:40, 20:30] = True
    assert pictures.densest(mask, 20) == (slice(20, 40), slice(10, 30))
    assert pictures.densest(mask, 60) == (slice(0, 50), slice(0, 60))
