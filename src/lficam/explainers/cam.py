"""CAM, Grad-CAM, Grad-CAM++ and LayerCAM: the one sum, with weights of their own."""

from abc import abstractmethod

import torch
from torch import Tensor

from lficam import functional as LF
from lficam.contract import ExplainableClassifier, Target, target_scores
from lficam.explainers.base import Explainer, asked_class, pool_and_classify, require_linear_head


class CAM(Explainer):
    """ReLU(sum_k W_ck F_k), F being the map that pooling receives.

    Source: Zhou et al. 2016, equation 2; the ReLU as the paper has it for all methods (equation 4).
    """

    name = "cam"

    def __init__(self, model: ExplainableClassifier) -> None:
        super().__init__(model)
        require_linear_head(model, self.name)

    def raw_maps(self, images: Tensor, class_idx: Target) -> Tensor:
        """(N, 1, h, w), zero or more, in logits."""
        head, pooled, logits = pool_and_classify(self.model, images, self.name)
        return LF.class_activation_map(pooled, head.weight[asked_class(class_idx, logits, self.name)])


class _FromGradients(Explainer):
    """From the gradient of a logit, taken from the last map on, never through the trunk."""

    @abstractmethod
    def combine(self, features: Tensor, gradients: Tensor) -> Tensor:
        """(N, 1, h, w) from features and gradients (N, K, h, w)."""

    def raw_maps(self, images: Tensor, class_idx: Target) -> Tensor:
        """(N, 1, h, w), zero or more."""
        features = self.model.forward_features(images)
        # A clone, because a tensor made in inference mode cannot take part in a gradient.
        with torch.inference_mode(False), torch.enable_grad():
            features = features.detach().clone().requires_grad_()
            logits = self.model.classify(features, images.clone())
            (gradients,) = torch.autograd.grad(target_scores(class_idx, logits).sum(), features)
        return self.combine(features.detach(), gradients)


class GradCAM(_FromGradients):
    """ReLU(sum_k w_k F_k), w_k the spatial mean of the logit's gradient at F_k.

    Source: Selvaraju et al. 2017, equations 1 and 2. For LFI-CAM the gradient flows through the attention map and the
    FIN too: F is the map before the attention. For a plain net with a linear head it is CAM divided by the number of
    grid cells.
    """

    name = "grad_cam"

    def combine(self, features: Tensor, gradients: Tensor) -> Tensor:
        """Pooled gradients as weights."""
        return LF.class_activation_map(features, gradients.mean(dim=(2, 3)))


class GradCAMPlusPlus(_FromGradients):
    """ReLU(sum_k w_k F_k), w_k = sum_ij alpha_kij ReLU(g_kij), g the gradient of the logit at F_k.

    Source: Chattopadhyay et al. 2018, equations 5 and 19: alpha = g^2 / (2 g^2 + (sum_ab F_kab) g^3), 0 where g is 0.
    There the score is exp(logit); its factor in g is the same for all channels of an image and is left out.
    """

    name = "grad_cam_pp"

    def combine(self, features: Tensor, gradients: Tensor) -> Tensor:
        """Alpha-weighted positive gradients as weights."""
        # g^2 cancels from numerator and denominator, which squares of small gradients would leave to rounding.
        denominator = 2 + features.sum(dim=(2, 3), keepdim=True) * gradients
        alpha = torch.where(gradients == 0, 0.0, 1 / denominator.where(denominator != 0, torch.inf))
        return LF.class_activation_map(features, (alpha * gradients.relu()).sum(dim=(2, 3)))


class LayerCAM(_FromGradients):
    """ReLU(sum_k ReLU(g_k) F_k): every place of every channel has a weight of its own.

    Source: Jiang et al. 2021, equations 5 and 6.
    """

    name = "layer_cam"

    def combine(self, features: Tensor, gradients: Tensor) -> Tensor:
        """Positive gradients as weights, place by place."""
        return LF.full_precision(lambda g, f: (g.relu() * f).sum(dim=1, keepdim=True).relu())(gradients, features)
