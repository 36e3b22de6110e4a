"""Small networks and images for the tests of recovery."""

import torch
from torch import nn


class Residual(nn.Module):
    """Two blocks with batch norm, a depth-wise convolution, a shortcut and a classifier; 20 is no multiple of 8."""

    def __init__(self, width: int = 20) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.expand = nn.Sequential(nn.Conv2d(16, 48, 1, bias=False), nn.BatchNorm2d(48), nn.ReLU6())
        self.depthwise = nn.Sequential(
            nn.Conv2d(48, 48, 3, 1, 1, groups=48, bias=False), nn.BatchNorm2d(48), nn.ReLU6()
        )
        self.project = nn.Sequential(nn.Conv2d(48, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.wide = nn.Conv2d(16, width, 3, 2, 1)
        self.fc = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.project(self.depthwise(self.expand(x)))
        x = torch.relu(self.wide(x))
        return self.fc(x.mean((2, 3)))


class Untraceable(nn.Module):
    """Its control flow depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        return self.b(x if float(x.detach().mean()) > 1e9 else x.relu())


def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    """Batch norm with statistics and affine parameters as a trained network has them, in `eval` mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.running_mean, -0.5), (module.running_var, 0.5)):
                tensor.copy_(low + torch.rand(tensor.shape, generator=generator))
            with torch.no_grad():
                module.weight.copy_(0.5 + torch.rand(module.weight.shape, generator=generator))
                module.bias.copy_(torch.rand(module.bias.shape, generator=generator) - 0.5)
    return net.eval()


def residual(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return randomised(Residual(), seed)


def images(n: int = 48, size: int = 12, seed: int = 1) -> torch.Tensor:
    """Smooth random images, so that neighbouring inputs correlate as in photographs."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, 3, 4, 4, generator=generator)
    return nn.functional.interpolate(coarse, (size, size), mode="bilinear")
