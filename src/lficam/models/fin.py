"""The Feature Importance Network: equations 7 and 8, from masked features to one weight a channel."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lficam.errors import InvalidInputError, UnknownNameError
from lficam.models.blocks import init_weights

FinName = Literal["conv3x3", "conv3x3_relu", "pointwise", "uniform", "first_guess"]
ImportanceName = Literal["softmax", "scores"]


def _conv3x3(channels: int, relu_after: tuple[bool, ...]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for relu in relu_after:
        layers += [nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)]
        if relu:
            layers.append(nn.ReLU())
    return layers


def _pointwise(channels: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for wide_in, wide_out in ((1, 2), (2, 2), (2, 1), (1, 1)):
        inputs, outputs = wide_in * channels, wide_out * channels
        layers += [nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        if wide_in == wide_out:
            layers.append(nn.ReLU())
    return layers


def _layers(name: FinName, channels: int) -> list[nn.Module]:
    match name:
        case "conv3x3":
            return _conv3x3(channels, relu_after=(False, True, False, True))
        case "conv3x3_relu":
            return _conv3x3(channels, relu_after=(True, True, True, True))
        case "pointwise":
            return _pointwise(channels)
    raise UnknownNameError("fin", name, get_args(FinName))


class FeatureImportanceNetwork(nn.Module):
    """Masked features (N, K, h, w) to importance (N, K): convolutions, then global average pooling.

    Source: equations 7 and 8; the layers of the paper's Table 4 as the authors' public code has them. ``conv3x3`` is
    the one of its CIFAR trunks, ``conv3x3_relu`` (a ReLU after every batch norm) of its last ImageNet code,
    ``pointwise`` the only one that gives the model sizes of the paper's Table 3.

    Args:
        channels: K.
        name: which layers.
        importance: ``softmax`` over the K scores (the authors' code; positive, sums to 1), or ``scores``, the scores
            themselves (the letter of equations 7-8; zero or more, all zero gives a flat map).
        temperature: what the scores are divided by before the softmax, above 0; below 1 the weights differ more.

    Raises:
        UnknownNameError: no such layers or importance.
        InvalidInputError: a temperature of zero or less.

    >>> FeatureImportanceNetwork(64)(torch.zeros(2, 64, 8, 8)).sum(dim=1).tolist()
    [1.0, 1.0]
    """

    def __init__(
        self,
        channels: int,
        name: FinName = "conv3x3",
        importance: ImportanceName = "softmax",
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if importance not in get_args(ImportanceName):
            raise UnknownNameError("importance", importance, get_args(ImportanceName))
        if not temperature > 0:
            raise InvalidInputError(f"temperature: expected more than 0, got {temperature}.")
        self.layers = nn.Sequential(*_layers(name, channels))
        self.importance = importance
        self.temperature = temperature
        init_weights(self)

    def forward(self, masked: Tensor) -> Tensor:
        """Equations 7-8: (N, K, h, w) to (N, K), pooled in float32 or wider."""
        scores = self.layers(masked).mean(dim=(2, 3), dtype=torch.promote_types(masked.dtype, torch.float32))
        return (scores / self.temperature).softmax(dim=1) if self.importance == "softmax" else scores
