"""The files of a run: checkpoints that are cut off or of another kind, and a disk that is full."""

import shutil

import pytest
import torch
import vessel_images
from file_limit import contents, file_limit, killed_in

from examples.vessels import checkpoint, cli


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of images and that of a run of one epoch."""
    images, run = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("run")
    assert cli.main(vessel_images.arguments("train", vessel_images.draw(images), run, "--plain", epochs=1)) == 0
    return images, run


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run's folder."""
    return shutil.copytree(trained[1], tmp_path / "copy")


def sentence(capsys, *words):
    """The one line on stderr of a command that fails."""
    capsys.readouterr()
    assert cli.main(list(map(str, words))) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"vessels {words[0]}: ") and err.count("\n") == 1, err
    return err


@pytest.mark.parametrize("fraction", [0, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_a_checkpoint_that_is_cut_off(run, capsys, fraction):
    path = run / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[: int(fraction * path.stat().st_size)])
    assert f"{path}: expected a checkpoint of this program, got a file that is not one" in sentence(
        capsys, "evaluate", run
    )


@pytest.mark.parametrize("change", [
    {"config": None}, {"config": 3}, {"config": {"rates": 3}}, {"preparation": {"mean": 0.5}}, {"preparation": []},
    {"more": 1},
], ids=str)  # fmt: skip
def test_a_checkpoint_that_lacks_a_part(run, capsys, change):
    values = torch.load(run / "checkpoint.pt", weights_only=True) | change
    torch.save({name: value for name, value in values.items() if value is not None}, run / "checkpoint.pt")
    assert "expected a whole checkpoint of this program, got one that lacks a part" in sentence(capsys, "evaluate", run)


def test_training_on_a_full_disk_goes_on_afterwards(trained, run, capsys):
    before = contents(run)
    command = vessel_images.arguments("train", trained[0], run, "--plain", epochs=2)
    limit = len(before["config.json"]) + 1000
    with file_limit(limit):
        message = sentence(capsys, *command)
    assert f"{run / 'checkpoint.pt'}: File too large" in message
    after = contents(run)
    assert after["checkpoint.pt"] == before["checkpoint.pt"] and after["history.json"] == before["history.json"]
    assert after.keys() == before.keys()
    assert cli.main(command) == 0 and checkpoint.load(run).epochs == 2


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_kill_while_a_checkpoint_is_written(run, step):
    """The next run removes what was written of it."""
    path = run / "checkpoint.pt"
    before, saved = path.read_bytes(), checkpoint.load(run)
    saved.epochs += 1
    killed_in(step, lambda: checkpoint.save(saved, path))
    assert path.read_bytes() == before and len(list(run.glob("*.part"))) == 1
    with checkpoint.locked(run):
        assert not list(run.glob("*.part"))


@pytest.mark.parametrize("existing", [True, False], ids=["over an older file", "a new file"])
@pytest.mark.parametrize("command", [
    "evaluate --plain --json", "predict --plain --output", pytest.param("report --output", marks=pytest.mark.gate),
])  # fmt: skip
def test_a_command_on_a_full_disk(trained, run, tmp_path, capsys, command, existing):
    images, _ = trained
    (folder := tmp_path / "outputs").mkdir()
    name, *options = command.split()
    inputs = [images / "test/images/test0.png"] * (name == "predict")
    words = [name, run, *inputs, *options, folder / "result.json" if name == "evaluate" else folder]
    if existing:
        assert cli.main(list(map(str, words))) == 0
        for path in folder.iterdir():
            path.write_bytes(b"an older file")
    before = contents(tmp_path)
    with file_limit(20):
        assert "File too large" in sentence(capsys, *words)
    assert contents(tmp_path) == before
