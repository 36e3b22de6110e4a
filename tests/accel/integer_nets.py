"""Small networks and runs for the tests of integer networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from mvq.accel.network import IntegerNetwork, to_onnx


def settled(model: nn.Module, *, size: int = 32, seed: int = 0) -> nn.Module:
    """In evaluation mode, with batch norms that have seen data and have weights of either sign."""
    generator = torch.Generator().manual_seed(seed)
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(4, 3, size, size, generator=generator))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and module.affine:
                signs = torch.where(torch.rand(module.weight.shape, generator=generator) < 0.3, -1.0, 1.0)
                module.weight.mul_(signs * (0.5 + torch.rand(module.weight.shape, generator=generator)))
                module.bias.add_(0.3 * torch.randn(module.bias.shape, generator=generator))
    return model.eval()


def images(n: int = 4, size: int = 32, *, channels: int = 3, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(seed))


def snr_db(expected: np.ndarray, found: np.ndarray) -> float:
    noise = np.square(expected - found, dtype=np.float64).mean()
    return float(10 * np.log10(np.square(expected, dtype=np.float64).mean() / noise)) if noise else np.inf


def onnx_activations(network: IntegerNetwork, x: np.ndarray, *, optimized: bool = False) -> dict[str, np.ndarray]:
    """Every tensor of the exported network, as ONNX Runtime computes it."""
    import onnx
    import onnxruntime

    model = to_onnx(network)
    model.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name) for name in network.tensors if name not in network.outputs
    )
    options: Any = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: x}), strict=True))
