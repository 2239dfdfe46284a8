"""What a picture costs in an exported graph: PyTorch eager and compiled, ONNX Runtime with and without maps.

    python benchmarks/export.py [--out benchmarks/export.json]

Each way runs in a process of its own, because the threads of ONNX Runtime slow PyTorch down where both are in one; the
processes take turns, and the medians over the turns are compared.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import onnxruntime
import torch

import lficam
from lficam.export import export_model
from lficam.progress import track

MODELS = {"cifar_resnet20": (32, "conv3x3"), "resnet18": (224, "pointwise")}
WAYS = ("eager", "compiled", "onnxruntime", "onnxruntime, labels only")
BATCHES = (1, 16)


def make(backbone: str) -> lficam.models.plain.PlainClassifier:
    size, fin = MODELS[backbone]
    torch.manual_seed(0)
    model = lficam.create_model(backbone, fin=fin).eval()
    model.config.preprocessing = lficam.Preprocessing(size, size)
    return model


def write(backbone: str, folder: Path) -> None:
    """The graph with its maps, and one of the same model that gives logits alone."""
    model, size = make(backbone), MODELS[backbone][0]
    export_model(model, folder / f"{backbone}.onnx", top=1)
    example = torch.zeros(2, 3, size, size)
    shapes = {"images": {0: torch.export.Dim("batch", min=1)}}
    labels = torch.onnx.export(
        model, (example,), dynamo=True, input_names=["images"], dynamic_shapes=shapes, verbose=False
    )
    labels.save(folder / f"{backbone}-labels.onnx", external_data=False)


def function(backbone: str, way: str, folder: Path):
    """A function of a batch of normalised pictures."""
    if way.startswith("onnxruntime"):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = os.cpu_count()
        name = f"{backbone}-labels.onnx" if "labels" in way else f"{backbone}.onnx"
        session = onnxruntime.InferenceSession(folder / name, options, providers=["CPUExecutionProvider"])
        return lambda images: session.run(None, {"images": images})
    model = make(backbone)
    explain = torch.compile(model.explain) if way == "compiled" else model.explain
    return lambda images: explain(torch.from_numpy(images))


def measure(backbone: str, way: str, folder: Path) -> dict[str, float]:
    """The median milliseconds of a call, for each batch."""
    run, size, found = function(backbone, way, folder), MODELS[backbone][0], {}
    with torch.inference_mode():
        for batch in BATCHES:
            images = torch.rand(batch, 3, size, size).numpy()
            for _ in range(5):
                run(images)
            times, started = [], time.perf_counter()
            while len(times) < 20 or time.perf_counter() - started < 2:
                start = time.perf_counter()
                run(images)
                times.append(time.perf_counter() - start)
            found[str(batch)] = 1000 * statistics.median(times)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--one", nargs=3, metavar=("BACKBONE", "WAY", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        backbone, way, folder = options.one
        print(json.dumps(measure(backbone, way, Path(folder))))
        return
    times: dict[tuple[str, str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for backbone in MODELS:
            write(backbone, Path(folder))
        plan = [(backbone, way) for _ in range(options.turns) for backbone in MODELS for way in WAYS]
        for backbone, way in track(plan, "measuring", len(plan)):
            command = [sys.executable, __file__, "--one", backbone, way, folder]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            for batch, value in json.loads(done.stdout).items():
                times.setdefault((backbone, way, batch), []).append(value)
    rows = []
    for (backbone, way, batch), values in times.items():
        labels = statistics.median(times[backbone, "onnxruntime, labels only", batch])
        value = statistics.median(values)
        rows.append(
            {
                "backbone": backbone,
                "way": way,
                "batch": int(batch),
                "milliseconds": round(value, 3),
                "lowest": round(min(values), 3),
                "highest": round(max(values), 3),
                "of_onnxruntime_labels_only": round(value / labels, 3),
            }
        )
        print(f"{backbone:16} {way:26} batch {batch:>2}  {value:8.2f} ms  {value / labels:.3f}")
    about = {
        "command": "python benchmarks/export.py",
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__.partition("+")[0],
        "turns": options.turns,
    }
    options.out.write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
