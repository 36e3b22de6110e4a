"""Small real networks for the tests."""

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, groups=2, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.down = nn.Conv2d(n_in, n_out, 1, stride) if stride != 1 or n_in != n_out else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(out)) + self.down(x))


class SmallNet(nn.Module):
    """Residual, grouped, depth-wise, strided, 1x1 and linear layers; 40 and 24 channels are no multiples of 16."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 1, 1)
        self.layer1 = Block(16, 32, 2)
        self.layer2 = Block(32, 40, 2)
        self.dw = nn.Conv2d(40, 40, 3, 1, 1, groups=40)
        self.hidden = nn.Linear(40, 24)
        self.fc = nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.dw(self.layer2(self.layer1(torch.relu(self.stem(x))))))
        return self.fc(torch.relu(self.hidden(x.mean((2, 3)))))


def small_net(seed: int = 0) -> SmallNet:
    torch.manual_seed(seed)
    return SmallNet()


def batch(n: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, 16, 16, generator=generator), torch.randint(0, 10, (n,), generator=generator)
