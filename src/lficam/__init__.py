"""Image classifiers that explain themselves, and tell the truth about explanations.

The public names load on first use (PEP 562): importing lficam loads nothing heavy.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lficam.contract import ExplainableClassifier as ExplainableClassifier
    from lficam.contract import Prediction as Prediction
    from lficam.contract import Preprocessing as Preprocessing
    from lficam.data.sources import load_source as load_source
    from lficam.evaluation import evaluate as evaluate
    from lficam.explainers import create_explainer as create_explainer
    from lficam.models.factory import create_model as create_model
    from lficam.models.factory import from_pretrained as from_pretrained
    from lficam.models.factory import load as load
    from lficam.models.factory import wrap as wrap
    from lficam.predict import explain_images as explain_images
    from lficam.recipes import ModelOptions as ModelOptions
    from lficam.recipes import Recipe as Recipe
    from lficam.report import write_report as write_report
    from lficam.training import fit as fit

__version__ = "0.1.0"

_HOMES = {
    "ExplainableClassifier": "lficam.contract",
    "ModelOptions": "lficam.recipes",
    "Prediction": "lficam.contract",
    "Preprocessing": "lficam.contract",
    "Recipe": "lficam.recipes",
    "create_explainer": "lficam.explainers",
    "create_model": "lficam.models.factory",
    "evaluate": "lficam.evaluation",
    "explain_images": "lficam.predict",
    "fit": "lficam.training",
    "from_pretrained": "lficam.models.factory",
    "load": "lficam.models.factory",
    "load_source": "lficam.data.sources",
    "wrap": "lficam.models.factory",
    "write_report": "lficam.report",
}

__all__ = ["__version__", *_HOMES]  # noqa: PLE0604 - names from one table


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lficam' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
