"""A model on a sample of pictures: what several measures ask of it, asked once."""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lficam import functional as LF
from lficam.contract import in_eval_mode
from lficam.data.pictures import Pictures
from lficam.data.transforms import HIDDEN_GRID, normalise
from lficam.errors import InvalidInputError
from lficam.evaluation import Subject
from lficam.explainers import EXPLAINERS, VERSUS, create_at
from lficam.explainers.base import Explainer
from lficam.explainers.fast import Classifier, Precision, fast_classifier
from lficam.metrics import faithfulness
from lficam.models.plain import PlainClassifier
from lficam.progress import progress_bar

ONES = "ones"
GRID = 2  # pictures along a side of a grid
_BATCH = 100


class Probe:
    """A model on a sample of pictures: what several measures ask of it, asked once.

    Args:
        model: trained, with its preprocessing; on the device where it is.
        pictures: the sample.
        precision: of the explainers of many passes; ``auto`` is bfloat16 where the device has it natively.

    Attributes:
        model: see above.
        pictures: see above.
        precision: see above.
    """

    def __init__(self, model: PlainClassifier, pictures: Pictures, precision: Precision = "32") -> None:
        self.model, self.pictures, self.precision = model, pictures, precision
        self._stack = ExitStack()
        progress = self._stack.enter_context(progress_bar())
        self._stack.enter_context(in_eval_mode(model))
        self.subject = Subject(model, pictures, model.config.required_preprocessing(), _BATCH, progress)
        self._maps: dict[tuple[str, bool, bool], Tensor] = {}

    def __enter__(self) -> "Probe":
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @cached_property
    def logits(self) -> Tensor:
        """(N, C), the model's answers; NaN and infinite ones are refused."""
        return self.subject.require_answers(self.subject.logits(self.model, "classifying"))

    @cached_property
    def predicted(self) -> Tensor:
        """(N,), the class that faithfulness asks about."""
        return self.logits.argmax(dim=1)

    @cached_property
    def runner_up(self) -> Tensor:
        """(N,), the second class: a margin is the predicted one's logit minus its."""
        return self.logits.topk(2, dim=1).indices[:, 1]

    @cached_property
    def true(self) -> Tensor:
        """(N,), the class that localisation asks about: the (first) object's."""
        known = self.pictures.object_labels
        return self.pictures.labels if known is None else known[:, 0]

    @cached_property
    def drops(self) -> tuple[Tensor, Tensor]:
        """What the logit and the margin lose without each patch of a grid, (N, P, P) each."""
        found = []
        for images, part, classify in self.asking("taking patches away"):
            patches = min(HIDDEN_GRID, *images.shape[-2:])
            found.append(faithfulness.patch_drops(self._logit_and_margin(part, classify), images, patches).cpu())
        logit, margin = torch.cat(found).unbind(-1)
        return logit, margin

    def _logit_and_margin(self, part: slice, classify: Classifier) -> Classifier:
        """Pictures (n, 3, H, W) to (n, 2): the predicted class's logit, and what it is above the second's."""
        asked, other = (classes[part].to(self.device)[:, None] for classes in (self.predicted, self.runner_up))

        def both(pictures: Tensor) -> Tensor:
            logits = classify(pictures)
            logit = logits.gather(1, asked)
            return torch.cat((logit, logit - logits.gather(1, other)), dim=1)

        return both

    def asking(self, description: str) -> Iterator[tuple[Tensor, slice, Classifier]]:
        """Batches, each with the slice that it is and the model as a fast function of pictures to logits, float32."""
        with ExitStack() as stack:
            classify: Classifier | None = None
            for images, part in self.subject.batches(description):
                if classify is None:
                    classify = stack.enter_context(fast_classifier(self.model, images, "32"))
                yield images, part, classify

    def probability(self, part: slice, classify: Classifier) -> Classifier:
        """Pictures to the probability of the class that the whole picture was taken for."""
        asked = self.predicted[part].to(self.device)[:, None]
        return lambda pictures: classify(pictures).softmax(dim=1).gather(1, asked)[:, 0]

    def side_by_side(self, grid: Tensor) -> Tensor:
        """Four pictures as one of twice the side, (1, 3, 2 H, 2 W).

        Raises:
            InvalidInputError: the network takes pictures of its own size only.
        """
        preprocessing = self.subject.preprocessing
        images = self.pictures.prepared(grid.tolist(), preprocessing)
        rows = [torch.cat(list(row), dim=2) for row in images.split(GRID)]
        picture = normalise(torch.cat(rows, dim=1)[None].to(self.device), preprocessing)
        try:
            with torch.inference_mode():
                self.model(picture)
        except RuntimeError as error:
            raise InvalidInputError(
                f"metrics: grid_pointing asks for pictures of {tuple(picture.shape[-2:])}, which this network does not "
                f"take; leave it out. ({error})"
            ) from error
        return picture

    def maps(self, name: str, raw: bool = False, of_true: bool = False) -> Tensor:
        """(N, 1, H, W) in [0, 1], or with ``raw`` the method's own values, resized; of the predicted or true class."""
        key = (name, raw, of_true and name in EXPLAINERS and EXPLAINERS[name].class_targeted)
        if key not in self._maps:
            # Measures come explainer by explainer, and a set of maps may fill much memory.
            self._maps = {known: maps for known, maps in self._maps.items() if known[0] == name}
            # An object without a label is asked for as any; its picture is left out by the measures.
            self._maps[key] = self._ask(name, raw, self.true.clamp(min=0) if of_true else self.predicted)
        return self._maps[key]

    def explainer(self, name: str, **options: Any) -> Explainer:
        """An explainer of the model, in the precision asked for."""
        return create_at(self.precision, name, self.model, **options)

    def _ask(self, name: str, raw: bool, asked: Tensor) -> Tensor:
        side = self.subject.preprocessing.size
        if name == ONES:
            return torch.ones(len(self.pictures), 1, side, side)
        # A copy that has lost its weights is asked about the rival of the whole model, not about its own.
        versus = torch.where(asked == self.predicted, self.runner_up, self.predicted) if name == VERSUS else None
        maps = self.subject.maps(self.explainer(name), asked, versus, raw)
        if not raw:
            return maps
        # A level map stays level to the bit, or the rounding of its enlargement would be ranked.
        level = LF.is_flat(LF.min_max(maps)).view(-1, 1, 1, 1)
        return torch.where(level, maps.mean(dim=(2, 3), keepdim=True), LF.upsample(maps, (side, side)))
