"""Maps that explain nothing: what every explanation must beat."""

import zlib

import torch
from torch import Tensor

from lficam.contract import ExplainableClassifier, Target
from lficam.explainers.base import Explainer


class FeatureMean(Explainer):
    """The mean over the channels of the last map ("pixel-wise mean feature map", the paper's Figures 5 and 7)."""

    name = "feature_mean"
    class_targeted = False

    def raw_maps(self, images: Tensor, class_idx: Target) -> Tensor:
        """(N, 1, h, w), in the features' unit."""
        return self.model.forward_features(images).float().mean(dim=1, keepdim=True)


class Random(Explainer):
    """Uniform noise on the grid of the features, of each picture its own: an explanation by dice.

    Args:
        model: gives the grid.
        seed: of the noise, together with the picture's own pixels; so a map does not depend on its batch.
    """

    name = "random"
    class_targeted = False

    def __init__(self, model: ExplainableClassifier, seed: int = 0) -> None:
        super().__init__(model)
        self.seed = seed

    def raw_maps(self, images: Tensor, class_idx: Target) -> Tensor:
        """(N, 1, h, w) in [0, 1)."""
        grid = self.model.forward_features(images[:1]).shape[-2:]
        maps = []
        for image in images:
            content = zlib.crc32(image.detach().float().cpu().contiguous().numpy().tobytes())
            maps.append(torch.rand(1, *grid, generator=torch.Generator().manual_seed(self.seed + content)))
        return torch.stack(maps).to(images.device)


class Centre(Explainer):
    """A fixed Gaussian in the middle of the picture, a quarter of the side wide: it never looks at the image."""

    name = "centre"
    class_targeted = False

    def raw_maps(self, images: Tensor, class_idx: Target) -> Tensor:
        """(N, 1, H, W) in (0, 1]."""
        height, width = images.shape[-2:]
        rows = _gaussian(height, images.device)
        columns = _gaussian(width, images.device)
        return (rows[:, None] * columns[None, :]).expand(len(images), 1, height, width)


def _gaussian(length: int, device: torch.device) -> Tensor:
    distance = (torch.arange(length, device=device) - (length - 1) / 2) / (length / 4)
    return torch.exp(-0.5 * distance**2)
