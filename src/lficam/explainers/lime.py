"""LIME: a linear model of the class's probability over superpixels that are shown or hidden, by captum."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lficam.contract import ExplainableClassifier, Target
from lficam.errors import InvalidInputError
from lficam.explainers.base import Explainer
from lficam.explainers.fast import Precision, fast_classifier
from lficam.explainers.masking import class_scores, fixed_target


class LIME(Explainer):
    """The weight of each superpixel in a sparse linear model of what the classifier answers to half-hidden pictures.

    Source: Ribeiro et al. 2016, by captum (Lasso on samples weighted by their likeness to the picture); superpixels by
    SLIC (Achanta et al. 2012), by scikit-image. A hidden superpixel is zero in the normalised picture, its mean colour.

    Args:
        model: anything that gives logits.
        samples: half-hidden pictures.
        segments: superpixels, about.
        alpha: of the Lasso: the higher, the more superpixels weigh nothing; captum's 0.01 suits trained classifiers.
        seed: of the samples; every picture begins with it, so a map does not depend on its batch.
        batch_size: pictures in a forward pass; few are fastest on a CPU, 64 and more on a GPU.
        precision: ``auto`` is bfloat16 where the device has it natively; ``32`` the images' own.

    Raises:
        InvalidInputError: captum or scikit-image is not installed.
    """

    name = "lime"
    signed = True

    def __init__(
        self,
        model: ExplainableClassifier,
        samples: int = 1000,
        segments: int = 50,
        alpha: float = 0.01,
        seed: int = 0,
        batch_size: int = 16,
        precision: Precision = "32",
    ) -> None:
        super().__init__(model)
        self.samples, self.segments, self.alpha, self.seed = samples, segments, alpha, seed
        self.batch_size, self.precision = batch_size, precision
        self._lime, self._lasso, self._slic = _libraries()

    def passes(self, images: Tensor) -> int:
        """The samples, and the whole picture."""
        return 1 + self.samples

    def raw_maps(self, images: Tensor, class_idx: Target) -> Tensor:
        """(N, 1, H, W), signed, in probability."""
        asked = fixed_target(class_idx, self.model(images))
        targets = [asked] * len(images) if callable(asked) else asked.tolist()
        with fast_classifier(self.model, images, self.precision) as classify:
            maps = [
                self._explain_one(classify, image[None], target) for image, target in zip(images, targets, strict=True)
            ]
        return torch.cat(maps)

    def _explain_one(self, classify: Any, image: Tensor, target: Target) -> Tensor:
        superpixels = torch.from_numpy(self.superpixels(image[0])).to(image.device)[None, None]

        lime = self._lime(lambda pictures: class_scores(target, classify(pictures)), self._lasso(alpha=self.alpha))
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return lime.attribute(
                image,
                feature_mask=superpixels,
                n_samples=self.samples,
                perturbations_per_eval=self.batch_size,
            )[:, :1]

    def superpixels(self, image: Tensor) -> np.ndarray:
        """(H, W) int64, from 0, of a normalised image (3, H, W)."""
        pixels = image.float().cpu()
        low, high = pixels.amin(), pixels.amax()
        scaled = ((pixels - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny)).permute(1, 2, 0).numpy()
        return self._slic(scaled, n_segments=self.segments, compactness=10, start_label=0).astype(np.int64)


def _libraries() -> tuple[Any, Any, Any]:
    try:
        from captum._utils.models.linear_model import SkLearnLasso  # noqa: PLC0415 - an extra
        from captum.attr import Lime  # noqa: PLC0415 - an extra
        from skimage.segmentation import slic  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise InvalidInputError(f"lime: {error.name} is not installed; pip install 'lficam[compare]'.") from error
    return Lime, SkLearnLasso, slic
