"""A trained classifier gets its Feature Importance Network: from a run's weights, and what that changed and cost."""

import copy
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lficam.data.pictures import Pictures
from lficam.errors import InvalidInputError, RunError
from lficam.evaluation import top1_error
from lficam.files import read_record
from lficam.models.factory import load
from lficam.models.hub import CONFIG_FILE
from lficam.models.plain import PlainClassifier
from lficam.models.wrapped import is_factory_name

_ROUNDS = 30


def start_from(model: PlainClassifier, run: str | Path) -> PlainClassifier:
    """Give a model the trunk and head of a trained run; what its method adds keeps its random weights.

    A run of the same method and options gives all its weights.

    Returns:
        The run's own model, in eval mode.

    Raises:
        InvalidInputError: a run of another trunk or of other classes.
        RunError: no run there, or a damaged one.
    """
    name = model.config.backbone
    stored = read_record(Path(run) / CONFIG_FILE)
    for field in ("backbone", "num_classes", "class_names"):
        theirs, ours = stored.get(field), getattr(model.config, field)
        if theirs != ours:
            raise InvalidInputError(
                f"init_from: {run} has {field} {theirs}, the training {ours}; they must be the same."
            )
    trained = load(run, name if is_factory_name(name) else None)
    trained.config.preprocessing = trained.config.preprocessing or model.config.preprocessing
    alike = all(getattr(trained.config, field) == getattr(model.config, field) for field in ("method", "options"))
    try:
        model.backbone.load_state_dict(trained.backbone.state_dict())
        if alike:
            model.load_state_dict(trained.state_dict())
    except RuntimeError as error:
        raise RunError(
            f"init_from: {run} has a trunk with other backbone_args: {trained.config.backbone_args}."
        ) from error
    return trained


def pretrained_classifier(model: PlainClassifier) -> PlainClassifier | None:
    """What timm's weights alone classify, a copy; None where its head is another number of classes and starts anew."""
    known = getattr(model.backbone, "pretrained_cfg", {}).get("num_classes")
    if known != model.config.num_classes:
        return None
    plain = PlainClassifier(copy.deepcopy(model.backbone))
    plain.config = replace(model.config, method="plain", options={})
    return plain.eval()


def freeze_backbone(model: PlainClassifier) -> None:
    """Keep the trunk as it is, batch norms in eval mode; its last linear layer learns on with what the method adds."""
    model.backbone.eval().requires_grad_(False)
    model.backbone.get_classifier().train().requires_grad_(True)


def compare_with(before: PlainClassifier, after: PlainClassifier, pictures: Pictures, device: str) -> dict[str, Any]:
    """What a retrofit changed, on the test pictures, and the time it adds to a picture.

    Returns:
        Top-1 error before and after with 95 % intervals, the points of accuracy gained (percent), and the latency of
        one picture: ``explain`` with all maps after, the label alone before; medians in turn, in milliseconds, on
        ``device``. Both models are left there.
    """
    before, after = before.to(device).eval(), after.to(device).eval()
    errors = {"error_before": top1_error(before, pictures), "error_after": top1_error(after, pictures)}
    size = after.config.required_preprocessing().size
    old, new = _latency(before, after, torch.zeros(1, 3, size, size, device=device))
    gained = 100 * (errors["error_before"]["value"] - errors["error_after"]["value"])
    return {
        **errors,
        "device": device,
        "points_gained": round(gained, 3),
        "latency_before_ms": round(old, 3),
        "latency_after_ms": round(new, 3),
    }


@torch.inference_mode()
def _latency(before: PlainClassifier, after: PlainClassifier, image: Tensor) -> tuple[float, float]:
    times: dict[str, list[float]] = {"before": [], "after": []}
    for _ in range(_ROUNDS):
        for name, run in (("before", before), ("after", after.explain)):
            start = time.perf_counter()
            float(run(image)[0].sum())  # read, so that the device has finished
            times[name].append(1000 * (time.perf_counter() - start))
    return statistics.median(times["before"]), statistics.median(times["after"])
