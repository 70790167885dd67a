"""Segments a photograph by the features of a dilated network, which is audited, fused and timed first.

    python examples/segment_features.py --image street.jpg --weights resnet18.pth --output segments.png

The network is plain torch: a ResNet18 whose last stages are dilated instead of strided (output stride 8, rates 1, 2, 5
in turn), ASPP, and a classifier of pixels. The checkpoint is the backbone's and has torchvision's parameter names;
without one the weights are random. Classes are not shown, since nobody has trained the head: the picture has the
photograph, the three principal components of the backbone's features as red, green and blue, and groups of similar
features by k-means, which need no labels. This audits the network alone, run in the root of the repository:

    python -m atrous audit examples.segment_features:network --size 320x480
"""

import argparse
import time
from pathlib import Path

import numpy
import torch
from matplotlib.figure import Figure
from PIL import Image
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from torch import Tensor, nn

import atrous
from atrous.tools.demo.images import DEVIATION, MEAN, shipped

STRIDE = 8  # pixels of the image for each position of the features
RATES = (12, 24, 36)  # ASPP's at this output stride


def network(num_classes: int = 21) -> nn.Module:
    """(N, 3, H, W) -> (N, num_classes, H, W)."""
    backbone = atrous.models.resnet18(output_stride=STRIDE, hdc=(1, 2, 5), features_only=True)
    head = atrous.models.heads.ASPP(backbone.channels[-1], 128, RATES)
    return atrous.models.segmenter(backbone, head, num_classes).eval()


def load(path: Path, size: int) -> tuple[Image.Image, Tensor]:
    """Returns the photograph, its shorter side about `size`, and (1, 3, H, W) normalized as for ImageNet."""
    photo = Image.open(path).convert("RGB")
    factor = size / min(photo.size)
    photo = photo.resize([max(STRIDE, round(side * factor / STRIDE) * STRIDE) for side in photo.size])
    pixels = torch.from_numpy(numpy.array(photo)).permute(2, 0, 1) / 255
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, DEVIATION))
    return photo, ((pixels - mean) / deviation)[None]


def calibrate_(backbone: nn.Module, x: Tensor) -> None:
    """Sets the statistics of each BatchNorm to those of x, without which random features show the borders alone."""
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        backbone.train()(x)
    for norm in norms:
        norm.momentum = 0.1
    backbone.eval()


def audit(model: nn.Module, x: Tensor) -> None:
    """Prints the pixels that an output reads, and how much of each rate of ASPP lies outside the map."""
    found = atrous.audit_dilation(model, x.shape[1:])
    height, width = found.receptive_field
    print(f"image {x.shape[2]}x{x.shape[3]}, {found.gmac:.1f} GMAC; global branch: {', '.join(found.global_branches)}")
    print(f"field {height}x{width}, {found.coverage:.1%} of it read")
    dilated = [layer for layer in found.layers if layer.name.startswith("head.") and layer.rate[0] > 1]
    shares = [f"{layer.padding_share:.1%} at rate {layer.rate[0]}" for layer in dilated]
    print(f"ASPP reads padding with {', '.join(shares)} of its taps")


def milliseconds(model: nn.Module, x: Tensor, repeats: int = 5) -> float:
    """Returns the shortest time of `repeats` calls, after one warm-up call."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        model(x)
        if x.is_cuda:
            torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1e3)
    return min(times[1:])


def segment(features: Tensor, segments: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    """(C, H, W) -> colours (H, W, 3) in [0, 1], and the number of each position's group (H, W)."""
    channels, height, width = features.shape
    vectors = features.reshape(channels, -1).T.cpu().numpy()
    vectors = (vectors - vectors.mean(0)) / (vectors.std(0) + 1e-6)
    parts = PCA(min(16, *vectors.shape), random_state=0).fit_transform(vectors)
    low, high = numpy.percentile(parts[:, :3], (2, 98), axis=0)
    colours = ((parts[:, :3] - low) / (high - low)).clip(0, 1)
    groups = KMeans(segments, n_init=4, random_state=0).fit_predict(parts)
    return colours.reshape(height, width, 3), groups.reshape(height, width)


def draw(path: Path, photo: Image.Image, colours: numpy.ndarray, groups: numpy.ndarray, weights: str) -> None:
    figure = Figure(figsize=(15, 4.2), layout="constrained")
    figure.suptitle(f"ResNet18 at output stride {STRIDE}, {weights}")
    titles = ("photograph", "features: 3 principal components", f"features: {groups.max() + 1} groups by k-means")
    for axis, title in zip(figure.subplots(1, 3), titles):
        axis.set(title=title, xticks=[], yticks=[])
        axis.imshow(photo)
    extent = (-0.5, photo.width - 0.5, photo.height - 0.5, -0.5)
    figure.axes[1].imshow(colours, extent=extent, interpolation="bilinear")
    figure.axes[2].imshow(groups, extent=extent, interpolation="nearest", cmap="tab10", vmax=9, alpha=0.7)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, help="a photograph (default: one that scikit-learn installs)")
    parser.add_argument("--weights", type=Path, help="a .pth, .pt or .safetensors file of a ResNet18")
    parser.add_argument("--size", type=int, default=320, help="shorter side of the image in pixels (default 320)")
    parser.add_argument("--segments", type=int, default=6, help="groups of features, 10 at most (default 6)")
    parser.add_argument("--output", type=Path, default=Path("segments.png"), help="default segments.png")
    args = parser.parse_args()

    torch.manual_seed(0)
    model, (photo, x) = network(), load(args.image or shipped()[0], args.size)
    weights = f"weights of {args.weights}" if args.weights else "random weights, BatchNorm calibrated on the photograph"
    if args.weights:
        atrous.models.load_weights(model.backbone, args.weights)
    else:
        calibrate_(model.backbone, x)
    print(f"backbone: {weights}\nhead: random weights, its scores mean nothing")
    audit(model, x)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, x = model.to(device, memory_format=torch.channels_last), x.to(device, memory_format=torch.channels_last)
    fused = atrous.fuse(model)
    with torch.no_grad():
        plain, fast = model(x), fused(x)
        print(str(fused.fusion_report).splitlines()[0])
        difference, largest = (plain - fast).abs().max(), plain.abs().max()
        print(f"scores {tuple(fast.shape)}, up to {largest:.2g}; largest difference {difference:.2g}")
        print(f"plain {milliseconds(model, x):.1f} ms, fused {milliseconds(fused, x):.1f} ms")
        features = torch.cat([maps[0] for maps in model.backbone(x)[2:]])  # those of output stride 8
    draw(args.output, photo, *segment(features, args.segments), weights)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
