"""The check of `make experiment`: the ROC area is large enough, and above Frangi's with intervals apart."""

from __future__ import annotations

from ..metrics.table import interval


def roc(figures: dict) -> dict:
    """The pooled ROC area in the field of view: "value", "low", "high"."""
    return figures["regions"]["field"]["areas"]["pooled"]["roc_auc"]


def apart(model: dict, baseline: dict) -> bool:
    """True if the model's interval lies above the baseline's; without intervals nothing is shown."""
    return model["low"] is not None and baseline["high"] is not None and model["low"] > baseline["high"]


def problems(name: str, figures: dict, baseline: dict, required: float) -> list[str]:
    """Returns a sentence for each requirement that a run's ROC area does not meet."""
    model, filtered = roc(figures), roc(baseline)
    sentences = []
    if model["value"] is None or model["value"] < required:
        sentences.append(f"{name}: expected a ROC area of at least {required:g}, got {interval(model)}")
    if not apart(model, filtered):
        sentences.append(
            f"{name}: expected a ROC area above that of Frangi's filter with intervals apart, got {interval(model)} "
            f"and {interval(filtered)}" + ("; one image has no interval" if model["low"] is None else "")
        )
    return sentences
