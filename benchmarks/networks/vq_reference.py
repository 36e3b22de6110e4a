"""ResNet-18 and ResNet-50 published in vector-quantized form by two other methods, decoded to dense weights.

PQF is "Permute, Quantize, and Fine-tune" (Martinez et al., 2021), BGD "And the Bit Goes Down" (Stock et al.,
2020). A decoded layer has few distinct subvectors along the input direction, so clustering errors on it are
not those of an ordinary network.
"""

from __future__ import annotations

from functools import partial

import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.networks.adapter import Adapter, data_file
from benchmarks.networks.images import TORCH_NORM, imagenet
from mvq.errors import ModelError
from mvq.tasks import build_model


def decode(model: nn.Module, stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """State of the model from codebooks and codes.

    Args:
        model: whose shapes and default statistics of batch norm (mean 0, variance 1) are used.
        stored: for a layer `codebook` `(K, d)` and `codes` `(C_out, blocks)`; everything else as it is.

    Raises:
        ModelError: if a tensor of the model is neither stored nor a statistic.
    """
    state = {}
    for name, own in model.state_dict().items():
        layer = name.removesuffix(".weight")
        if name in stored:
            state[name] = stored[name].float()
        elif f"{layer}.codes" in stored:
            codes = stored[f"{layer}.codes"].long()
            state[name] = stored[f"{layer}.codebook"].float()[codes].reshape(own.shape)
        elif name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            state[name] = own
        else:
            raise ModelError(f"reference network: {name!r} is not in the file")
    return state


def build(method: str, architecture: str, size: str) -> nn.Module:
    """A decoded network, e.g. `build("pqf", "resnet50", "large")`."""
    model = build_model(f"torchvision/{architecture}")
    stored = load_file(data_file(f"vq_reference/{method}_{architecture}_{size}.safetensors"))
    model.load_state_dict(decode(model, stored))
    return model.eval()


build_pqf_resnet18_small = partial(build, "pqf", "resnet18", "small")
build_pqf_resnet18_large = partial(build, "pqf", "resnet18", "large")
build_bgd_resnet18_small = partial(build, "bgd", "resnet18", "small")
build_bgd_resnet18_large = partial(build, "bgd", "resnet18", "large")
build_pqf_resnet50_large = partial(build, "pqf", "resnet50", "large")
build_bgd_resnet50_large = partial(build, "bgd", "resnet50", "large")


def data(split: str = "val", batch_size: int = 50, limit: int | None = None) -> DataLoader[tuple[torch.Tensor, int]]:
    """ImageNet images for these networks."""
    return imagenet(TORCH_NORM, split=split, batch_size=batch_size, limit=limit)


ADAPTERS = tuple(
    Adapter(
        name=name,
        task="classification",
        build=builder,
        data=data,
        input_shape=(3, 224, 224),
        baseline={"top1": top1, "top5": top5},
        preprocessing=TORCH_NORM,
    )
    for name, builder, top1, top5 in (
        ("pqf_resnet18", build_pqf_resnet18_small, 75.44, 93.56),
        ("pqf_resnet18_large", build_pqf_resnet18_large, 72.89, 92.67),
        ("bgd_resnet18", build_bgd_resnet18_small, 74.00, 92.78),
        ("bgd_resnet18_large", build_bgd_resnet18_large, 68.56, 90.89),
        ("pqf_resnet50", build_pqf_resnet50_large, 77.78, 94.22),
        ("bgd_resnet50", build_bgd_resnet50_large, 75.44, 93.22),
    )
)
