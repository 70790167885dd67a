"""A user's error ends in one sentence and exit status 2, and nothing of the run is lost."""

import json
import sys

import numpy as np
import pytest
import torch
import vessel_images
from PIL import Image

from examples.vessels import checkpoint, cli, training


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of images and that of a run of one epoch."""
    images, run = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("run")
    command = vessel_images.arguments("train", vessel_images.draw(images), run, "--plain", epochs=1)
    assert cli.main(command) == 0
    return images, run


@pytest.fixture
def fails(capsys):
    """fails(arguments) -> the sentence on stderr."""

    def call(arguments, lines=1):
        capsys.readouterr()
        assert cli.main([str(argument) for argument in arguments]) == 2
        message = capsys.readouterr().err
        assert lines is None or message.count("\n") == lines, message
        return message

    return call


@pytest.mark.parametrize("where", ["loss", "weights"])
def test_a_loss_that_is_nan_leaves_the_last_checkpoint(tmp_path, monkeypatch, fails, where):
    folder, run = vessel_images.draw(tmp_path / "images"), tmp_path / "run"
    step = training.Run._step

    def diverging(self, x, y, number):
        if where == "loss" and number == 7:
            x = x * np.nan
        value = step(self, x, y, number)
        if where == "weights" and number == 9:  # the last step of the second epoch
            next(self.model.parameters()).data.fill_(np.nan)
        return value

    monkeypatch.setattr(training.Run, "_step", diverging)
    message = fails(vessel_images.arguments("train", folder, run, "--plain"))
    number = 8 if where == "loss" else 10
    assert f"the loss became nan at step {number} with lr 0.01; the checkpoint of epoch 1 is kept" in message
    saved = checkpoint.load(run)
    assert saved.epochs == 1 and all(torch.isfinite(value).all() for value in saved.model.values())


def test_data_that_does_not_fit(tmp_path, fails):
    run = tmp_path / "run"
    (tmp_path / "empty").mkdir()
    assert "has no image files" in fails(vessel_images.arguments("train", tmp_path / "empty", run), lines=None)
    assert "no such folder" in fails(vessel_images.arguments("train", tmp_path / "none", run))
    folder = vessel_images.draw(tmp_path / "images")
    assert "none is left to train on" in fails(vessel_images.arguments("train", folder, run, validation=3))
    assert "is 64x64 pixels, a patch 80x80" in fails(vessel_images.arguments("train", folder, run, patch=80))
    Image.fromarray(np.zeros((10, 12), np.uint8)).save(folder / "train/masks/train1.png")
    message = fails(vessel_images.arguments("train", folder, run), lines=2)
    assert "train1.png: is 12x10 pixels, its image is 64x64" in message
    assert not run.exists()


def test_a_checkpoint_of_another_run_is_named_and_kept(trained, tmp_path, fails):
    images, run = trained
    before = (run / "checkpoint.pt").read_bytes()
    message = fails(vessel_images.arguments("train", images, run, "--plain", act="relu", width=16))
    assert "width 8 instead of 16, act prelu instead of relu; give these options" in message
    other = vessel_images.draw(tmp_path, train=4)
    message = fails(vessel_images.arguments("train", other, run, "--plain", epochs=2))
    assert f"instead of {other}" in message
    path = images / "train/images/train0.png"
    unchanged = path.read_bytes()
    Image.fromarray(np.asarray(Image.open(path)) // 2).save(path)
    message = fails(vessel_images.arguments("train", images, run, "--plain", epochs=2))
    path.write_bytes(unchanged)
    assert "expected the training images of the checkpoint, got others" in message
    assert (run / "checkpoint.pt").read_bytes() == before
    assert "does not exist" in fails(vessel_images.arguments("train", images, run / "new", "--resume"))


def test_a_file_that_is_no_checkpoint_of_the_model(trained, tmp_path, fails):
    images, run = trained
    assert "got no such file" in fails(["evaluate", tmp_path / "none.pt"])
    assert "got a file that is not one" in fails(["evaluate", images / "test/images/test0.png"])
    torch.save({"model": {}}, tmp_path / "other.pt")
    assert "got one of another" in fails(["evaluate", tmp_path / "other.pt"])
    saved = checkpoint.load(run)
    saved.best["classifier.weight"] = torch.zeros(1, 5, 1, 1)
    checkpoint.save(saved, tmp_path / "wide.pt")
    message = fails(["evaluate", tmp_path / "wide.pt"])
    assert "of another model: classifier.weight is (1, 5, 1, 1) instead of (1, 16, 1, 1)" in message


def test_options_that_cannot_run(trained, monkeypatch, fails, tmp_path):
    images, _ = trained
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    command = vessel_images.arguments("train", images, tmp_path / "run")
    assert "pip install tensorboard" in fails([*command, "--tensorboard"])
    assert "--amp fp16: expected a GPU" in fails([*command, "--amp", "fp16"])
    assert "--device: expected auto, cpu, cuda or cuda:1, got 'gpu'" in fails([*command, "--device", "gpu"])
    assert "69.1% of the head's taps" in fails([*command, "--rates", "8,8"])


def test_images_without_annotation_can_be_predicted(trained, tmp_path, capsys, fails):
    _, run = trained
    bare = vessel_images.draw(tmp_path / "bare", annotated=False)
    assert "predict works on them" in fails(["evaluate", run, "--data", bare])
    image = bare / "test/images/test0.png"
    assert cli.main(["predict", str(run), str(image), "--output", str(tmp_path), "--plain"]) == 0
    assert Image.open(tmp_path / "test0_vessels.png").size == (64, 64)
    assert "different names" in fails(["predict", run, image, image])
    assert "cannot be read" in fails(["predict", run, run / "config.json"])
    assert json.loads((run / "config.json").read_text())["parameters"] > 0


def test_two_processes_do_not_train_in_one_folder(trained, tmp_path, fails):
    images, _ = trained
    run = tmp_path / "run"
    run.mkdir()
    with checkpoint.locked(run):
        message = fails(vessel_images.arguments("train", images, run, "--plain"))
    assert "another process trains there; wait for it or give another --output" in message
    assert not (run / "checkpoint.pt").exists()


def test_a_run_that_another_process_went_on_with_is_kept(trained, tmp_path, fails, monkeypatch):
    images, _ = trained
    command = vessel_images.arguments("train", images, tmp_path, "--plain", epochs=1)
    load = training.load_run

    def trained_meanwhile(config):
        monkeypatch.setattr(training, "load_run", load)
        assert cli.main(command) == 0
        return load(config)

    monkeypatch.setattr(training, "load_run", trained_meanwhile)
    assert "another process trained there since this one began; run the command again" in fails(command)
    assert checkpoint.load(tmp_path).epochs == 1
