"""The model's own attention map (LFI-CAM: equation 9, ABN: its branch)."""

from torch import Tensor

from lficam.contract import Target
from lficam.errors import InvalidInputError
from lficam.explainers.base import Explainer


class Attention(Explainer):
    """Where the model amplifies its features. It has no class, and is no reason for the label by itself.

    Raw: ABN's map lies on the finer grid of the stage before the last.
    """

    name = "attention"
    class_targeted = False

    def raw_maps(self, images: Tensor, class_idx: Target) -> Tensor:
        """(N, 1, h, w) in [0, 1]."""
        attention = self.model.explain(images).attention
        if attention is None:
            raise InvalidInputError(
                "attention: expected a model with an attention map (method 'lfi' or 'abn'), got one without; "
                "use class_evidence or grad_cam."
            )
        return attention
