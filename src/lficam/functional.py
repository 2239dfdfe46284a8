"""The equations of LFI-CAM (Lee et al., ICCV 2021) as pure functions: tensors in, tensors out, no state.

Every class activation map is one sum with different weights, ``ReLU(sum_k w_k F_k)``: it is written once here.
All functions work on any device, grid and batch; they run outside autocast and in at least float32 (bfloat16 and
float16 come back as float32, float64 stays), and their values and gradients are finite for dead channels, flat
maps, all-zero images and one-pixel grids.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lficam.errors import InvalidInputError

Mechanism = Literal["residual", "product"]

R = TypeVar("R")


def full_precision(equation: Callable[..., R]) -> Callable[..., R]:
    """Run an equation outside autocast, on tensors of at least float32. Several in one cost one change of context."""

    @functools.wraps(equation)
    def wrapper(*args: object, **named: object) -> R:
        device = next(arg.device.type for arg in (*args, *named.values()) if isinstance(arg, Tensor))
        with torch.autocast(device, enabled=False) if _may_autocast(device) else contextlib.nullcontext():
            return equation(*map(_widen, args), **{name: _widen(arg) for name, arg in named.items()})

    return wrapper


def _may_autocast(device: str) -> bool:
    # Entering the context costs more than a small sum; a traced graph may run under autocast later.
    available = torch.amp.is_autocast_available(device)
    return available and (torch.compiler.is_compiling() or torch.is_autocast_enabled(device))


def _widen(argument: object) -> object:
    narrow = isinstance(argument, Tensor) and argument.dtype in (torch.bfloat16, torch.float16)
    return argument.float() if narrow else argument  # type: ignore[attr-defined]


def _require_4d(tensor: Tensor, argument: str, shape: str) -> None:
    if tensor.ndim != 4:
        raise InvalidInputError(f"{argument}: expected {shape}, got {tuple(tensor.shape)}; pass a batch.")


@full_precision
def min_max(maps: Tensor) -> Tensor:
    """Scale each map to [0, 1]: the s(.) of equation 6 and the normalisation of the map before equation 10.

    Source: section 3.2 of the paper ("maps each element in every feature map to range [0,1]"), per sample and channel.

    A map is flat when its range is within rounding of its magnitude; it comes back as zeros, with finite gradients.
    The obvious (x - min) / (max - min) is 0/0 there, and patching its value leaves a gradient of NaN.

    Args:
        maps: (N, K, h, w), any range and unit.

    Returns:
        (N, K, h, w) in [0, 1]; the minimum of each map is 0 and its maximum 1, unless it is flat.

    >>> min_max(torch.tensor([[[[1.0, 2.0, 3.0]]], [[[5.0, 5.0, 5.0]]]])).tolist()
    [[[[0.0, 0.5, 1.0]]], [[[0.0, 0.0, 0.0]]]]
    """
    low, high = (edge[..., None] for edge in maps.flatten(-2).aminmax(dim=-1, keepdim=True))
    span = high - low
    limits = torch.finfo(maps.dtype)
    # A sum over channels and an interpolation leave a few units in the last place; the absolute floor keeps 1/span, the
    # gradient, far from overflow.
    rounding = 16 * limits.eps * torch.maximum(low.abs(), high.abs()) + limits.tiny / limits.eps
    flat = span <= rounding
    return ((maps - low) / span.masked_fill(flat, 1.0)).masked_fill(flat, 0.0)


def is_flat(maps: Tensor) -> Tensor:
    """Whether a map has one value everywhere, to the bit, (N,) bool.

    Args:
        maps: (N, 1, h, w).

    >>> is_flat(torch.zeros(1, 1, 2, 2)).item()
    True
    """
    return maps.amax(dim=(1, 2, 3)) == maps.amin(dim=(1, 2, 3))


@full_precision
def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps to ``size`` with bilinear interpolation, corners not aligned.

    Args:
        maps: (N, K, h, w).
        size: (H, W) in pixels.

    Returns:
        (N, K, H, W); a value never leaves the range of its map.

    >>> upsample(torch.tensor([[[[0.0, 1.0]]]]), (1, 4)).tolist()
    [[[[0.0, 0.25, 0.75, 1.0]]]]
    """
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


@full_precision
def mask_images(images: Tensor, masks: Tensor) -> Tensor:
    """Equation 1: M^k = A^k (x) I, every image under every mask (Score-CAM).

    Args:
        images: (N, 3, H, W).
        masks: (N, K, H, W), upsampled and min-max normalised feature maps in [0, 1].

    Returns:
        (N, K, 3, H, W).

    >>> mask_images(torch.ones(2, 3, 4, 4), torch.zeros(2, 5, 4, 4)).shape
    torch.Size([2, 5, 3, 4, 4])
    """
    return masks.unsqueeze(2) * images.unsqueeze(1)


@full_precision
def weighted_sum(features: Tensor, weights: Tensor) -> Tensor:
    """The sum inside equations 4 and 9: sum_k w_k F_k, signed.

    With the attended features and a row of the linear classifier as weights this is the class evidence: its spatial
    mean plus the bias is that class's logit.

    Args:
        features: (N, K, h, w).
        weights: (N, K).

    Returns:
        (N, 1, h, w), in the unit of weight times feature.

    >>> weighted_sum(torch.ones(1, 2, 1, 1), torch.tensor([[3.0, -5.0]])).item()
    -2.0
    """
    return torch.einsum("nk,nkhw->nhw", weights, features).unsqueeze(1)


@full_precision
def weighted_sums(features: Tensor, weights: Tensor) -> Tensor:
    """`weighted_sum` with several weightings of the same features.

    Args:
        features: (N, K, h, w).
        weights: (N, k, K).

    Returns:
        (N, k, h, w).

    >>> weighted_sums(torch.ones(1, 2, 1, 1), torch.tensor([[[3.0, -5.0], [1.0, 1.0]]])).flatten().tolist()
    [-2.0, 2.0]
    """
    return torch.einsum("nck,nkhw->nchw", weights, features)


def class_activation_map(features: Tensor, weights: Tensor) -> Tensor:
    """Equations 4 and 9: L = ReLU(sum_k w_k F_k), on unnormalised features.

    Score-CAM (4) and LFI-CAM (9) differ in the weights alone, as do CAM, Grad-CAM and Grad-CAM++.

    Args:
        features: (N, K, h, w).
        weights: (N, K).

    Returns:
        (N, 1, h, w), zero or more; all zeros where no position has a positive sum.

    >>> class_activation_map(torch.ones(1, 2, 1, 1), torch.tensor([[3.0, -5.0]])).item()
    0.0
    """
    return weighted_sum(features, weights).relu()


@full_precision
def grey_image(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Equation 5: I~ = Down(rgb2gray(I)).

    Source: the grey value is the mean over the channels of the *normalised* network input, shrunk with bilinear
    interpolation, corners not aligned, no antialiasing (the authors' code; the paper does not say).

    Args:
        images: (N, 3, H, W), as the network receives them.
        size: (h, w), the grid of the last feature map.

    Returns:
        (N, 1, h, w), in the unit of the normalised input, signed.

    >>> grey_image(torch.ones(1, 3, 8, 8), (2, 2)).tolist()
    [[[[1.0, 1.0], [1.0, 1.0]]]]
    """
    _require_4d(images, "images", "(N, 3, H, W)")
    return upsample(images.mean(dim=1, keepdim=True), size)


@full_precision
def masked_features(features: Tensor, grey: Tensor) -> Tensor:
    """Equation 6: M_k = I~ (x) s(F_k), the input of the FIN.

    Args:
        features: (N, K, h, w).
        grey: (N, 1, h, w), from `grey_image`.

    Returns:
        (N, K, h, w); a channel that is flat everywhere is zero.

    >>> masked_features(torch.tensor([[[[0.0, 4.0]]]]), torch.tensor([[[[2.0, -3.0]]]])).tolist()
    [[[[0.0, -3.0]]]]
    """
    return grey * min_max(features)


@full_precision
def fin_input(images: Tensor, features: Tensor, grey_mask: bool = True) -> Tensor:
    """Equations 5 and 6 in a row: what the FIN sees.

    Args:
        images: (N, 3, H, W), as the network receives them.
        features: (N, K, h, w).
        grey_mask: without it s(F_k) alone, not multiplied with the image (an ablation).

    Returns:
        (N, K, h, w).

    >>> fin_input(torch.ones(1, 3, 8, 8), torch.tensor([[[[0.0, 4.0]]]])).tolist()
    [[[[0.0, 1.0]]]]
    """
    if not grey_mask:
        return min_max(features)
    return masked_features(features, grey_image(images, (features.shape[-2], features.shape[-1])))


@full_precision
def attention_map(features: Tensor, importance: Tensor) -> Tensor:
    """Equation 9, and the normalisation of its map before equation 10.

    Args:
        features: (N, K, h, w), unnormalised.
        importance: (N, K).

    Returns:
        (N, 1, h, w) in [0, 1]; all zeros where the map is flat.

    >>> attention_map(torch.tensor([[[[1.0, 3.0]]]]), torch.ones(1, 1)).tolist()
    [[[[0.0, 1.0]]]]
    """
    return min_max(class_activation_map(features, importance))


@full_precision
def first_guess_importance(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Importance without a network: the classifier's own rows, weighted with what it would say without attention.

    Source: ours, in place of equations 7 and 8. With p the softmax of `linear_logits`, w = sum_c p_c (W_c - mean of W):
    then equation 9 is the positive class evidence of the first guess, and the attention has a class.

    Args:
        features: (N, K, h, w), the map that pooling would receive.
        weight: (C, K).
        bias: (C,) or None.

    Returns:
        (N, K), signed; nearly zero where the guess knows nothing.

    >>> first_guess_importance(torch.ones(1, 2, 1, 1), torch.tensor([[9.0, 0.0], [0.0, -9.0]]), None).round().tolist()
    [[4.0, 4.0]]
    """
    probabilities = linear_logits(features, weight, bias).softmax(dim=1)
    return probabilities @ (weight - weight.mean(dim=0))


@full_precision
def attend(features: Tensor, attention: Tensor, mechanism: Mechanism = "residual") -> Tensor:
    """Equation 10: F' = (1 + L) (x) F, the attention mechanism of ABN and LFI-CAM.

    Args:
        features: (N, K, h, w).
        attention: (N, 1, h, w) in [0, 1].
        mechanism: ``residual`` is equation 10; ``product`` is F' = L (x) F, ABN's other form (an ablation).

    Returns:
        (N, K, h, w); where the attention is zero equal to ``features``, with ``product`` zero.

    >>> attend(torch.tensor([[[[2.0, 2.0]]]]), torch.tensor([[[[0.0, 1.0]]]])).tolist()
    [[[[2.0, 4.0]]]]
    """
    return (attention if mechanism == "product" else 1 + attention) * features


@full_precision
def linear_logits(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Global average pooling and one linear layer, the head of section 3.3.

    In full precision, so that a class's evidence sums to its logit to rounding, under autocast too.

    Args:
        features: (N, K, h, w), the map that pooling receives.
        weight: (C, K).
        bias: (C,) or None.

    Returns:
        (N, C) logits.

    >>> linear_logits(torch.ones(1, 2, 3, 3), torch.tensor([[1.0, 2.0]]), torch.tensor([0.5])).item()
    3.5
    """
    return F.linear(features.mean(dim=(2, 3)), weight, bias)
