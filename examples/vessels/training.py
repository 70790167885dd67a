"""Train a network: the loop over epochs, from the run's checkpoint if it has one.

Each epoch seeds patches, dropout and RReLU from the run's seed, its own number and the rank, and ends with a
checkpoint. A run that was killed therefore repeats its last epoch alone, with the numbers of an unbroken run.
"""

from __future__ import annotations

import contextlib
import math
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import atrous

from . import checkpoint, network, record
from .config import Config, Diverged, RunError
from .dataset import RunData, batches, load_run
from .distributed import Process, process, resolve
from .inference import predictions
from .metrics import areas
from .metrics.prediction import Prediction, pool
from .network import VesselNet
from .progress import Progress

SMALL = 1e-7  # probabilities in a validation loss are at least this far from 0 and 1


def train(config: Config, data: RunData | None = None, resume: bool = False, shown: bool = True) -> VesselNet:
    """Trains, or goes on from the checkpoint in config.folder; returns the plain network of the best epoch, on the CPU.

    data: the images, if they are loaded. resume: there must be a checkpoint. shown: prints options and progress.

    Raises RunError, DataError.
    """
    network.check_rates(config)
    _check_precision(config)
    if config.tensorboard:
        record.check_tensorboard()
    with process(config.device) as here:
        start = _saved(config, resume)
        shown = shown and here.first
        if shown:
            print(f"options:\n{config.text()}\n{record.head(config)}", flush=True)
        data = data or load_run(config)
        run = Run(config, data, here, start)
        with contextlib.ExitStack() as stack:
            if problem := here.from_first(_enter(run, stack) if here.first else None):
                raise RunError(problem)
            if shown:
                print(f"{data.text}\n{run.where()}", flush=True)
            run.epochs(Progress(config.steps, config.epochs, run.state.epochs, shown))
    return run.state.network()


class Run:
    """A network, its optimizer and the state that is saved; `epochs` trains what is left."""

    def __init__(self, config: Config, data: RunData, here: Process, saved: checkpoint.Checkpoint | None):
        if saved and saved.preparation != data.preparation:
            raise RunError(
                f"{config.data or 'synthetic images'}: expected the training images of the checkpoint, got others: "
                f"their mean grey level is {data.preparation.mean:.4f} instead of {saved.preparation.mean:.4f}"
            )
        self.config, self.data, self.here = config, data, here
        self.state = saved or checkpoint.Checkpoint(config, data.preparation)
        self.state.config = config
        self.sampler = data.train.sampler(config.patch)
        model = network.build(config).to(here.device)
        if not config.plain:  # the layout that fused convolutions are fastest in
            model = model.to(memory_format=torch.channels_last)
        if here.world > 1 and here.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.model = model
        self.optimizer = torch.optim.SGD(
            atrous.param_groups(model, config.weight_decay), lr=config.lr, momentum=config.momentum
        )
        self.scaler = torch.amp.GradScaler(here.device.type, enabled=config.amp == "fp16")
        if saved:
            checkpoint.load_into(model, saved.model, f"{config.folder / checkpoint.NAME}")
            self.optimizer.load_state_dict(saved.optimizer)
            self.scaler.load_state_dict(saved.scaler)
        self.fused = model if config.plain else atrous.fuse(model)
        self.trained = here.wrap(self.fused)

    def where(self) -> str:
        parameters = sum(p.numel() for p in self.model.parameters())
        kind = "plain" if self.config.plain else "fused"
        after = f", from the checkpoint behind epoch {self.state.epochs}" if self.state.epochs else ""
        return f"{parameters:,} parameters, {kind}, {self.here.world} x {self.here.device}{after}"

    def epochs(self, progress: Progress) -> None:
        with record.board(self.config, self.here.first) as board:
            for epoch in range(self.state.epochs, self.config.epochs):
                progress.begin(epoch)
                try:
                    line = self._epoch(epoch, progress)
                finally:
                    progress.close()
                self._keep()
                if self.here.first:
                    self._save()
                    board(line)
                progress.end(line)

    def _epoch(self, epoch: int, progress: Progress) -> dict:
        """Trains and validates; returns the epoch's line of the history, which it adds to the state."""
        seed_epoch(self.config.seed, epoch, self.here.rank)
        start, losses = time.monotonic(), []
        self.trained.train()
        for x, y in batches(self.sampler, self.config, epoch, self.here.rank):
            number = epoch * self.config.steps + len(losses)
            losses.append(self._step(x.to(self.here.device), y.to(self.here.device), number))
            progress.step(losses[-1])
        self._check_finite(number, rate(self.config, number))
        trained = time.monotonic()
        loss, area = self.here.from_first(self._validate() if self.here.first else None)
        line = {
            "epoch": epoch + 1, "step": number + 1, "loss": float(np.mean(losses)), "validation_loss": loss,
            "validation_roc_auc": area, "lr": rate(self.config, number), "seconds": trained - start,
            "validation_seconds": time.monotonic() - trained,
        }  # fmt: skip
        self.state.history["epochs"].append(line)
        self.state.history["losses"] += losses
        self.state.epochs = epoch + 1
        return line

    def _step(self, x: Tensor, y: Tensor, number: int) -> float:
        """One step of SGD; returns the loss, the mean over all processes. Raises Diverged if it is not finite."""
        lr = rate(self.config, number)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.config.amp)
        with torch.autocast(self.here.device.type, dtype, enabled=dtype is not None):
            logits = self.trained(x)
        loss = F.binary_cross_entropy_with_logits(logits.to(y.dtype), y)
        value = self.here.mean(loss).item()
        if not math.isfinite(value):
            raise Diverged(_stopped(value, number, lr, self.state))
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return value

    def _check_finite(self, number: int, lr: float) -> None:
        """Raises Diverged if the last step left weights or statistics that are not finite, before they are saved."""
        tensors = [value for value in self.model.state_dict().values() if value.is_floating_point()]
        if not all(bool(torch.isfinite(value).all()) for value in tensors):
            raise Diverged(_stopped(math.nan, number, lr, self.state))

    def _validate(self) -> tuple[float, float | None]:
        """Returns loss and ROC area over the fields of view of the validation images, in one pass over each."""
        self.fused.eval()
        return figures(predictions(self.fused, self.data.validation))

    def _keep(self) -> None:
        """Takes over the state behind an epoch, whose line is in the history."""
        self.state.model = self.model.state_dict()
        self.state.optimizer, self.state.scaler = self.optimizer.state_dict(), self.scaler.state_dict()
        if self.state.best_epoch == self.state.epochs:
            self.state.best = {name: value.cpu().clone() for name, value in self.state.model.items()}

    def _save(self) -> None:
        """Writes the checkpoint, then history.json from it."""
        checkpoint.save(self.state, self.config.folder / checkpoint.NAME)
        checkpoint.write_json(self.config.folder / record.HISTORY, self.state.history)


def rate(config: Config, step: int) -> float:
    """lr / (1 + decay * step), time-based decay."""
    return config.lr / (1 + config.decay * step)


def seed_epoch(seed: int, epoch: int, rank: int) -> None:
    """Seeds torch's generators of all devices for an epoch of a process."""
    torch.manual_seed(int(np.random.SeedSequence((seed, epoch, rank)).generate_state(1, np.uint64)[0] >> 1))


def figures(images: list[Prediction]) -> tuple[float, float | None]:
    """Returns the mean binary cross-entropy and the ROC area over all fields of view; None without both classes."""
    truth, score = pool(images, "field")
    likely = np.clip(np.where(truth, score, 1 - score.astype(np.float64)), SMALL, 1)
    return float(-np.log(likely).mean()), areas(truth, score)[0]["roc_auc"]


def _saved(config: Config, resume: bool) -> checkpoint.Checkpoint | None:
    path = config.folder / checkpoint.NAME
    if not path.exists():
        if resume:
            raise RunError(f"--resume: {path} does not exist; without --resume the run begins")
        return None
    saved = checkpoint.load(path)
    checkpoint.check_same_run(saved.config, config)
    return saved


def _enter(run: Run, stack: contextlib.ExitStack) -> str:
    """Locks the run's folder and writes its configuration; returns why the run cannot begin, or ""."""
    folder = run.config.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(checkpoint.locked(folder))
        saved = _saved(run.config, resume=False)
    except RunError as error:
        return str(error)
    if (saved.epochs if saved else 0) != run.state.epochs:
        return f"{folder}: another process trained there since this one began; run the command again"
    record.write_config(run.config, run.data, run.model)
    return ""


def _check_precision(config: Config) -> None:
    if config.amp == "fp16" and resolve(config.device).type != "cuda":
        raise RunError("--amp fp16: expected a GPU, whose gradients are scaled; bf16 also runs on a CPU")
    if config.amp != "none" and config.dtype != "float32":
        raise RunError(f"--amp {config.amp}: expected --dtype float32, got {config.dtype}")


def _stopped(value: float, step: int, lr: float, state: checkpoint.Checkpoint) -> str:
    left = f"the checkpoint of epoch {state.epochs} is kept" if state.epochs else "no epoch was finished"
    return f"the loss became {value} at step {step + 1} with lr {lr:.3g}; {left}; a smaller --lr may help"
