"""How an image becomes a network's input, as a frozen value that a file's provenance can carry."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from mvq.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

Interpolation = Literal["nearest", "bilinear", "bicubic"]
INTERPOLATIONS = ("nearest", "bilinear", "bicubic")


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Resize, crop, scale to 0..1, then `(x - mean) / std` for each channel.

    Attributes:
        mean: one value a channel (or one for all), on the 0..1 scale.
        std: likewise, positive.
        resize: length the short side is resized to; None leaves the size.
        crop: side of the square cut from the centre; None for no crop. Images smaller than it are padded with
            zeros.
        interpolation: of the resize.
        channel_order: `rgb`, or `bgr` for networks that want it.

    Raises:
        ConfigError: listing every fault at once.
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    resize: int | None = 256
    crop: int | None = 224
    interpolation: Interpolation = "bilinear"
    channel_order: Literal["rgb", "bgr"] = "rgb"

    def __post_init__(self) -> None:
        faults = []
        for name in ("mean", "std"):
            values = getattr(self, name)
            try:
                numbers = tuple(float(v) for v in values)
            except (TypeError, ValueError):
                faults.append(f"preprocessing: {name}={values!r} is not a list of numbers")
                continue
            object.__setattr__(self, name, numbers)
            if not numbers or not all(map(math.isfinite, numbers)) or (name == "std" and min(numbers) <= 0):
                rule = "positive numbers" if name == "std" else "finite numbers"
                faults.append(f"preprocessing: {name}={list(numbers)} is not a list of {rule}")
        if not faults and len(self.mean) != len(self.std):
            faults.append(
                f"preprocessing: mean has {len(self.mean)} values and std {len(self.std)}; give both the same number"
            )
        for name in ("resize", "crop"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                faults.append(f"preprocessing: {name}={value!r} is not a positive whole number or None")
        for name, choices in (("interpolation", INTERPOLATIONS), ("channel_order", ("rgb", "bgr"))):
            if getattr(self, name) not in choices:
                faults.append(f"preprocessing: {name}={getattr(self, name)!r} is not one of {', '.join(choices)}")
        if faults:
            raise ConfigError("\n".join(faults))

    def for_size(self, image_size: int) -> Preprocessing:
        """The same for another input size: that centre crop, and a resize larger by 256 / 224.

        The resize is left out where it was left out before.
        """
        resize = None if self.resize is None else round(image_size * 256 / 224)
        return dataclasses.replace(self, resize=resize, crop=image_size)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` gives back an equal value."""
        out = dataclasses.asdict(self)
        out["mean"], out["std"] = list(self.mean), list(self.std)
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Preprocessing:
        """Read `to_dict`'s form; keys left out take their defaults.

        Raises:
            ConfigError: on an unknown key or an invalid value.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        unknown = [key for key in data if key not in known]
        if unknown:
            raise ConfigError(
                f"preprocessing: unknown key{'s' * (len(unknown) > 1)} {', '.join(map(repr, unknown))}; "
                f"known are {', '.join(known)}"
            )
        return cls(**data)

    @classmethod
    def preset(cls, name: str) -> Preprocessing:
        """A named preprocessing, see `PRESETS`.

        Raises:
            ConfigError: if the name is unknown.
        """
        if name not in PRESETS:
            raise ConfigError(f"preprocessing {name!r} is not known; known are {', '.join(PRESETS)}")
        return PRESETS[name]

    def image(self, image: Image) -> torch.Tensor:
        """A PIL image as float32 `(3, H, W)`."""
        from torchvision.transforms import functional

        rgb: Any = image.convert("RGB")
        if self.resize is not None:
            rgb = functional.resize(rgb, [self.resize], functional.InterpolationMode(self.interpolation))
        if self.crop is not None:
            rgb = functional.center_crop(rgb, [self.crop, self.crop])
        return self.normalise(functional.pil_to_tensor(rgb).float() / 255)

    def array(self, image: torch.Tensor) -> torch.Tensor:
        """A uint8 `(..., C, H, W)` tensor on the scale 0..255, or a float one on 0..1, as float32 `(..., C, H, W)`."""
        from torchvision.transforms import functional

        x = image.float() / 255 if image.dtype == torch.uint8 else image.float()
        if self.resize is not None:
            x = functional.resize(x, [self.resize], functional.InterpolationMode(self.interpolation), antialias=True)
        if self.crop is not None:
            x = functional.center_crop(x, [self.crop, self.crop])
        return self.normalise(x)

    def normalise(self, x: torch.Tensor) -> torch.Tensor:
        """`(x - mean) / std` of float `(..., C, H, W)` on 0..1, after putting the channels in order."""
        if self.channel_order == "bgr":
            x = x.flip(-3)
        mean, std = (x.new_tensor(v).view(-1, 1, 1) for v in (self.mean, self.std))
        return (x - mean) / std


#: `imagenet` is what torchvision's classification weights expect; `tf` maps to -1..1; `unit` only scales to
#: 0..1; `cifar10`, `cifar100` use the mean and deviation of their training images.
PRESETS: dict[str, Preprocessing] = {
    "imagenet": Preprocessing(),
    "tf": Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    "unit": Preprocessing(mean=(0.0,), std=(1.0,), resize=None, crop=None),
    "cifar10": Preprocessing(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616), resize=None, crop=None),
    "cifar100": Preprocessing(mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762), resize=None, crop=None),
}
