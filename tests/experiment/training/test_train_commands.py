"""evaluate, predict and export on the checkpoint of a tiny run."""

import json

import numpy as np
import pytest
import torch
import vessel_images
from PIL import Image

from atrous.core.torch_compat import load_package
from examples.vessels import checkpoint, cli, dataset, inference, metrics


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of images and that of a run of two epochs."""
    images, run = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("run")
    command = vessel_images.arguments("train", vessel_images.draw(images, test=2), run, "--plain", epochs=2)
    assert cli.main(command) == 0
    return images, run


def test_evaluate_prints_and_writes_the_metrics(trained, tmp_path, capsys):
    _, run = trained
    output = tmp_path / "result.json"
    assert cli.main(["evaluate", str(run), "--plain", "--json", str(output)]) == 0
    result, printed = json.loads(output.read_text()), capsys.readouterr().out
    assert metrics.render(result) in printed and result["split"] == "test" and result["epochs"] == 2
    saved = checkpoint.load(run)
    model = saved.network()
    parts = [dataset.load_split(saved.config, saved.preparation, split) for split in ("test", "validation")]
    expected = metrics.evaluate(*(inference.predictions(model, part) for part in parts))
    assert result["images"] == ["test0", "test1"] and result["regions"] == json.loads(json.dumps(expected["regions"]))
    assert result["inference"] == "whole images" and result["synthetic"] is False


def test_evaluate_with_patches_on_the_validation_images(trained, capsys):
    _, run = trained
    words = ["--plain", "--patches", "--stride", "12", "--split", "validation"]
    assert cli.main(["evaluate", str(run), *words]) == 0
    result = json.loads((run / "validation.json").read_text())
    assert result["images"] == ["train2"] and result["inference"] == "patches of 24, stride 12"
    assert result["thresholds"]["validation"] is None
    assert cli.main(["evaluate", str(run), "--plain", "--patches", "--stride", "25"]) == 2
    assert "--stride: expected at most the patch's side, 24, got 25" in capsys.readouterr().err


def test_patches_and_one_pass_differ_at_borders_alone(trained):
    saved = checkpoint.load(trained[1])
    model, draw = saved.network(), np.random.default_rng(0)
    image = draw.random((95, 97), np.float32)
    whole = inference.probability(model, image)
    single = inference.probability(model, np.ascontiguousarray(image[:48, :48]), inference.Way(48, 48))
    assert whole.shape == image.shape and whole.dtype == np.float32
    # Within its receptive field a patch is computed as the image is; the border of the patch reads padding.
    np.testing.assert_allclose(single[:16, :16], whole[:16, :16], atol=1e-6)
    assert np.abs(single[-8:] - whole[40:48, :48]).max() > 1e-4


def test_predict_writes_the_probabilities(trained, tmp_path):
    images, run = trained
    path = images / "test/images/test1.png"
    assert cli.main(["predict", str(run), str(path), "--output", str(tmp_path / "new"), "--plain"]) == 0
    saved = checkpoint.load(run)
    image = saved.preparation(np.asarray(Image.open(path)))
    expected = inference.probability(saved.network(), image)
    written = np.asarray(Image.open(tmp_path / "new/test1_vessels.png"))
    np.testing.assert_allclose(written / 255, expected, atol=0.5 / 255 + 1e-6)


@pytest.mark.gate
def test_export_writes_a_package_with_the_probabilities(trained, tmp_path, capsys):
    _, run = trained
    assert cli.main(["export", str(run), "--output", str(tmp_path / "vessels.pt2")]) == 0
    assert "layers fused" in capsys.readouterr().out
    x = torch.rand(3, 1, 24, 24)
    expected = torch.sigmoid(checkpoint.load(run).network()(x))
    torch.testing.assert_close(load_package(tmp_path / "vessels.pt2")(x), expected, rtol=0, atol=1e-5)
    assert cli.main(["export", str(run), "--output", "model.pt"]) == 2
