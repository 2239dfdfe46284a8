"""How large a recipe's model is, counted without making its weights, beside what the paper says."""

from collections.abc import Sequence
from typing import Any

import torch

from lficam.models.backbones import count_parameters
from lficam.models.factory import create_model
from lficam.models.wrapped import is_factory_name
from lficam.recipes import paper_figures, recipe_from_values, recipe_values


def model_sizes(recipes: Sequence[str] = (), num_classes: int = 1000) -> list[dict[str, Any]]:
    """Sizes in millions of parameters.

    Args:
        recipes: names or files; none: all that the paper's Table 3 gives a size for.
        num_classes: C of each model.

    Returns:
        One row a recipe: its name and backbone, ``millions``, the paper's, the trunk's alone, and the share that the
        method adds to it. The paper's plain nets are smaller than the public ResNets of that name (11.17 against 11.69
        for ResNet-18), whose ABN and LFI-CAM sizes agree.

    >>> model_sizes(["imagenet_resnet18_lfi"])[0]["millions"]
    17.47
    """
    paper = paper_figures()
    with_size = [name for name, figures in paper.items() if "millions" in figures]
    return [_size(name, num_classes, paper.get(name, {}).get("millions")) for name in recipes or with_size]


def _size(name: str, num_classes: int, in_paper: float | None) -> dict[str, Any]:
    options = recipe_from_values(recipe_values(name)).model
    method_options: dict[str, Any] = options.method_options()
    with torch.device("cpu" if is_factory_name(options.backbone) else "meta"):
        model = create_model(options.backbone, options.method, num_classes, options.backbone_args, **method_options)
    all_of_it, trunk = count_parameters(model), count_parameters(model.backbone)
    return {
        "recipe": name,
        "backbone": options.backbone,
        "millions": round(all_of_it / 1e6, 2),
        "in_paper": in_paper,
        "trunk": round(trunk / 1e6, 2),
        "added_share": f"{all_of_it / trunk - 1:.0%}",
    }
