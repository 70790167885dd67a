"""Classify photographs with a frozen, fused ResNet34.

    python examples/classify.py --weights resnet34.pth photo.jpg ...

The checkpoint has torchvision's parameter names, as torchvision's resnet34 has. Without a checkpoint the weights are
random and the classes mean nothing.
"""

import argparse
import sys
from pathlib import Path

import numpy
import torch
from PIL import Image

import atrous

MEAN, DEVIATION = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


def load(path: Path) -> torch.Tensor:
    """Returns (3, 224, 224): the shorter side scaled to 256, cropped to the center, normalized as for ImageNet.

    Uses torch's operators, so that `prepare` in cpp/classify.cpp gives the same values.
    """
    pixels = torch.from_numpy(numpy.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
    height, width = (side * 256 // min(pixels.shape[1:]) for side in pixels.shape[1:])
    image = torch.nn.functional.interpolate(pixels[None].float(), (height, width), mode="bilinear", antialias=True)[0]
    top, left = (height - 224) // 2, (width - 224) // 2
    return (image[:, top : top + 224, left : left + 224] / 255 - MEAN) / DEVIATION


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--weights", type=Path, help="a .pth, .pt or .safetensors file")
    args = parser.parse_args()

    model = atrous.models.resnet34(act="relu").eval()
    if args.weights:
        atrous.models.load_weights(model, args.weights)
    else:
        print("no --weights: the weights are random and the classes mean nothing", file=sys.stderr)

    # freeze=True folds each BatchNorm into its convolution, for inference only.
    device = "cuda" if torch.cuda.is_available() else "cpu"
    fast = atrous.fuse(model.to(device), freeze=True)

    images = torch.stack([load(path) for path in args.images]).to(device, memory_format=torch.channels_last)
    with torch.inference_mode():
        top = fast(images).softmax(1).topk(5)
    for path, scores, classes in zip(args.images, top.values.tolist(), top.indices.tolist()):
        print(path, *(f"{number} ({score:.1%})" for score, number in zip(scores, classes)), sep="  ")


if __name__ == "__main__":
    main()
