"""The training program: fused and plain give the same losses; options, learning rate, patches, the network."""

import json

import pytest
import torch
import vessel_images

from atrous import audit_dilation
from examples.vessels import checkpoint, cli, config, dataset, network, training


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return vessel_images.draw(tmp_path_factory.mktemp("images"))


def options(folder, run, *more, **changes):
    args = cli.parser().parse_args(vessel_images.arguments("train", folder, run, *more, **changes))
    return config.from_arguments(args)


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-9), ("float32", 1e-3)])
def test_fused_and_plain_have_the_same_losses(folder, tmp_path, dtype, tolerance):
    losses = []
    for more in ([], ["--plain"]):
        chosen = options(folder, tmp_path / str(len(more)), *more, dtype=dtype, steps=20, epochs=1)
        training.train(chosen, shown=False)
        losses.append(torch.tensor(json.loads((chosen.folder / "history.json").read_text())["losses"]))
    assert len(losses[0]) == 20 and losses[0][-5:].mean() < losses[0][:5].mean()
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=tolerance)


def test_a_run_leaves_its_configuration_and_a_line_for_each_epoch(folder, tmp_path, capsys):
    chosen = options(folder, tmp_path, "--plain", epochs=2, decay=0.5, act="leaky_relu", slope="1/5.5")
    model = training.train(chosen)
    written = json.loads((tmp_path / "config.json").read_text())
    assert config.Config.from_dict(written["options"]) == chosen
    assert written["validation_images"] == ["train2"] and written["head"]["holes"] == 0
    history = json.loads((tmp_path / "history.json").read_text())
    assert [line["step"] for line in history["epochs"]] == [5, 10] and len(history["losses"]) == 10
    assert history["epochs"][1]["lr"] == 0.01 / (1 + 0.5 * 9)
    assert 0 <= history["epochs"][1]["validation_roc_auc"] <= 1
    slopes = {module.negative_slope for module in model.modules() if isinstance(module, torch.nn.LeakyReLU)}
    assert slopes == {1 / 5.5}
    printed = capsys.readouterr().out
    assert "slope        0.18181818181818182  (default 0.01)" in printed and "epoch 2/2: loss" in printed


def test_batches_depend_on_seed_epoch_and_process(folder, tmp_path):
    chosen = options(folder, tmp_path)
    sampler = dataset.load_run(chosen).train.sampler(chosen.patch)
    first = torch.cat([x for x, _ in dataset.batches(sampler, chosen, 0, 0)])
    assert first.shape == (5 * 4, 1, 24, 24)
    assert torch.equal(first, torch.cat([x for x, _ in dataset.batches(sampler, chosen, 0, 0)]))
    for epoch, rank in ((1, 0), (0, 1)):
        assert not torch.equal(first, torch.cat([x for x, _ in dataset.batches(sampler, chosen, epoch, rank)]))


@pytest.mark.parametrize("stages, backbone, act", [(1, "resnet18", "rrelu"), (2, "resnet34", "prelu")])
def test_the_network_keeps_the_resolution_and_dilates_the_head_alone(stages, backbone, act):
    model = network.build(config.Config(stages=stages, backbone=backbone, act=act, width=8))
    assert model.stride == stages and model(torch.rand(2, 1, 32, 40)).shape == (2, 1, 32, 40)
    dilated = {
        name for name, m in model.named_modules() if isinstance(m, torch.nn.Conv2d) and m.dilation != (1, 1)
    }  # fmt: skip
    assert len(dilated) == 2 and all(name.startswith("head.") for name in dilated)


def test_rates_that_read_padding_are_refused_with_the_fraction():
    network.check_rates(config.Config(rates=(1, 2, 9)))
    layers = audit_dilation((9, 9, 9), 24).layers
    fraction = sum(layer.padding_share for layer in layers) / 3
    with pytest.raises(config.RunError, match=f"{fraction:.1%} of the head's taps.*24x24.*at most 35%"):
        network.check_rates(config.Config(rates=(9, 9, 9)))
    network.check_rates(config.Config(rates=(9, 9, 9), stages=1))


def test_options_are_parsed():
    args = cli.parser().parse_args(["train", "--rates", "none", "--slope", "1/5.5", "--decay", "1e-4"])
    chosen = config.from_arguments(args)
    assert (chosen.rates, chosen.slope, chosen.decay) == ((1, 1, 1), 1 / 5.5, 1e-4)
    assert config.from_arguments(cli.parser().parse_args(["train"])) == config.Config()
    with pytest.raises(SystemExit):
        cli.parser().parse_args(["train", "--rates", "1,0"])


def test_the_network_is_that_of_the_best_epoch(folder, tmp_path, monkeypatch):
    areas = iter([0.6, 0.9, 0.9, None, 0.7])
    weights = []

    def validate(run):
        weights.append({name: value.clone() for name, value in run.model.state_dict().items()})
        return 1.0, next(areas)

    monkeypatch.setattr(training.Run, "_validate", validate)
    model = training.train(options(folder, tmp_path, "--plain", epochs=3), shown=False)
    assert training.train(options(folder, tmp_path, "--plain", epochs=5), shown=False).state_dict().keys()
    saved = checkpoint.load(tmp_path)
    assert saved.epochs == 5 and saved.best_epoch == 2
    for network_ in (model, saved.network()):
        assert all(torch.equal(value, weights[1][name]) for name, value in network_.state_dict().items())
    assert any(not torch.equal(value, weights[1][name]) for name, value in saved.model.items())


def test_without_areas_the_last_epoch_is_the_best(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(training.Run, "_validate", lambda run: (1.0, None))
    training.train(options(folder, tmp_path, "--plain", epochs=2), shown=False)
    saved = checkpoint.load(tmp_path)
    assert saved.best_epoch == 2 and all(torch.equal(value, saved.best[name]) for name, value in saved.model.items())
