"""The models: a small member of each family of six public libraries, with random weights, and small images.

Nothing is downloaded: every architecture is made from code or from a configuration that is written here.
"""

from __future__ import annotations

import importlib
import itertools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

IMAGES, GRAY, PAIR = (2, 3, 64, 64), (2, 1, 64, 64), (2, 2, 64, 64)


class Model(NamedTuple):
    """make: constructs it, and imports its library only then. shape: that of its images."""

    library: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]

    @property
    def args(self) -> tuple[Tensor, ...]:
        return (torch.randn(self.shape, generator=torch.Generator().manual_seed(11)),)


def _call(path: str, *args: Any, **kwargs: Any) -> Callable[[], nn.Module]:
    """A call of module:name."""
    module, _, name = path.partition(":")
    return lambda: getattr(importlib.import_module(module), name)(*args, **kwargs)


def _vision(name: str, shape: tuple[int, ...] = IMAGES, **kwargs: Any) -> Model:
    return Model("torchvision", _call("torchvision.models:get_model", name, **kwargs), shape)


def _timm(name: str, shape: tuple[int, ...] = IMAGES, **kwargs: Any) -> Model:
    return Model("timm", _call("timm:create_model", name, num_classes=10, **kwargs), shape)


def _smp(name: str, encoder: str, shape: tuple[int, ...] = IMAGES, **kwargs: Any) -> Model:
    make = _call(f"segmentation_models_pytorch:{name}", encoder, encoder_weights=None, **kwargs)
    return Model("segmentation_models_pytorch", make, shape)


def _monai(name: str, *args: Any, shape: tuple[int, ...] = GRAY, **kwargs: Any) -> Model:
    return Model("MONAI", _call(f"monai.networks.nets:{name}", *args, **kwargs), shape)


def _yolo(file: str, **changes: Any) -> Model:
    def make() -> nn.Module:
        from ultralytics.nn import tasks

        kinds = {"-cls": tasks.ClassificationModel, "-seg": tasks.SegmentationModel, "-pose": tasks.PoseModel}
        kind = next((kinds[word] for word in kinds if word in file), tasks.DetectionModel)
        return kind(tasks.yaml_model_load(f"{file}.yaml") | changes, ch=3, nc=4, verbose=False)

    return Model("ultralytics", make, IMAGES)


def _hf(name: str, shape: tuple[int, ...] = IMAGES, **config: Any) -> Model:
    """A class of transformers, whose configuration has its name up to Model, Backbone or For."""

    def make() -> nn.Module:
        import transformers

        base = re.sub(r"(Model|Backbone|For[A-Z]\w+)$", "", name)
        inner = {key: value() if callable(value) else value for key, value in config.items()}
        return getattr(transformers, name)(getattr(transformers, f"{base}Config")(**inner))

    return Model("transformers", make, shape)


NO_WEIGHTS = {"weights": None, "weights_backbone": None}
FPN = "torchvision.models.detection.backbone_utils:resnet_fpn_backbone"
CHANNELS, SIX = (8, 16, 32), (8, 8, 16, 32, 64, 8)
SMALL = {"hidden_sizes": [16, 32, 64, 64], "depths": [1, 1, 1, 1]}
STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
SQUARES = [[[3, 3], [3, 3]], [[3, 3], [1, 3]], [[3, 3], [3, 1]], [[3, 3], [3, 3]]]

TORCHVISION = {
    "alexnet": _vision("alexnet"),
    "squeezenet1_1": _vision("squeezenet1_1"),
    "vgg11_bn": _vision("vgg11_bn"),
    "mc3_18": _vision("mc3_18", (2, 3, 4, 32, 32)),
    "resnet18": _vision("resnet18"),
    "mobilenet_v3_small": _vision("mobilenet_v3_small"),
    "mobilenet_v2": _vision("mobilenet_v2"),
    "mnasnet0_5": _vision("mnasnet0_5"),
    "resnet50": _vision("resnet50"),
    "lraspp_mobilenet_v3_large": _vision("lraspp_mobilenet_v3_large", **NO_WEIGHTS),
    "deeplabv3_resnet50": _vision("deeplabv3_resnet50", **NO_WEIGHTS),
    "googlenet": _vision("googlenet", init_weights=False),
    "resnet18_fpn": Model("torchvision", _call(FPN, backbone_name="resnet18", weights=None), IMAGES),
    "efficientnet_b0": _vision("efficientnet_b0"),
    "shufflenet_v2_x0_5": _vision("shufflenet_v2_x0_5"),
    "regnet_x_400mf": _vision("regnet_x_400mf"),
    "inception_v3": _vision("inception_v3", (2, 3, 96, 96), init_weights=False, aux_logits=False),
    "densenet121": _vision("densenet121"),
}
TIMM = {
    "efficientnet_b0": _timm("efficientnet_b0", drop_path_rate=0.2),
    "levit_conv_128s": _timm("levit_conv_128s", img_size=64),
    "visformer_tiny": _timm("visformer_tiny", img_size=64),
} | {
    name: _timm(name)
    for name in (
        "test_efficientnet", "resnet10t", "test_resnet", "darknet17", "resnetv2_18", "test_byobnet", "starnet_s050",
        "resnetblur18", "ese_vovnet19b_slim", "lcnet_035", "fasternet_t0", "seresnet18", "convnext_atto",
        "cs3darknet_focus_s", "legacy_seresnet18", "resnest14d", "cspnext_tiny", "dla34", "selecsls42", "tinynet_e",
        "lcnetv2_small", "mobilenetv4_conv_small_035", "hardcorenas_a", "mobilenetv3_small_050", "efficientnet_lite0",
        "gernet_s", "skresnet18", "repvgg_a0", "hgnetv2_b0", "darknet53", "mnasnet_small", "efficientvit_b0",
        "fbnetc_100", "regnety_002", "dpn48b", "rexnet_100", "ghostnet_050", "tresnet_m", "hrnet_w18_small",
        "repghostnet_050", "shvit_s1",
    )
}  # fmt: skip
SMP = {
    "PSPNet resnet18": _smp("PSPNet", "resnet18"),
    "Unet vgg11_bn": _smp("Unet", "vgg11_bn"),
    "DeepLabV3 resnet18": _smp("DeepLabV3", "resnet18"),
    "FPN resnet18": _smp("FPN", "resnet18"),
    "DeepLabV3Plus resnet18": _smp("DeepLabV3Plus", "resnet18"),
    "Unet resnet18": _smp("Unet", "resnet18"),
    "Segformer resnet18": _smp("Segformer", "resnet18"),
    "Linknet resnet18": _smp("Linknet", "resnet18"),
    "PAN resnet18": _smp("PAN", "resnet18", (2, 3, 128, 128)),
    "UPerNet resnet18": _smp("UPerNet", "resnet18"),
    "UnetPlusPlus resnet18": _smp("UnetPlusPlus", "resnet18"),
    "Unet scse resnet18": _smp("Unet", "resnet18", decoder_attention_type="scse"),
    "MAnet resnet18": _smp("MAnet", "resnet18"),
}
MONAI = {
    "VarAutoEncoder": _monai("VarAutoEncoder", 2, (1, 64, 64), 1, 8, CHANNELS, (2, 2, 2), norm="BATCH"),
    "DynUNet": _monai("DynUNet", 2, 1, 2, (3, 3, 3), (1, 2, 2), (2, 2), filters=CHANNELS, norm_name="batch"),
    "SegResNetDS": _monai("SegResNetDS", 2, in_channels=1, init_filters=8, blocks_down=(1, 1, 1)),
    "ResNet basic": _monai("ResNet", "basic", [1, 1, 1, 1], [8, 16, 32, 64], 2, 1, num_classes=10),
    "UNet": _monai("UNet", 2, 1, 2, CHANNELS, (2, 2), num_res_units=2, norm="BATCH"),
    "AutoEncoder": _monai("AutoEncoder", 2, 1, 1, CHANNELS, (2, 2, 2), num_res_units=2, norm="BATCH"),
    "ResNet bottleneck": _monai("ResNet", "bottleneck", [1, 1, 1, 1], [8, 16, 32, 64], 2, 1, num_classes=10),
    "AttentionUnet": _monai("AttentionUnet", 2, 1, 2, CHANNELS, (2, 2)),
    "VoxelMorphUNet": _monai("VoxelMorphUNet", 2, 2, 2, (8, 8, 16, 16, 16, 16, 8, 8), (8, 8), norm="BATCH", shape=PAIR),
    "HighResNet": _monai("HighResNet", 2, 1, 2),
    "DenseNet": _monai("DenseNet", 2, 1, 10, 16, 8, (2, 2, 2, 2)),
    "SENet": _monai("SENet", 2, 1, "se_resnet_bottleneck", (1, 1, 1, 1), 1, 16, None, inplanes=64, num_classes=10),
    "SegResNet": _monai("SegResNet", 2, in_channels=1, init_filters=8, norm="BATCH"),
    "VNet": _monai("VNet", 2, act="relu", dropout_dim=2),
    "Quicknat": _monai("Quicknat", 4, 1, 8, norm="batch"),
    "BasicUNet": _monai("BasicUNet", 2, 1, 2, SIX, norm="batch"),
    "FlexibleUNet": _monai("FlexibleUNet", 1, 2, "efficientnet-b0", decoder_channels=(64, 32, 16, 8, 8)),
}
ULTRALYTICS = {
    "yolov8n-cls": _yolo("yolov8n-cls"),
    "yolov8n-cls ReLU": _yolo("yolov8n-cls", activation="torch.nn.ReLU()"),
    "yolo11n-cls": _yolo("yolo11n-cls"),
    "yolo26n-cls LeakyReLU": _yolo("yolo26n-cls", activation="torch.nn.LeakyReLU(0.1)"),
    "yolov3-tiny": _yolo("yolov3-tiny"),
    "yolov3-tiny LeakyReLU": _yolo("yolov3-tiny", activation="torch.nn.LeakyReLU(0.1)"),
    "yolov6n": _yolo("yolov6n"),
    "yolov8n": _yolo("yolov8n"),
    "yolov5n ReLU": _yolo("yolov5n", activation="torch.nn.ReLU()"),
    "yolov8n-seg ReLU": _yolo("yolov8n-seg", activation="torch.nn.ReLU()"),
    "yolo12n-cls": _yolo("yolo12n-cls"),
}
TRANSFORMERS = {
    "ResNet basic": _hf("ResNetForImageClassification", embedding_size=16, layer_type="basic", **SMALL),
    "ResNet": _hf("ResNetModel", embedding_size=16, **SMALL),
    "RTDetrResNet": _hf("RTDetrResNetBackbone", embedding_size=16, layer_type="basic", **SMALL),
    "RegNet": _hf("RegNetModel", embedding_size=16, groups_width=16, **SMALL),
    "PPLCNet": _hf("PPLCNetBackbone", scale=0.25),
    "PPLCNet ReLU": _hf("PPLCNetBackbone", scale=0.25, hidden_act="relu"),
    "MobileNetV1": _hf("MobileNetV1Model", depth_multiplier=0.25),
    "UperNet": _hf(
        "UperNetForSemanticSegmentation", hidden_size=32, auxiliary_in_channels=64, auxiliary_channels=16,
        backbone_config=_call("transformers:ResNetConfig", embedding_size=16, **STAGES, **SMALL),
    ),
    "TextNet": _hf(
        "TextNetModel", stem_out_channels=16, conv_layer_kernel_sizes=SQUARES, conv_layer_strides=[[1, 2]] * 4,
        hidden_sizes=[16, 16, 32, 32, 32],
    ),
    "HGNetV2": _hf("HGNetV2Backbone", stage_numb_of_layers=[2, 2, 2, 2]),
    "SwiftFormer": _hf("SwiftFormerModel", depths=[1, 1, 1, 1]),
    "MobileNetV2": _hf("MobileNetV2Model", depth_multiplier=0.35),
    "Segformer": _hf("SegformerForSemanticSegmentation", decoder_hidden_size=32, **SMALL),
    "EfficientNet ReLU": _hf(
        "EfficientNetModel", width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280, hidden_act="relu",
    ),
}  # fmt: skip
LIBRARIES = (TORCHVISION, TIMM, SMP, MONAI, ULTRALYTICS, TRANSFORMERS)


def _interleaved() -> dict[str, Model]:
    """ "library name" -> model: each library's first, then each one's second, so that a part of a run covers all."""
    rounds = itertools.zip_longest(*(models.items() for models in LIBRARIES))
    return {f"{model.library} {name}": model for entries in rounds for name, model in filter(None, entries)}


MODELS = _interleaved()
