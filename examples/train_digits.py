"""Trains a fused ResNet with PReLU on scikit-learn's handwritten digits, in one process or several.

    python examples/train_digits.py
    torchrun --nproc-per-node 2 examples/train_digits.py

On NVIDIA GPUs every process uses one GPU, BatchNorm is synchronized over the processes, and the step runs in bf16. On a
CPU the processes average the gradients, and each has its own BatchNorm statistics.
"""

import argparse
import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import atrous


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Returns 1797 images of 32 x 32 in channels_last and their digits, in the same random order on every process."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    images = F.interpolate(images, scale_factor=4.0, mode="bilinear")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order].contiguous(memory_format=torch.channels_last), torch.tensor(digits.target)[order]


def network(device: torch.device) -> nn.Module:
    """Returns a fused ResNet of four blocks with output stride 8, initialized as in the PReLU paper."""
    model = atrous.models.ResNet(
        atrous.models.BasicBlock, (1, 1, 1, 1), num_classes=10, act="prelu", output_stride=8, in_channels=1
    )
    atrous.nn.init_prelu_kaiming_(model)
    if device.type == "cuda" and dist.is_initialized():
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    fused = atrous.fuse(model.to(device, memory_format=torch.channels_last))
    return nn.parallel.DistributedDataParallel(fused) if dist.is_initialized() else fused


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64, help="images per process (default 64)")
    args = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if "RANK" in os.environ:  # torchrun
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)

    torch.manual_seed(0)
    model = network(device)
    groups = atrous.param_groups(model, weight_decay=1e-4)  # no decay of slopes and BatchNorm
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9)
    images, digits = (part.to(device) for part in data())
    train, test = slice(0, 1500), slice(1500, None)
    for epoch in range(args.epochs):
        model.train()
        for x, y in zip(images[train].split(args.batch * world), digits[train].split(args.batch * world)):
            x, y = x[rank::world], y[rank::world]
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            right = (model(images[test]).argmax(1) == digits[test]).float().mean()
        if rank == 0:
            print(f"epoch {epoch + 1}: loss {loss.item():.3f}, {right.item():.1%} of the test images right", flush=True)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
