"""Class evidence: what a logit sums, place by place."""

import torch
from torch import Tensor

from lficam import functional as LF
from lficam.contract import ClassIndex, ExplainableClassifier, Target
from lficam.errors import InvalidInputError
from lficam.explainers.base import Explainer, asked_class, pool_and_classify, require_linear_head


class ClassEvidence(Explainer):
    """The signed share of every grid cell in a class's logit, or in the difference of two logits.

    Source: with global average pooling and a linear head, logit_c - bias_c is the spatial mean of sum_k W_ck F'_k,
    F' being the map that pooling receives. For a plain net this is CAM before its ReLU.

    Exact is the sum, on the final grid and before the softmax. Not exact: which pixels a cell saw. A shift common to
    all classes leaves every probability as it is, so the weights are centred over the classes unless told otherwise.

    Args:
        model: with a linear head.
        versus: explain "the class asked for, and not this one": the difference of the two classes' evidence.
        centred: subtract the mean of all classes' weights; without it the raw map's mean plus bias is the logit.
    """

    name = "class_evidence"
    signed = True

    def __init__(self, model: ExplainableClassifier, versus: ClassIndex = None, centred: bool = True) -> None:
        super().__init__(model)
        self.versus, self.centred = versus, centred
        require_linear_head(model, self.name)

    def raw_maps(self, images: Tensor, class_idx: Target) -> Tensor:
        """(N, 1, h, w), signed, in logits."""
        head, pooled, logits = pool_and_classify(self.model, images, self.name)
        asked = asked_class(class_idx, logits, self.name)
        rows = head.weight[asked]
        if (rival := self._rival(asked, logits)) is not None:
            rows = rows - head.weight[asked_class(rival, logits, self.name)]
        elif self.centred and len(head.weight) > 1:  # a single logit has no other class to be centred over
            rows = rows - head.weight.mean(dim=0)
        return LF.weighted_sum(pooled, rows)

    def _rival(self, asked: Tensor, logits: Tensor) -> ClassIndex:
        """The class that the one asked for is held against, as ``versus`` may be given; or none."""
        return self.versus


class ClassEvidenceVersus(ClassEvidence):
    """`ClassEvidence` for a class and not for its strongest rival: why this one, and not that?

    Source: the difference of two of `ClassEvidence`'s sums, whose mean is the difference of the two logits without
    their biases.

    Args:
        model: with a linear head and two classes at least.
        versus: the rival; the predicted class unless given, or the second one where the predicted is asked for.

    Raises:
        InvalidInputError: no linear head, or one class, which has no rival.

    >>> import torch, lficam
    >>> model = lficam.create_model("cifar_resnet20")
    >>> lficam.create_explainer("class_evidence_versus", model)(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 1, 32, 32])
    """

    name = "class_evidence_versus"

    def __init__(self, model: ExplainableClassifier, versus: ClassIndex = None) -> None:
        super().__init__(model, versus)
        if require_linear_head(model, self.name).out_features < 2:
            raise InvalidInputError(f"model: {self.name} needs two classes at least, got one; use class_evidence.")

    def _rival(self, asked: Tensor, logits: Tensor) -> ClassIndex:
        """The predicted class of each picture, or the second one where that is asked for."""
        if self.versus is not None:
            return self.versus
        first, second = logits.topk(2, dim=1).indices.unbind(dim=1)
        return torch.where(first == asked, second, first)
