"""Progress of an epoch with its loss and the time left: a tqdm bar on a terminal, else a line an epoch."""

from __future__ import annotations

import sys
import time
from typing import Any

try:
    from tqdm import tqdm
except ImportError:
    tqdm = None


class Progress:
    """Shows a run's epochs: `begin`, `step` behind each step, `end`. Silent in all processes but the first."""

    def __init__(self, steps: int, epochs: int, done: int, shown: bool = True):
        self.steps, self.epochs, self.done, self.shown = steps, epochs, done, shown
        self.start, self.first = time.monotonic(), done
        self.bar: Any = None

    def begin(self, epoch: int) -> None:
        if self.shown and tqdm is not None and sys.stderr.isatty():
            self.bar = tqdm(total=self.steps, desc=f"epoch {epoch + 1}/{self.epochs}", unit="step", leave=False)

    def step(self, loss: float) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
            self.bar.update()

    def end(self, line: dict[str, Any]) -> None:
        """Prints an epoch's line of the history, and the time that the other epochs will take at this pace."""
        self.close()
        self.done += 1
        pace = (time.monotonic() - self.start) / (self.done - self.first)
        left = pace * (self.epochs - self.done)
        if self.shown:
            area = line["validation_roc_auc"]
            print(
                f"epoch {self.done}/{self.epochs}: loss {line['loss']:.4f}, validation loss "
                f"{line['validation_loss']:.4f}, ROC area {'undefined' if area is None else f'{area:.4f}'}, "
                f"lr {line['lr']:.6f}, {line['seconds']:.1f} s, {clock(left)} left",
                flush=True,
            )

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def clock(seconds: float) -> str:
    """Returns seconds as 1:02:03 or 2:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
