"""python -m atrous certify: its table, its JSON, and its exit status when an operator is wrong."""

import json

import pytest
import torch

from atrous import functional, testing
from atrous.tools.certify import errors


@pytest.fixture(autouse=True)
def small_run(monkeypatch):
    """Few cases and dtypes, so that a run takes a second."""
    small = [case for case in testing.CASES if case.name in ("residual", "residual_after")]
    monkeypatch.setattr(errors, "OPERATORS", [operator._replace(cases=small) for operator in errors.OPERATORS])
    monkeypatch.setattr(errors, "DTYPES", (torch.float32, torch.bfloat16))


def test_every_operator_is_within_its_budget(run, tmp_path):
    status, out, err = run("certify", "--json", tmp_path / "errors.json", columns=60)
    assert status == 0 and err == "" and max(map(len, out.splitlines())) <= 60
    assert " are within their budgets" in out and "not here: triton: " in out
    result = json.loads((tmp_path / "errors.json").read_text())
    ran = [result for result in result["results"] if result["backend"] == "library"]
    names = [(operator.name, dtype) for operator in errors.OPERATORS for dtype in ("float32", "bfloat16")]
    assert [(result["operator"], result["dtype"]) for result in ran] == names
    assert all(result["passed"] and result["cases"] == 4 and 0 < result["budget_used"] <= 1 for result in ran)
    assert result["passed"] and result["versions"]["torch"] == torch.__version__


def test_a_wrong_operator_is_named(run, monkeypatch):
    right = functional.bn_act
    monkeypatch.setattr(functional, "bn_act", lambda *tensors, **options: right(*tensors, **options) * 1.02)
    status, out, err = run("certify", "--backend", "library", "--seed", "3")
    assert status == 1 and err == ""
    over = [line.split(", ") for line in out.splitlines() if line.startswith("over")]
    assert [first for first, _ in over] == [
        f"over its budget: bn_act {dtype} library" for dtype in ("float32", "bfloat16")
    ]
    assert {case for _, case in over} <= {"residual", "residual_after"}


@pytest.mark.parametrize("name", ["weight", "bn_bias", "residual"])
def test_a_wrong_gradient_is_named(name, run, monkeypatch):
    """The output is right, and every other gradient."""

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value.view_as(value)

        @staticmethod
        def backward(ctx, grad):
            return grad * 1.5

    right = functional.conv_bn_act
    monkeypatch.setattr(functional, "conv_bn_act", lambda **given: right(**given | {name: Wrong.apply(given[name])}))
    status, out, _ = run("certify", "--backend", "library")
    over = [line.split(", ")[0] for line in out.splitlines() if line.startswith("over")]
    assert status == 1 and over == [f"over its budget: training {dtype} library" for dtype in ("float32", "bfloat16")]


def test_nan_is_an_infinite_error():
    exact = torch.ones(4, dtype=torch.float64)
    assert errors._error(torch.full((4,), torch.nan), exact) == torch.inf
    assert errors._error(torch.ones(3), exact) == torch.inf and errors._error(torch.ones(4), exact) == 0.0


def test_an_unlucky_draw_is_drawn_again(monkeypatch):
    """A budget that only the second draw keeps."""
    draws = iter([2.0, 0.5])
    result = errors._measurement
    monkeypatch.setattr(errors, "_measurement", lambda *call: result(*call)._replace(budget_used=next(draws)))
    operator = errors.OPERATORS[2]._replace(cases=errors.OPERATORS[2].cases[:1])
    call = operator, torch.float32, operator.cases[0], torch.channels_last, ["library"], "cpu"
    assert errors._measure(*call)["library"].budget_used == 0.5


def test_errors_of_a_user(run):
    status, out, err = run("certify", "--backend", "cudnn")
    assert status == 2 and out == "" and err.startswith("atrous certify: ") and "got 'cudnn'" in err
