"""Exports a checkpoint for C++, builds the C++ example, and classifies one photograph in Python and in C++.

    python examples/cpp/compare.py --folder out/cpp

Each command is printed before it runs. The checkpoint is random, so no download is needed and the classes mean nothing.
Exits with status 1 if the two programs print different results.
"""

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image

import atrous
from atrous.tools.demo.images import photographs, shipped

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = Path(atrous.__file__).with_name("libatrous.so")


def show(*command, environment: dict[str, str] | None = None) -> str:
    """Prints and runs a command; returns its standard output."""
    words = [os.path.relpath(word) if isinstance(word, Path) else word for word in command]
    prefix = ["env", "-i"] if environment is not None else []
    print("$", shlex.join([*prefix, *words]), flush=True)
    done = subprocess.run(list(map(str, command)), env=environment, stdout=subprocess.PIPE, text=True)
    print(done.stdout, end="", flush=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def checkpoint(path: Path, seed: int = 0) -> None:
    """Saves a random ResNet34 with distinct class probabilities: BatchNorms saw photographs, scores are scaled."""
    torch.manual_seed(seed)
    model = atrous.models.resnet34(act="relu")
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the plain average
    with torch.no_grad():
        model(photographs(shipped()))
        model.fc.weight.mul_(8)
    torch.save(model.state_dict(), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("out/cpp"), help="output folder (default %(default)s)")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    weights, package, photo = folder / "resnet34.pt", folder / "resnet34.pt2", folder / f"{shipped()[0].stem}.ppm"
    checkpoint(weights)
    Image.open(shipped()[0]).convert("RGB").save(photo)

    python = Path(sys.executable)
    show(python, "-m", "atrous", "export", "resnet34", "--weights", weights, "--output", package)
    build = folder / "build"
    show("cmake", "-S", ROOT / "examples" / "cpp", "-B", build, f"-DPython_EXECUTABLE={python}", "--log-level=ERROR")
    show("cmake", "--build", build)
    expected = show(python, ROOT / "examples" / "classify.py", "--weights", weights, photo)
    got = show(build / "classify", LIBRARY, package, photo, environment={})  # no PATH: no Python, no compiler
    if got != expected:
        sys.exit("C++ and Python print different results")
    print("C++ and Python print the same")


if __name__ == "__main__":
    main()
