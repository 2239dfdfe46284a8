"""CAM and Grad-CAM: the one sum, with weights of their own."""

from abc import abstractmethod

import torch
from torch import Tensor

from lficam import functional as LF
from lficam.contract import ClassIndex, ExplainableClassifier, resolve_class_idx
from lficam.explainers.base import Explainer, pool_and_classify, require_linear_head


class CAM(Explainer):
    """ReLU(sum_k W_ck F_k), F being the map that pooling receives.

    Source: Zhou et al. 2016, equation 2; the ReLU as the paper has it for all methods (equation 4).
    """

    name = "cam"

    def __init__(self, model: ExplainableClassifier) -> None:
        super().__init__(model)
        require_linear_head(model, self.name)

    def raw_maps(self, images: Tensor, class_idx: ClassIndex) -> Tensor:
        """(N, 1, h, w), zero or more, in logits."""
        head, pooled, logits = pool_and_classify(self.model, images, self.name)
        weights = head.weight[resolve_class_idx(class_idx, logits, read_values=True)]
        return LF.class_activation_map(pooled, weights)


class _GradientWeighted(Explainer):
    """Weights from the gradient of a logit, taken from the last map on, never through the trunk."""

    @abstractmethod
    def weights(self, features: Tensor, gradients: Tensor) -> Tensor:
        """(N, K) from features and gradients (N, K, h, w)."""

    def raw_maps(self, images: Tensor, class_idx: ClassIndex) -> Tensor:
        """(N, 1, h, w), zero or more."""
        features = self.model.forward_features(images)
        # A clone, because a tensor made in inference mode cannot take part in a gradient.
        with torch.inference_mode(False), torch.enable_grad():
            features = features.detach().clone().requires_grad_()
            logits = self.model.classify(features, images.clone())
            asked = logits.gather(1, resolve_class_idx(class_idx, logits, read_values=True).unsqueeze(1)).sum()
            (gradients,) = torch.autograd.grad(asked, features)
        return LF.class_activation_map(features.detach(), self.weights(features.detach(), gradients))


class GradCAM(_GradientWeighted):
    """ReLU(sum_k w_k F_k), w_k the spatial mean of the logit's gradient at F_k.

    Source: Selvaraju et al. 2017, equations 1 and 2. For LFI-CAM the gradient flows through the attention map and the
    FIN too: F is the map before the attention. For a plain net with a linear head it is CAM divided by the number of
    grid cells.
    """

    name = "grad_cam"

    def weights(self, features: Tensor, gradients: Tensor) -> Tensor:
        """(N, K): pooled gradients."""
        return gradients.mean(dim=(2, 3))
