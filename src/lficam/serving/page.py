"""The page for people: a picture in, label, evidence, attention, other explainers out; nothing leaves the machine."""

import threading
from typing import Any

import gradio as gr
import torch
from PIL import Image
from torch import Tensor

from lficam.contract import TrainedClassifier
from lficam.data.transforms import normalise
from lficam.errors import LficamError
from lficam.explainers import EXPLAINERS, create_explainer
from lficam.predict import Explanation, explain_images
from lficam.visualize import enlarge, overlay, overlay_signed

_SIDE = 336
_PREDICTED = "the predicted class"
_NOBODY = "nothing"
# What needs seconds a picture is offered last; LIME needs packages of its own.
_COMPARED = ("grad_cam", "grad_cam_pp", "layer_cam", "feature_mean", "centre", "score_cam", "rise")
_ABOUT = (
    "**Evidence** is what the label's score sums, place by place: red speaks for the class, blue against it. "
    "**Attention** has no class: it shows where features are amplified, and is no reason for a label."
)


def create_page(model: TrainedClassifier, lock: threading.Lock, examples: list[str]) -> gr.Blocks:
    """The page of a model.

    Args:
        model: trained, in eval mode.
        lock: held while the model is asked.
        examples: paths of pictures to try.
    """
    names = model.config.class_names or [str(number) for number in range(model.config.num_classes)]
    offered = [name for name in _COMPARED if name in EXPLAINERS]
    with gr.Blocks(analytics_enabled=False, title="lficam") as page:
        gr.Markdown(f"# {model.config.method} on {model.config.backbone}")
        with gr.Row():
            with gr.Column(scale=1):
                picture = gr.Image(
                    type="pil",
                    label="Picture: upload, paste or photograph",
                    sources=["upload", "clipboard", "webcam"],
                    height=280,
                )
                asked = gr.Dropdown([_PREDICTED, *names], value=_PREDICTED, label="Explain")
                versus = gr.Dropdown([_NOBODY, *names], value=_NOBODY, label="and not (evidence only)")
                opacity = gr.Slider(0.1, 1.0, value=0.7, step=0.05, label="Opacity of the maps")
                compared = gr.CheckboxGroup(offered, value=[], label="Compare with")
                button = gr.Button("Explain", variant="primary")
                if examples:
                    gr.Examples([[path] for path in examples], inputs=[picture], label="Examples")
            with gr.Column(scale=2):
                label = gr.Label(num_top_classes=5, label="Label")
                doubts = gr.Markdown(elem_id="doubts")
                maps = gr.Gallery(label="Maps", columns=3, object_fit="contain", height="auto")
                gr.Markdown(_ABOUT)

        def answer(*values: Any) -> tuple[dict[str, float], str, list[tuple[Image.Image, str]]]:
            with lock:
                return _answer(model, names, *values)

        inputs = [picture, asked, versus, opacity, compared]
        outputs = [label, doubts, maps]
        button.click(answer, inputs, outputs, api_visibility="private")
        picture.change(answer, inputs, outputs, api_visibility="private", show_progress="hidden")
    page.queue(max_size=32, default_concurrency_limit=1)
    return page


def _answer(
    model: TrainedClassifier,
    names: list[str],
    picture: Image.Image | None,
    asked: str,
    versus: str,
    opacity: float,
    compared: list[str],
) -> tuple[dict[str, float], str, list[tuple[Image.Image, str]]]:
    """Probabilities, what to doubt, and pictures with their captions."""
    if picture is None:
        return {}, "", []
    class_name = None if asked == _PREDICTED else asked
    (found,) = explain_images(model, [picture], class_name)
    if isinstance(found, LficamError):
        raise gr.Error(str(found))
    pictures = [(found.image, "what the network saw"), *_own_maps(found, opacity)]
    target = names.index(found.label)
    images = normalise(found.image[None].to(next(model.parameters()).device), model.config.required_preprocessing())
    wanted: list[tuple[str, str, dict[str, Any]]] = [(name, name.replace("_", " "), {}) for name in compared]
    if versus not in (_NOBODY, found.label) and model.linear_head is not None:
        wanted.insert(0, ("class_evidence", f"evidence: {found.label}, not {versus}", {"versus": names.index(versus)}))
    for name, caption, options in wanted:
        try:
            explain = create_explainer(name, model, **options)
            of_class = target if explain.class_targeted else None
            with torch.no_grad():
                values = explain(images, of_class, raw=explain.signed)[0].cpu()
        except LficamError as error:
            gr.Warning(f"{caption}: {error}")
            continue
        pictures.append((_drawn(found.image, values, explain.signed, opacity), caption))
    doubts = "\n".join(f"- {doubt}" for doubt in found.doubts())
    return dict(found.top), doubts, [(_enlarged(shown), caption) for shown, caption in pictures]


def _own_maps(found: Explanation, opacity: float) -> list[tuple[Tensor, str]]:
    own = []
    if found.evidence is not None:
        own.append((_drawn(found.image, found.evidence, True, opacity), f"evidence for {found.label}"))
    if found.attention is not None:
        own.append((_drawn(found.image, found.attention, False, opacity), "attention"))
    return own


def _drawn(image: Tensor, values: Tensor, signed: bool, opacity: float) -> Tensor:
    return overlay_signed(image, values, opacity=opacity) if signed else overlay(image, values, opacity)


def _enlarged(image: Tensor) -> Image.Image:
    """Whole pixels, so that nothing is seen that the network did not see."""
    return Image.fromarray(enlarge(image, _SIDE).permute(1, 2, 0).numpy())
