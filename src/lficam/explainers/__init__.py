"""Explainers behind one door: `create_explainer` by name, one call, images in, maps out."""

from typing import Any

from lficam.contract import ExplainableClassifier
from lficam.errors import InvalidInputError, UnknownNameError
from lficam.explainers.attention import Attention
from lficam.explainers.base import Explainer
from lficam.explainers.baselines import Centre, FeatureMean, Random
from lficam.explainers.cam import CAM, GradCAM, GradCAMPlusPlus, LayerCAM
from lficam.explainers.class_evidence import ClassEvidence, ClassEvidenceVersus
from lficam.explainers.fast import Precision
from lficam.explainers.lime import LIME
from lficam.explainers.rise import RISE
from lficam.explainers.score_cam import ScoreCAM

EXPLAINERS: dict[str, type[Explainer]] = {
    explainer.name: explainer
    for explainer in (
        Attention,
        ClassEvidence,
        ClassEvidenceVersus,
        CAM,
        GradCAM,
        GradCAMPlusPlus,
        LayerCAM,
        ScoreCAM,
        RISE,
        LIME,
        FeatureMean,
        Centre,
        Random,
    )
}

VERSUS = ClassEvidenceVersus.name
# Those that ask the network many times, and have a ``precision`` to do it in.
OF_MANY_PASSES = (ScoreCAM.name, RISE.name, LIME.name)


def create_explainer(name: str, model: ExplainableClassifier, **options: Any) -> Explainer:
    """An explainer by name.

    Args:
        name: one of ``EXPLAINERS``.
        model: anything of the contract.
        options: of the explainer, such as ``versus`` of ``class_evidence``.

    Raises:
        UnknownNameError: no such explainer.
        InvalidInputError: an option it does not have, or a model that cannot carry it.

    >>> import torch, lficam
    >>> model = lficam.create_model("cifar_resnet20")
    >>> create_explainer("class_evidence", model)(torch.rand(2, 3, 32, 32), class_idx=4).shape
    torch.Size([2, 1, 32, 32])
    """
    if name not in EXPLAINERS:
        raise UnknownNameError("explainer", name, EXPLAINERS)
    try:
        return EXPLAINERS[name](model, **options)
    except TypeError as error:
        raise InvalidInputError(f"options of explainer {name!r}: got {', '.join(options)}: {error}.") from error


def create_at(precision: Precision, name: str, model: ExplainableClassifier, **options: Any) -> Explainer:
    """`create_explainer`, one of many passes in this precision; the others have none to choose."""
    return create_explainer(name, model, **options, **({"precision": precision} if name in OF_MANY_PASSES else {}))
