"""The models: name -> a function that makes one with random weights, and its inputs, by library."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

IMAGES = ((2, 3, 64, 64),)
GRAY = ((2, 1, 64, 64),)


def _images(*shapes: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(11)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def _call(path: str, *args: Any, **kwargs: Any) -> Callable[[], Any]:
    """A call of module:name, which is imported only then."""
    module, _, name = path.partition(":")
    return lambda: getattr(importlib.import_module(module), name)(*args, **kwargs)


def _yolo(name):
    def make():
        from ultralytics.nn import tasks
        kind = tasks.ClassificationModel if "cls" in name else tasks.SegmentationModel if "seg" in name else tasks.DetectionModel
        return kind(f"{name}.yaml", ch=3, nc=4, verbose=False)
    return make

def _hf(name, **config):
    def make():
        import transformers
        kind = getattr(transformers, name + "Model", None) or getattr(transformers, name)
        base = name.replace("ForImageClassification", "").replace("ForSemanticSegmentation", "")
        return kind(getattr(transformers, base + "Config")(**config))
    return make

FIRST = {
    "torchvision resnet18": (_call("torchvision.models:resnet18", num_classes=10), IMAGES),
    "torchvision densenet121": (_call("torchvision.models:densenet121", num_classes=10), IMAGES),
    "torchvision mobilenet_v3_small": (_call("torchvision.models:mobilenet_v3_small", num_classes=10), IMAGES),
    "torchvision googlenet": (_call("torchvision.models:googlenet", num_classes=10, init_weights=False), IMAGES),
    "torchvision shufflenet_v2_x0_5": (_call("torchvision.models:shufflenet_v2_x0_5", num_classes=10), IMAGES),
    "torchvision deeplabv3_resnet50": (_call("torchvision.models.segmentation:deeplabv3_resnet50", weights_backbone=None), IMAGES),
    "torchvision resnet18_fpn": (_call("torchvision.models.detection.backbone_utils:resnet_fpn_backbone", backbone_name="resnet18", weights=None), IMAGES),
    "timm darknet53": (_call("timm:create_model", "darknet53", num_classes=10), IMAGES),
    "timm efficientnet_b0": (_call("timm:create_model", "efficientnet_b0", num_classes=10, drop_path_rate=0.2), IMAGES),
    "timm hrnet_w18_small": (_call("timm:create_model", "hrnet_w18_small", num_classes=10), IMAGES),
    "timm repvgg_a0": (_call("timm:create_model", "repvgg_a0", num_classes=10), IMAGES),
    "timm resnest14d": (_call("timm:create_model", "resnest14d", num_classes=10), IMAGES),
    "timm convnext_atto": (_call("timm:create_model", "convnext_atto", num_classes=10), IMAGES),
    "smp Unet resnet18": (_call("segmentation_models_pytorch:Unet", "resnet18", encoder_weights=None), IMAGES),
    "smp DeepLabV3Plus resnet18": (_call("segmentation_models_pytorch:DeepLabV3Plus", "resnet18", encoder_weights=None), IMAGES),
    "monai UNet": (_call("monai.networks.nets:UNet", 2, 1, 2, (8, 16, 32), (2, 2), num_res_units=2, norm="BATCH"), GRAY),
    "monai SegResNet": (_call("monai.networks.nets:SegResNet", 2, in_channels=1, init_filters=8, norm="BATCH"), GRAY),
    "monai BasicUNet": (_call("monai.networks.nets:BasicUNet", 2, 1, 2, (8, 8, 16, 32, 64, 8), norm="batch"), GRAY),
    "ultralytics yolov8n": (_yolo("yolov8n"), IMAGES),
    "ultralytics yolov3-tiny": (_yolo("yolov3-tiny"), IMAGES),
    "transformers ResNet": (_hf("ResNet", hidden_sizes=[16, 32, 64, 64], embedding_size=16, depths=[1, 1, 1, 1]), IMAGES),
    "transformers MobileNetV2": (_hf("MobileNetV2"), IMAGES),
    "transformers Segformer": (_hf("SegformerForSemanticSegmentation", depths=[1, 1, 1, 1], hidden_sizes=[16, 32, 64, 64], decoder_hidden_size=32), IMAGES),
}
