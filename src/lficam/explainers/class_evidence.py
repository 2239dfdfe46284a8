"""Class evidence: what a logit sums, place by place."""

from torch import Tensor

from lficam import functional as LF
from lficam.contract import ClassIndex, ExplainableClassifier, Target
from lficam.explainers.base import Explainer, class_rows, pool_and_classify, require_linear_head


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
        rows = class_rows(head, class_idx, logits, self.name)
        if self.versus is not None:
            rows = rows - class_rows(head, self.versus, logits, self.name)
        elif self.centred and len(head.weight) > 1:  # a single logit has no other class to be centred over
            rows = rows - head.weight.mean(dim=0)
        return LF.weighted_sum(pooled, rows)
