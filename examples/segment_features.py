"""Fuses a custom segmentation network on a dilated ResNet34 with one call.

    python examples/segment_features.py --size 512

The network is plain torch: a backbone whose last stages are dilated instead of strided (output stride 8), and a head
with dilated convolutions. fuse() finds the sites in both. Nothing is folded here: the fused module has the model's
parameters, and new weights take effect at the next call.
"""

import argparse
import time

import torch
from torch import Tensor, nn

import atrous


class Segmenter(nn.Module):
    """(N, 3, H, W) -> (N, classes, H, W)."""

    def __init__(self, classes: int = 21):
        super().__init__()
        self.backbone = atrous.models.resnet34(act="prelu", output_stride=8, multi_grid=(1, 2, 4), features_only=True)
        self.head = nn.Sequential(
            nn.Conv2d(512, 128, 3, padding=2, dilation=2, bias=False), nn.BatchNorm2d(128), nn.PReLU(128),
            nn.Conv2d(128, 128, 3, padding=5, dilation=5, bias=False), nn.BatchNorm2d(128), nn.PReLU(128),
            nn.Conv2d(128, classes, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        *_, c5 = self.backbone(x)
        return nn.functional.interpolate(self.head(c5), x.shape[2:], mode="bilinear", align_corners=False)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="side of the image in pixels (default 512)")
    args = parser.parse_args()

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Segmenter().to(device, memory_format=torch.channels_last).eval()
    x = torch.randn(1, 3, args.size, args.size, device=device).to(memory_format=torch.channels_last)

    fused = atrous.fuse(model)
    with torch.no_grad():
        plain, fast = model(x), fused(x)
        print(str(fused.fusion_report).splitlines()[0])
        difference, largest = (plain - fast).abs().max(), plain.abs().max()
        print(f"scores {tuple(fast.shape)}, up to {largest:.2g}; largest difference {difference:.2g}")
        print(f"plain {milliseconds(model, x):.1f} ms, fused {milliseconds(fused, x):.1f} ms")

        model.head[0].weight.mul_(2)  # it is the fused module's weight too
        assert torch.allclose(model(x), fused(x), rtol=1e-3, atol=1e-3)


if __name__ == "__main__":
    main()
