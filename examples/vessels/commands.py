"""The commands on a checkpoint: evaluate it on a split, predict images, export it as a package for C++."""

from __future__ import annotations

import argparse
import dataclasses
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

import atrous
from atrous.core import files
from atrous.tools.export.export import BACKENDS, export

from . import checkpoint, metrics
from .checkpoint import Checkpoint
from .config import RunError, count
from .data import cut, describe
from .data.read import Problems, read_image
from .dataset import Images, load_split
from .distributed import resolve
from .inference import Way, predictions, probability


def add_inference(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--patches", action="store_true", help="average overlapping patches instead of one pass")
    stride = f"pixels between two patches (default {cut.STRIDE})"
    parser.add_argument("--stride", type=count, default=cut.STRIDE, metavar="N", help=stride)
    parser.add_argument("--plain", action="store_true", help="without fusing")
    parser.add_argument("--device", default="auto", metavar="NAME", help="cpu, cuda, cuda:1 (default: a GPU if any)")


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint.pt, or a run's folder")
    parser.add_argument("--data", metavar="DIR", help="data folder (default: the run's)")
    splits = "test, or validation, the images that training held out (default test)"
    parser.add_argument("--split", choices=("test", "validation"), default="test", metavar="NAME", help=splits)
    parser.add_argument("--partial", action="store_true", help="take what is there of a published data set")
    parser.add_argument("--json", type=Path, metavar="FILE", help="default: SPLIT.json beside the checkpoint")
    add_inference(parser)


def add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint.pt, or a run's folder")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="images; no annotation is needed")
    parser.add_argument("--output", type=Path, default=Path("."), metavar="DIR", help="default: the current folder")
    add_inference(parser)


def add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint.pt, or a run's folder")
    parser.add_argument("--output", type=Path, metavar="FILE.pt2", help="default: model.pt2 beside the checkpoint")
    parser.add_argument("--size", type=count, nargs=2, metavar=("H", "W"), help="of its input (default: a patch)")
    parser.add_argument("--backend", choices=BACKENDS, default="native", metavar="NAME", help=", ".join(BACKENDS))


def evaluate(args: argparse.Namespace) -> None:
    """Prints every figure of a split and writes it as JSON; the second threshold is that of the validation images."""
    saved, path = checkpoint.load(args.checkpoint), checkpoint.file_of(args.checkpoint)
    config = saved.config if args.data is None else dataclasses.replace(saved.config, data=args.data)
    config = dataclasses.replace(config, partial=config.partial or args.partial)
    images = load_split(config, saved.preparation, args.split)
    print(describe(images.samples), flush=True)
    images = _annotated(images, args.split)
    model, way = _ready(saved, args), _way(saved, args)
    try:
        result = metrics.evaluate(predictions(model, images, way), _validation(saved, args, model, way))
    except ValueError as error:
        raise RunError(str(error)) from error
    result |= {
        "checkpoint": str(path), "options": saved.config.as_dict(), "epochs": saved.epochs,
        "best_epoch": saved.best_epoch, "split": args.split,
        "data": config.data, "inference": str(way), "description": describe(images.samples).splitlines(),
        "synthetic": any(sample.synthetic for sample in images.samples),
    }  # fmt: skip
    output = args.json or path.with_name(f"{args.split}.json")
    print(f"{way}\n{metrics.render(result)}", flush=True)
    checkpoint.write_json(output, result)
    print(f"written: {output}")


def predict(args: argparse.Namespace) -> None:
    """Writes NAME_vessels.png for each image: 8 bits, the probability times 255."""
    outputs = [args.output / f"{path.stem}_vessels.png" for path in args.images]
    if len(set(outputs)) < len(outputs):
        raise RunError("IMAGE: expected images of different names, since their results go into one folder")
    images = [_read(path) for path in args.images]
    saved = checkpoint.load(args.checkpoint)
    model, way = _ready(saved, args), _way(saved, args)
    args.output.mkdir(parents=True, exist_ok=True)
    for image, output in zip(images, outputs):
        values = probability(model, saved.preparation(image), way)
        files.write(output, _png(np.round(values * 255).astype(np.uint8)))
        print(f"written: {output} ({way}; the mean probability is {values.mean():.4f})", flush=True)


def export_package(args: argparse.Namespace) -> None:
    """Writes the package of `python -m atrous export`: prepared images in, probabilities out."""
    saved, path = checkpoint.load(args.checkpoint), checkpoint.file_of(args.checkpoint)
    output = args.output or path.with_name("model.pt2")
    if output.suffix != ".pt2":
        raise RunError(f"--output: expected a name that ends in .pt2, got {str(output)!r}")
    height, width = args.size or (saved.config.patch,) * 2
    model = nn.Sequential(saved.network(), nn.Sigmoid()).eval()
    example = torch.rand(2, 1, height, width, dtype=getattr(torch, saved.config.dtype))
    about = {
        "model": "vessels", "input": f"1x{height}x{width}", "batch": "any", "dtype": saved.config.dtype,
        "preparation": "grey, standardised, CLAHE, gamma 1.2, as examples/vessels/data/preprocess.py",
        "mean": repr(saved.preparation.mean), "deviation": repr(saved.preparation.deviation),
    }  # fmt: skip
    try:
        exported = export(model, example, output, backend=args.backend, about=about)
    except RuntimeError as error:
        raise RunError(f"export: {str(error).strip().splitlines()[0]}") from error
    fused, total = exported.report.counts
    print(
        f"written: {output} ({output.stat().st_size / 1e6:.1f} MB; layers fused {fused}/{total}; largest difference "
        f"from the unfused model {exported.difference:.2g}; input {about['input']}, prepared images)"
    )


def _png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="png")
    return stream.getvalue()


def _read(path: Path) -> np.ndarray:
    """Returns (H, W, 3) uint8. Raises RunError with the reader's sentence."""
    problems = Problems(path.parent)
    image = read_image(path, problems)
    if image is None:
        raise RunError(f"{path.parent / problems.lines[0].strip()}")
    return image


def _annotated(images: Images, split: str) -> Images:
    there = [i for i, sample in enumerate(images.samples) if sample.truth is not None]
    if not there:
        raise RunError(
            f"the {split} images have no annotations: predict works on them, and evaluate with --split validation "
            "works on the images that training held out"
        )
    return Images([images.samples[i] for i in there], [images.prepared[i] for i in there])


def _validation(saved: Checkpoint, args: argparse.Namespace, model: nn.Module, way: Way):
    """The run's validation images as predicted, for the threshold; None if they are what is evaluated or are gone."""
    if args.split == "validation":
        return None
    try:
        return predictions(model, load_split(saved.config, saved.preparation, "validation"), way)
    except (RunError, ValueError, OSError) as error:
        print(f"no threshold from validation images: {str(error).splitlines()[0]}", flush=True)
        return None


def _ready(saved: Checkpoint, args: argparse.Namespace) -> nn.Module:
    model = saved.network().to(resolve(args.device))
    return model if args.plain else atrous.fuse(model)


def _way(saved: Checkpoint, args: argparse.Namespace) -> Way:
    if args.patches and args.stride > saved.config.patch:
        raise RunError(f"--stride: expected at most the patch's side, {saved.config.patch}, got {args.stride}")
    return Way(saved.config.patch, args.stride) if args.patches else Way()
