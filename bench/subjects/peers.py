"""Other libraries as providers of a network. Each is optional: where one is not installed, Unavailable says so."""

from __future__ import annotations

import importlib.util
import io
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from .subject import Call, Unavailable

GPU_ONLY = {"TensorRT": "tensorrt", "cudnn-frontend": "cudnn", "inplace_abn": "inplace_abn"}  # name -> module
DISTRIBUTIONS = ("openvino", "onnxruntime", "onnx")


def need(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise Unavailable("not installed")


def openvino(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Call:
    """OpenVINO for latency, with torch's number of threads. The model and x are fp32; bf16 is its precision hint."""
    need("openvino")
    import openvino

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's remarks about constants
        converted = openvino.convert_model(model, example_input=x, input=[tuple(x.shape)])
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": {torch.float32: "f32", torch.bfloat16: "bf16"}[dtype],
    }
    request = openvino.Core().compile_model(converted, "CPU", options).create_infer_request()
    feed = {0: x.numpy()}
    return lambda: torch.from_numpy(request.infer(feed, share_inputs=True, share_outputs=True)[0])


def onnxruntime(model: nn.Module, x: Tensor) -> Call:
    """ONNX Runtime with torch's number of threads, which do not spin after a run: that would slow what comes next."""
    need("onnxruntime")
    need("onnx")
    import onnxruntime

    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), file, dynamo=False)
    options: Any = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def gpu_only(name: str) -> Call:
    """Raises Unavailable: no provider of these is written before a GPU can run it."""
    need(GPU_ONLY[name])
    raise Unavailable("needs CUDA" if not torch.cuda.is_available() else "its provider is not written")
