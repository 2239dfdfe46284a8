"""RISE: random masks, each weighted with the model's answer to the picture seen through it."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lficam.contract import ExplainableClassifier, Target
from lficam.errors import InvalidInputError
from lficam.explainers.base import Explainer
from lficam.explainers.fast import Precision, fast_classifier
from lficam.explainers.masking import class_scores, fixed_target, logits_under_masks


class RISE(Explainer):
    """sum_i S(I (x) M_i) M_i / (count * p) over random masks M_i, S the probability of the class.

    Source: Petsiuk et al. 2018, equation 6: a coarse grid of ones with probability p, upsampled to one cell more than
    the picture, shifted at random. The masks are the same for every picture of one seed, size and count.

    Args:
        model: anything that gives logits.
        count: masks; the paper takes 4,000 (VGG-16) to 8,000 (ResNet-50).
        grid: cells along a side; the paper's 7.
        p: probability that a cell is kept, in (0, 1).
        seed: of the masks.
        batch_size: masked pictures in a forward pass; few are fastest on a CPU, 64 and more on a GPU.
        precision: ``auto`` is bfloat16 where the device has it natively; ``32`` the images' own.
    """

    name = "rise"

    def __init__(
        self,
        model: ExplainableClassifier,
        count: int = 4000,
        grid: int = 7,
        p: float = 0.5,
        seed: int = 0,
        batch_size: int = 16,
        precision: Precision = "32",
    ) -> None:
        super().__init__(model)
        if count < 1 or grid < 1 or not 0 < p < 1:
            raise InvalidInputError(f"rise: expected count, grid >= 1 and 0 < p < 1, got {count}, {grid}, {p}.")
        self.count, self.grid, self.p, self.seed = count, grid, p, seed
        self.batch_size, self.precision = batch_size, precision

    def passes(self, images: Tensor) -> int:
        """The masks, and the whole picture."""
        return 1 + self.count

    def raw_maps(self, images: Tensor, class_idx: Target) -> Tensor:
        """(N, 1, H, W), zero or more: the mean answer to the pictures that show a pixel, times how often they do."""
        return self.raw_maps_for(images, [class_idx])[0]

    def raw_maps_for(self, images: Tensor, targets: Sequence[Target]) -> list[Tensor]:
        """`raw_maps` of each target, from the same passes."""
        count, size = len(images), (images.shape[-2], images.shape[-1])
        logits = self.model(images)
        sums = torch.zeros(len(targets), count, *size, device=images.device)
        with fast_classifier(self.model, images, self.precision) as classify:
            for masks in self._masks(size):
                of_each = masks.to(images).repeat(count, 1, 1, 1)
                owner = torch.arange(count, device=images.device).repeat_interleave(len(masks))
                masked = logits_under_masks(classify, images, owner, of_each.__getitem__, self.batch_size)
                for number, target in enumerate(targets):
                    scores = class_scores(fixed_target(target, logits, len(masks)), masked).view(count, len(masks))
                    sums[number] += torch.einsum("nb,bhw->nhw", scores, masks[:, 0].to(scores))
        return list(sums.unsqueeze(2) / (self.count * self.p))

    def _masks(self, size: tuple[int, int]) -> Iterator[Tensor]:
        """Batches of masks (b, 1, H, W) in [0, 1], made on the CPU, the same for every device and batch size."""
        generator = torch.Generator().manual_seed(self.seed)
        cell = [-(-length // self.grid) for length in size]
        enlarged = [(self.grid + 1) * side for side in cell]
        for start in range(0, self.count, self.batch_size):
            number = min(self.batch_size, self.count - start)
            masks = []
            for _ in range(number):
                kept = (torch.rand(1, 1, self.grid, self.grid, generator=generator) < self.p).float()
                down, right = (int(torch.randint(side, (1,), generator=generator)) for side in cell)
                large = F.interpolate(kept, enlarged, mode="bilinear", align_corners=False)
                masks.append(large[..., down : down + size[0], right : right + size[1]])
            yield torch.cat(masks)
