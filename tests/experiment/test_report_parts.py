"""The parts of a report: dead channels and slopes by depth, costs, the error map, the difference of data."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from examples.vessels import network
from examples.vessels.config import Config
from examples.vessels.data import Sample
from examples.vessels.inference import Way
from examples.vessels.metrics import Prediction, published
from examples.vessels.report import comparable, cost, image_row
from examples.vessels.report.layers import layers, slope_sentence

# The mean is 0, so that no channel dies by chance.
IMAGES = list(np.random.default_rng(0).standard_normal((2, 32, 32), np.float32))


def plant(model, channel):
    """Makes a channel of the first activation dead, and returns the model for evaluation."""
    with torch.no_grad():
        model.bn1.weight[channel], model.bn1.bias[channel] = 0.0, -1.0
    return model.eval()


@pytest.mark.parametrize("act", ["relu", "prelu", "leaky_relu"])
def test_a_planted_dead_channel_is_counted(act):
    config = Config(width=8, rates=(1, 2), act=act)
    before = layers(network.build(config).eval(), IMAGES)
    after = layers(plant(network.build(config), 3), IMAGES)
    assert after[0].name == "act1" and after[0].channels == 8
    assert (before[0].dead, after[0].dead) == (0, 1) and after[0].fraction == 1 / 8
    assert after[-1].name == "head.act" and len(after) == len(before)


def test_a_channel_that_one_pixel_of_one_image_needs_is_alive():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU())
    with torch.no_grad():
        model[0].weight[:], model[0].bias[:] = 1.0, torch.tensor([-0.5, -2.0])
    images = [np.zeros((4, 4), np.float32) for _ in range(2)]
    assert layers(model, images)[0].dead == 2
    images[1][3, 1] = 0.6
    assert layers(model, images)[0].dead == 1


def test_slopes_are_listed_in_the_order_of_the_forward_pass():
    model = network.build(Config(width=8, rates=(1, 2), act="prelu")).eval()
    with torch.no_grad():
        model.act1.weight[:] = torch.linspace(0.5, 0.9, 8)
    depth = layers(model, IMAGES)
    first = depth[0].slopes
    assert (first.min, first.mean, first.max) == pytest.approx((0.5, 0.7, 0.9)) and first.channels == 8
    assert all(layer.slopes is not None for layer in depth)
    assert "first layer is 0.700" in slope_sentence(depth) and "is farther from 0 than" in slope_sentence(depth)
    plain = layers(network.build(Config(width=8, rates=(1, 2), act="relu")).eval(), IMAGES)
    assert slope_sentence(plain) is None and plain[0].slopes is None


def history(*losses, seconds=1.0):
    lines = [{"epoch": i + 1, "loss": loss, "seconds": seconds} for i, loss in enumerate(losses)]
    return {"epochs": lines}


def test_epochs_to_a_loss():
    histories = [history(0.9, 0.5, 0.2), history(0.8, 0.3, 0.4)]
    assert cost.common_loss(histories, "loss") == 0.3
    assert [cost.epochs_to(one, "loss", 0.3) for one in histories] == [3, 2]
    assert cost.epochs_to(histories[1], "loss", 0.1) is None and cost.common_loss([history()], "loss") is None
    assert cost.seconds(history(1, 1, seconds=2.0)) == 2.0 and cost.seconds(history()) is None


def test_fused_runs_are_paired_with_plain_ones_of_the_same_options():
    configs = [Config(), Config(plain=True, output="other"), Config(plain=True, act="relu"), Config(act="relu", seed=1)]
    assert cost.pairs(configs) == [(0, 1)]


@pytest.mark.parametrize("act, most", [("prelu", 0.75), ("relu", 0.85)])
def test_a_fused_step_saves_fewer_bytes(act, most):
    config = Config(width=8, batch=4, patch=24, rates=(1, 2), act=act)
    assert 0 < cost.saved_bytes(config, plain=False) <= most * cost.saved_bytes(config, plain=True)


def test_the_error_map_has_a_colour_for_each_kind():
    truth = np.array([[True, True, False, False, True]])
    probability = np.array([[0.9, 0.1, 0.9, 0.1, 0.9]])
    field = np.array([[True, True, True, True, False]])
    colours = image_row.error_map(Prediction("a", probability, truth, field))
    expected = [image_row.RIGHT, image_row.MISSED, image_row.EXTRA, (1, 1, 1), (0, 0, 0)]
    np.testing.assert_allclose(colours[0], expected)


def run(name, count, **about):
    mask = np.ones((4, 4), bool)
    samples = [Sample(str(i), np.zeros((4, 4, 3), np.uint8), mask, None, mask, **about) for i in range(count)]
    synthetic = about.get("synthetic", False)
    return SimpleNamespace(name=name, test=SimpleNamespace(samples=samples), synthetic=synthetic)


def test_the_difference_of_data_is_said_first():
    figures = published.load()
    drawn, drive = run("drawn", 2, synthetic=True), run("drive", 20, source="DRIVE, test")
    sentences = comparable.data_sentences([drawn, drive], figures, Way())
    assert sentences[0].startswith("SYNTHETIC images: every number and picture of drawn is of generated images")
    assert "Inference here: whole images" in sentences[-1]
    first, second, *others = comparable.comparable_sentences([drawn, drive], figures)
    assert "drawn: other images, so no published figure is comparable" in first
    assert "drive: the same images" in second and "4,538,143 pixels" in second
    assert figures.jaccard_note in others
    for changed in (run("part", 19, source="DRIVE, test"), run("view", 20, source="DRIVE, test", field_estimated=True)):
        assert not comparable.is_published_data(changed)
