"""A trained model as one graph that explains itself: logits, class evidence and attention from one call."""

import copy
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

import lficam
from lficam import functional as LF
from lficam.contract import Preprocessing
from lficam.data.transforms import normalise
from lficam.errors import InvalidInputError, UnknownNameError
from lficam.models.plain import PlainClassifier
from lficam.portable import METADATA
from lficam.visualize import heat_colours

Format = Literal["onnx", "torch-export"]
_SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}
_CHECKED_BATCHES = (1, 2, 7)
_TOLERANCE = 1e-4


class ExplainingGraph(nn.Module):
    """What is exported. No gradient is needed: evidence and attention come of the forward pass.

    Args:
        model: trained; of two kinds of map it has one at least. It is copied.
        top: of how many of the likeliest classes the evidence is given.
        pixels: take uint8 pixels and normalise them inside, not normalised floats.
        upsample: give the maps at the size of the picture.

    >>> model = lficam.create_model("cifar_resnet20")
    >>> graph = ExplainingGraph(model, top=3)
    >>> {name: tuple(values.shape) for name, values in graph(torch.rand(2, 3, 32, 32)).items()}
    {'logits': (2, 10), 'classes': (2, 3), 'evidence': (2, 3, 8, 8), 'attention': (2, 1, 8, 8)}
    """

    def __init__(self, model: PlainClassifier, top: int = 5, pixels: bool = False, upsample: bool = False) -> None:
        super().__init__()
        self.eval()
        if model.linear_head is None and model.config.method == "plain":
            raise InvalidInputError(
                f"export: {model.config.backbone} has neither evidence nor attention; train it with method lfi."
            )
        if top < 1:
            raise InvalidInputError(f"top: expected at least 1 class, got {top}.")
        self.model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
        self.top = min(top, model.config.num_classes)
        self.preprocessing = model.config.required_preprocessing() if pixels else None
        self.upsample = upsample

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) to ``logits`` (N, C), ``classes`` (N, k), likeliest first, and maps.

        ``evidence`` (N, k, h, w) is signed, in logits, centred over the classes; ``attention`` (N, 1, h, w) in [0, 1].
        """
        if self.preprocessing is not None:
            images = normalise(images, self.preprocessing)
        size = (images.shape[-2], images.shape[-1])
        seen = self.model.perceive(images)
        logits = self.model.answer(seen)
        classes = logits.topk(self.top, dim=1).indices
        found = {"logits": logits, "classes": classes}
        if self.model.linear_head is not None:
            found["evidence"] = self.model.evidence_of(seen, classes)
        if seen.attention is not None:
            found["attention"] = seen.attention
        if self.upsample:
            found |= {name: LF.upsample(found[name], size) for name in ("evidence", "attention") if name in found}
        return found


def export_model(
    model: PlainClassifier,
    path: str | Path,
    kind: Format = "onnx",
    top: int = 5,
    pixels: bool = False,
    upsample: bool = False,
    dynamic_size: bool = False,
) -> dict[str, Any]:
    """Write a model as one graph, checked against PyTorch before it has its name.

    Args:
        model: trained.
        path: of the file.
        kind: ``onnx``, for ONNX Runtime and `lficam.portable`; ``torch-export``, for `torch.export.load`.
        top: see `ExplainingGraph`.
        pixels: likewise.
        upsample: likewise.
        dynamic_size: let the height and width of the pictures be free, where the trunk allows it.

    Returns:
        The metadata that stands in the file, with the largest difference to PyTorch that the check found.

    Raises:
        UnknownNameError: no such kind.
        InvalidInputError: a model that cannot be exported, a missing package, or a graph that says something else than
            the model; nothing is left then.
    """
    if kind not in _SUFFIXES:
        raise UnknownNameError("format", kind, _SUFFIXES)
    path, suffix = Path(path), _SUFFIXES[kind]
    if path.suffix != suffix:
        raise InvalidInputError(f"out: a graph of format {kind} is a {suffix} file, got {path.name}.")
    if path.is_dir() or not path.parent.is_dir():
        raise InvalidInputError(f"out: {path} cannot be a file; name one in a folder that exists.")
    preprocessing = model.config.required_preprocessing()
    graph = ExplainingGraph(model, top, pixels, upsample)
    metadata = _metadata(model, graph, preprocessing)
    write, run = {"onnx": (_write_onnx, _run_onnx), "torch-export": (_write_program, _run_program)}[kind]
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        draft = Path(folder) / f"graph{path.suffix}"
        try:
            write(graph, draft, _example(preprocessing, pixels, 2), dynamic_size, metadata)
        except ImportError as error:
            raise InvalidInputError(f"export: {error}; pip install 'lficam[export]'.") from error
        except Exception as error:  # the exporters raise many kinds; their first line names the operation
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise InvalidInputError(f"export: {model.config.backbone} cannot be exported ({reason[0]}).") from error
        difference = _check(graph, run(draft), preprocessing, pixels)
        draft.replace(path)
    return {**metadata, "largest_difference": difference}


def _metadata(model: PlainClassifier, graph: ExplainingGraph, preprocessing: Preprocessing) -> dict[str, Any]:
    """All that a program needs beside the graph; `lficam.portable` reads it."""
    config = model.config
    return {
        "lficam_version": lficam.__version__,
        "backbone": config.backbone,
        "method": config.method,
        "class_names": config.class_names or [str(number) for number in range(config.num_classes)],
        "size": preprocessing.size,
        "resize": preprocessing.resize,
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "pixels": graph.preprocessing is not None,
        "top": graph.top,
        "evidence": "signed, in logits, centred over the classes" if model.linear_head is not None else "",
        "heat_colours": heat_colours().tobytes().hex(),
    }


def _example(preprocessing: Preprocessing, pixels: bool, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    size = (count, 3, preprocessing.size, preprocessing.size)
    images = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
    return images if pixels else normalise(images, preprocessing)


def _dynamic_shapes(dynamic_size: bool) -> dict[str, dict[int, Any]]:
    free = {0: torch.export.Dim("batch", min=1)}
    if dynamic_size:
        free |= {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    return {"images": free}


def _write_onnx(
    graph: ExplainingGraph, path: Path, example: Tensor, dynamic_size: bool, metadata: Mapping[str, Any]
) -> None:
    import onnxruntime  # noqa: F401, PLC0415 - an extra; without it the check could not run

    program = torch.onnx.export(
        graph,
        (example,),
        dynamo=True,
        input_names=["images"],
        output_names=list(graph(example)),
        dynamic_shapes=_dynamic_shapes(dynamic_size),
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props[METADATA] = json.dumps(metadata)
    program.save(path, external_data=False)


def _run_onnx(path: Path) -> Callable[[Tensor], dict[str, Tensor]]:
    import onnxruntime  # noqa: PLC0415 - an extra

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(images: Tensor) -> dict[str, Tensor]:
        values = session.run(None, {"images": images.numpy()})
        return {name: torch.from_numpy(np.asarray(value)) for name, value in zip(names, values, strict=True)}

    return run


def _write_program(
    graph: ExplainingGraph, path: Path, example: Tensor, dynamic_size: bool, metadata: Mapping[str, Any]
) -> None:
    program = torch.export.export(graph, (example,), dynamic_shapes=_dynamic_shapes(dynamic_size))
    torch.export.save(program, path, extra_files={METADATA: json.dumps(metadata)})


def _run_program(path: Path) -> Callable[[Tensor], dict[str, Tensor]]:
    return torch.export.load(path).module()


@torch.no_grad()
def _check(
    graph: ExplainingGraph, run: Callable[[Tensor], dict[str, Tensor]], preprocessing: Preprocessing, pixels: bool
) -> float:
    """The largest difference to PyTorch over several batches, in the unit of each output's largest magnitude."""
    worst = 0.0
    for count in _CHECKED_BATCHES:
        images = _example(preprocessing, pixels, count)
        expected, found = graph(images), run(images)
        for name, values in expected.items():
            if found[name].shape != values.shape:
                raise InvalidInputError(
                    f"export: the graph gives {name} of {tuple(found[name].shape)}, not of "
                    f"{tuple(values.shape)}, for a batch of {count}."
                )
            if name == "classes":
                if not torch.equal(found[name][:, 0], values[:, 0]):
                    raise InvalidInputError(f"export: the graph names other classes than the model, batch of {count}.")
                continue
            if not torch.isfinite(found[name]).all():
                raise InvalidInputError(f"export: the graph's {name} is not finite for a batch of {count}.")
            scale = max(float(values.abs().max()), 1.0)
            worst = max(worst, float((found[name] - values).abs().max()) / scale)
        worst = max(worst, _missing_evidence(graph, found))
    if not worst <= _TOLERANCE:
        raise InvalidInputError(f"export: the graph differs from the model by {worst:.1e}, more than {_TOLERANCE:.0e}.")
    return worst


def _missing_evidence(graph: ExplainingGraph, found: Mapping[str, Tensor]) -> float:
    """By how much the means of the evidence miss the logits, both without bias and centred over the classes."""
    head = graph.model.linear_head
    if head is None or graph.upsample:  # upsampling does not keep a mean to the last digit
        return 0.0
    sums = found["logits"] - (0 if head.bias is None else head.bias)
    if sums.shape[1] > 1:
        sums = sums - sums.mean(dim=1, keepdim=True)
    asked = sums.gather(1, found["classes"])
    return float((found["evidence"].mean(dim=(2, 3)) - asked).abs().max()) / max(float(asked.abs().max()), 1.0)
