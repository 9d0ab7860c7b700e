"""The network that the benchmark serves: the CIFAR-10 classifier of the PyTorch tutorials, untrained.

Speed does not depend on the weights, so a fixed seed will do.
"""

import torch
from torch import nn


class CifarNet(nn.Module):
    """FP32 [N, 3, 32, 32] to FP32 [N, 10]; 62,006 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.classifier = nn.Sequential(
            nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.classifier(torch.flatten(self.features(x), 1))
        return scores


def create() -> nn.Module:
    """The network, the same weights every time."""
    torch.manual_seed(0)
    return CifarNet().eval()
