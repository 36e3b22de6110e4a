"""YOLOX-Nano (Ge et al., 2021), whose weights come from the initialisers of its ONNX graph.

The graph has batch norm folded into the convolutions. Every folded convolution gets a batch norm back: its
output channels are scaled to equal RMS (that of the layer), the factor and the bias go to the batch norm. A
subvector runs along output channels, so without this the differences in scale between channels would fall
into one subvector.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.nn.functional import binary_cross_entropy
from torch.utils.data import DataLoader
from torchvision.ops import batched_nms

from benchmarks.networks.adapter import Adapter, data_file
from benchmarks.networks.images import Mirrored, PackedImages, Samples, array, channels_last
from mvq.errors import MissingDependencyError, ModelError
from mvq.tasks.sampling import EpochSampler

SIZE = 416
N_CLASSES = 80
CANVAS = 114
STRIDES = (8, 16, 32)
THRESHOLD = 0.001
NMS_IOU = 0.65
MAX_DETECTIONS = 100
BN_EPS = 1e-5
#: Of boxes in the loss, as in YOLOX.
_BOX_WEIGHT = 5.0


class BaseConv(nn.Module):
    """Convolution, batch norm, SiLU."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(channels_out, eps=BN_EPS)
        self.act = nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.bn(self.conv(x)))


class DWConv(nn.Module):
    """Depth-wise 3x3, then 1x1."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.dconv = BaseConv(channels_in, channels_in, 3, stride, channels_in)
        self.pconv = BaseConv(channels_in, channels_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pconv(self.dconv(x))


class Bottleneck(nn.Module):
    """1x1 and depth-wise separable 3x3, with a shortcut where asked for."""

    def __init__(self, channels: int, shortcut: bool) -> None:
        super().__init__()
        self.conv1 = BaseConv(channels, channels)
        self.conv2 = DWConv(channels, channels)
        self.shortcut = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.conv2(self.conv1(x))
        return out + x if self.shortcut else out


class CSPLayer(nn.Module):
    """Two 1x1 branches, one through bottlenecks, joined by a 1x1."""

    def __init__(self, channels_in: int, channels_out: int, n: int = 1, *, shortcut: bool = True) -> None:
        super().__init__()
        hidden = channels_out // 2
        self.conv1 = BaseConv(channels_in, hidden)
        self.conv2 = BaseConv(channels_in, hidden)
        self.m = nn.Sequential(*(Bottleneck(hidden, shortcut) for _ in range(n)))
        self.conv3 = BaseConv(2 * hidden, channels_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.conv1(x), self.conv2(x)
        return self.conv3(torch.cat([self.m(first), second], dim=1))


class SPP(nn.Module):
    """Max pools of three sizes side by side."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        hidden = channels_in // 2
        self.conv1 = BaseConv(channels_in, hidden)
        self.m = nn.ModuleList(nn.MaxPool2d(k, 1, k // 2) for k in (5, 9, 13))
        self.conv2 = BaseConv(4 * hidden, channels_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x)
        return self.conv2(torch.cat([x, *(pool(x) for pool in self.m)], dim=1))


class Backbone(nn.Module):
    """CSPDarknet at depth 0.33 and width 0.25; gives the features of strides 8, 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = BaseConv(12, 16, 3)
        self.dark2 = nn.Sequential(DWConv(16, 32, 2), CSPLayer(32, 32, 1))
        self.dark3 = nn.Sequential(DWConv(32, 64, 2), CSPLayer(64, 64, 3))
        self.dark4 = nn.Sequential(DWConv(64, 128, 2), CSPLayer(128, 128, 3))
        self.dark5 = nn.Sequential(DWConv(128, 256, 2), SPP(256, 256), CSPLayer(256, 256, 1, shortcut=False))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        # Focus: four images of half the size, top left, bottom left, top right, bottom right.
        corners = [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]]
        dark3 = self.dark3(self.dark2(self.stem(torch.cat(corners, dim=1))))
        dark4 = self.dark4(dark3)
        return dark3, dark4, self.dark5(dark4)


class Neck(nn.Module):
    """Path aggregation network over the three strides."""

    def __init__(self) -> None:
        super().__init__()
        self.lateral_conv0 = BaseConv(256, 128)
        self.C3_p4 = CSPLayer(256, 128, shortcut=False)
        self.reduce_conv1 = BaseConv(128, 64)
        self.C3_p3 = CSPLayer(128, 64, shortcut=False)
        self.bu_conv2 = DWConv(64, 64, 2)
        self.C3_n3 = CSPLayer(128, 128, shortcut=False)
        self.bu_conv1 = DWConv(128, 128, 2)
        self.C3_n4 = CSPLayer(256, 256, shortcut=False)

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        c3, c4, c5 = features
        top = self.lateral_conv0(c5)
        middle = self.reduce_conv1(self.C3_p4(torch.cat([functional.interpolate(top, scale_factor=2.0), c4], dim=1)))
        p3 = self.C3_p3(torch.cat([functional.interpolate(middle, scale_factor=2.0), c3], dim=1))
        p4 = self.C3_n3(torch.cat([self.bu_conv2(p3), middle], dim=1))
        return [p3, p4, self.C3_n4(torch.cat([self.bu_conv1(p4), top], dim=1))]


class Head(nn.Module):
    """Decoupled head; gives `(N, 3549, 85)`: box offsets, objectness, class probabilities, undecoded
    boxes."""

    def __init__(self) -> None:
        super().__init__()
        self.stems = nn.ModuleList(BaseConv(channels, 64) for channels in (64, 128, 256))
        self.cls_convs = nn.ModuleList(nn.Sequential(DWConv(64, 64), DWConv(64, 64)) for _ in STRIDES)
        self.reg_convs = nn.ModuleList(nn.Sequential(DWConv(64, 64), DWConv(64, 64)) for _ in STRIDES)
        self.cls_preds = nn.ModuleList(nn.Conv2d(64, N_CLASSES, 1) for _ in STRIDES)
        self.reg_preds = nn.ModuleList(nn.Conv2d(64, 4, 1) for _ in STRIDES)
        self.obj_preds = nn.ModuleList(nn.Conv2d(64, 1, 1) for _ in STRIDES)

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        rows = []
        for i, feature in enumerate(features):
            stem = self.stems[i](feature)
            classes = self.cls_preds[i](self.cls_convs[i](stem)).sigmoid()
            located = self.reg_convs[i](stem)
            boxes = self.reg_preds[i](located)
            objectness = self.obj_preds[i](located).sigmoid()
            rows.append(torch.cat([boxes, objectness, classes], dim=1).flatten(2))
        return torch.cat(rows, dim=2).transpose(1, 2)


class YoloxNano(nn.Module):
    """The whole detector; input `(N, 3, 416, 416)` BGR on 0..255."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.neck = Neck()
        self.head = Head()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.neck(self.backbone(x)))

    def postprocess(
        self, outputs: torch.Tensor, targets: Sequence[Mapping[str, torch.Tensor]]
    ) -> list[dict[str, torch.Tensor]]:
        """`detections`; `mvq.tasks.detection.evaluate` looks for it here."""
        return detections(outputs, targets)


def build() -> nn.Module:
    """YOLOX-Nano with its weights."""
    model = YoloxNano()
    load_onnx_(model, data_file("coco/yolox_nano.onnx"))
    return model.eval()


def load_onnx_(model: YoloxNano, path: Path) -> None:
    """Copy the graph's convolutions, in the order in which the model runs its own.

    Raises:
        MissingDependencyError: without onnx.
        ModelError: if the graph's convolutions are not the model's.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise MissingDependencyError("YOLOX-Nano needs onnx; install it with: uv sync --group bench") from error
    graph = onnx.load(path).graph
    values = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    stored = [(values[n.input[1]], values[n.input[2]]) for n in graph.node if n.op_type == "Conv"]
    order = _execution_order(model)
    if [tuple(w.shape) for w, _ in stored] != [tuple(c.weight.shape) for c in order]:
        raise ModelError(f"{str(path)!r}: its {len(stored)} convolutions are not those of YOLOX-Nano")
    norms = {m.conv: m.bn for m in model.modules() if isinstance(m, BaseConv)}
    with torch.no_grad():
        for convolution, (weight, bias) in zip(order, stored, strict=True):
            if convolution in norms:
                _unfold_(convolution, norms[convolution], weight, bias)
            else:
                assert convolution.bias is not None
                convolution.weight.copy_(weight)
                convolution.bias.copy_(bias)


def _execution_order(model: YoloxNano) -> list[nn.Conv2d]:
    order: list[nn.Conv2d] = []

    def note(module: nn.Module, *_: Any) -> None:
        assert isinstance(module, nn.Conv2d)
        order.append(module)

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, nn.Conv2d)]
    with torch.inference_mode():
        model.eval()(torch.zeros(1, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    return order


def _unfold_(convolution: nn.Conv2d, norm: nn.BatchNorm2d, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Split a folded weight into rows of equal RMS and the batch norm that gives their scale back."""
    rms = weight.square().mean((1, 2, 3)).sqrt()
    factor = rms / weight.square().mean().sqrt()
    factor[factor == 0] = 1
    convolution.weight.copy_(weight / factor[:, None, None, None])
    norm.weight.copy_(factor)
    norm.bias.copy_(bias)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.zero_()
    norm.running_var.fill_(1 - BN_EPS)


def data(
    split: str = "val", batch_size: int = 8, limit: int | None = None
) -> DataLoader[tuple[torch.Tensor, list[dict[str, torch.Tensor]]]]:
    """200 COCO validation images, or 160 training images.

    Targets are dictionaries of `boxes` `(n, 4)` as `x1, y1, x2, y2` in the stored image, `labels`, `iscrowd`,
    `area`, and the `scale` from there to the network's input.
    """
    images = PackedImages(data_file(f"coco/coco_{split}512.npz"))
    ids = array(data_file(f"coco/coco_{split}512.npz"), "image_id")
    annotations: dict[int, list[dict[str, Any]]] = {int(i): [] for i in ids}
    for annotation in json.loads(data_file(f"coco/coco_{split}512.json").read_text())["annotations"]:
        annotations[annotation["image_id"]].append(annotation)

    def sample(i: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        pixels, scale = _letterbox(images[i])
        return pixels, _target(annotations[int(ids[i])], scale)

    return DataLoader(Samples(sample, len(images), limit), batch_size=batch_size, collate_fn=_collate)


def training(batch_size: int = 8, seed: int = 0) -> DataLoader[Any]:
    """Training images in random order, which the seed and the epoch decide; half of them mirrored, without targets."""
    images = PackedImages(data_file("coco/coco_train512.npz"))
    samples = Mirrored(lambda i: _letterbox(images[i])[0], len(images), seed=seed)
    order = EpochSampler(range(len(images)), shuffle=True, seed=seed)
    return DataLoader(samples, batch_size=batch_size, sampler=order, drop_last=True, collate_fn=channels_last)


def _collate(samples: Sequence[tuple[torch.Tensor, Any]]) -> tuple[torch.Tensor, list[Any]]:
    return torch.stack([image for image, _ in samples]), [target for _, target in samples]


def _letterbox(image: Image.Image) -> tuple[torch.Tensor, float]:
    scale = min(SIZE / image.height, SIZE / image.width)
    size = (int(image.width * scale), int(image.height * scale))
    canvas = np.full((SIZE, SIZE, 3), CANVAS, np.uint8)
    canvas[: size[1], : size[0]] = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR))
    return torch.from_numpy(canvas[:, :, ::-1].copy()).permute(2, 0, 1).float(), scale


def _target(annotations: Sequence[Mapping[str, Any]], scale: float) -> dict[str, torch.Tensor]:
    corners = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float64).reshape(-1, 4)
    return {
        "boxes": torch.cat([corners[:, :2], corners[:, :2] + corners[:, 2:]], dim=1),
        "labels": torch.tensor([a["category_id"] for a in annotations], dtype=torch.int64),
        "iscrowd": torch.tensor([a["iscrowd"] for a in annotations], dtype=torch.int64),
        "area": torch.tensor([a["area"] for a in annotations], dtype=torch.float64),
        "scale": torch.tensor(scale, dtype=torch.float64),
    }


def detections(outputs: torch.Tensor, targets: Sequence[Mapping[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    """Decode boxes, take the best class of each, suppress overlaps, and return to the stored image's
    coordinates."""
    centres, sizes = _decode(outputs)
    scores, labels = outputs[..., 5:].max(dim=2)
    scores = scores * outputs[..., 4]
    found = []
    for i, target in enumerate(targets):
        keep = scores[i] > THRESHOLD
        boxes = torch.cat([centres[i] - sizes[i] / 2, centres[i] + sizes[i] / 2], dim=1)[keep]
        chosen = batched_nms(boxes, scores[i][keep], labels[i][keep], NMS_IOU)[:MAX_DETECTIONS]
        found.append(
            {
                "boxes": boxes[chosen].double() / target["scale"].to(boxes.device),
                "labels": labels[i][keep][chosen],
                "scores": scores[i][keep][chosen],
            }
        )
    return found


def _decode(outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres and sizes `(N, 3549, 2)` in pixels of the network's input."""
    cells, strides = [], []
    for stride in STRIDES:
        side = torch.arange(SIZE // stride, device=outputs.device)
        y, x = torch.meshgrid(side, side, indexing="ij")
        cells.append(torch.stack([x, y], dim=2).reshape(-1, 2))
        strides.append(torch.full((side.numel() ** 2, 1), stride, device=outputs.device))
    stride = torch.cat(strides)
    return (outputs[..., :2] + torch.cat(cells)) * stride, outputs[..., 2:4].exp() * stride


def detection_loss(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The detector's own losses (Ge et al., 2021) of outputs, with those of another network as targets.

    The distance of the raw outputs would be that of 3549 boxes, nearly all of them around nothing. So classes and boxes
    count as much as the other network thinks that there is an object.
    """
    with torch.autocast(found.device.type, enabled=False):
        found, wanted = found.float(), wanted.float()
        objectness, classes = wanted[..., 4], wanted[..., 5:]
        boxes = (found[..., :4] - wanted[..., :4]).abs().mean(2)
        loss = binary_cross_entropy(found[..., 4], objectness, reduction="none")
        loss = loss + objectness * binary_cross_entropy(found[..., 5:], classes, reduction="none").sum(2)
        loss = loss + objectness * _BOX_WEIGHT * boxes
        return loss.sum() / objectness.sum()


def drawn_loss(outputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """`detection_loss` against objects, classes and directions drawn from the outputs themselves, summed."""
    objectness, classes = outputs[..., 4], outputs[..., 5:]
    drawn, kinds = (torch.bernoulli(p.detach(), generator=generator) for p in (objectness, classes))
    signs = torch.randint(0, 2, outputs[..., :4].shape, generator=generator) * 2.0 - 1
    loss = binary_cross_entropy(objectness, drawn, reduction="none")
    loss = loss + drawn * binary_cross_entropy(classes, kinds, reduction="none").sum(2)
    return (loss + drawn * _BOX_WEIGHT * (outputs[..., :4] * signs).mean(2)).sum()


ADAPTER = Adapter(
    name="yolox_nano",
    task="detection",
    build=build,
    data=data,
    input_shape=(3, SIZE, SIZE),
    baseline={"box_ap": 30.80, "ap50": 45.97, "ap75": 32.82},
    training=training,
    score=drawn_loss,
    loss=detection_loss,
)
