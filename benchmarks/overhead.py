"""What LFI-CAM costs over its plain net, beside the ratio of their multiply-adds; and loading beside a training step.

    python benchmarks/overhead.py [--backbone cifar_resnet20] [--size 32] [--json FILE]

Every pair is timed side by side in one run: the two take turns, round after round, and the median of their ratios is
printed, so that a machine whose speed drifts does not decide. A ratio is good when it is at most 1.10 times the ratio
of multiply-adds.
"""

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

import lficam
from lficam.contract import Preprocessing
from lficam.data.module import TrainingSet
from lficam.data.pictures import Pictures
from lficam.data.sampling import EpochSampler
from lficam.data.transforms import normalise
from lficam.evaluation import model_size

ALLOWED = 1.10


def median_ratio(one: Callable[[], object], other: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median over the rounds of time(one) / time(other), and the median seconds of ``one``."""
    for warm_up in (one, other, one, other):
        warm_up()
    ratios, seconds = [], []
    for turn in range(rounds):
        times = {}
        for function in (one, other) if turn % 2 else (other, one):
            start = time.perf_counter()
            function()
            times[function] = time.perf_counter() - start
        ratios.append(times[one] / times[other])
        seconds.append(times[one])
    return statistics.median(ratios), statistics.median(seconds)


def inference(model, images, bfloat16):
    """LFI-CAM gives label, attention and evidence; the plain net its label, nothing else."""
    ask = model if model.config.method == "plain" else model.explain

    def run():
        with torch.inference_mode(), autocast(bfloat16):
            ask(images)

    return run


def training_step(model, images, bfloat16):
    ask = model if model.config.method == "plain" else lambda images: model.explain(images).logits
    labels = torch.zeros(len(images), dtype=torch.int64)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def run():
        with autocast(bfloat16):
            loss = F.cross_entropy(ask(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return run


def autocast(bfloat16):
    return torch.autocast("cpu", torch.bfloat16) if bfloat16 else contextlib.nullcontext()


def compare(backbone, size, fin, rounds):
    models = {
        "plain": lficam.create_model(backbone, "plain"),
        "lfi": lficam.create_model(backbone, "lfi", fin=fin),
    }
    adds = {name: model_size(model.eval(), size)["multiply_adds"] for name, model in models.items()}
    expected = adds["lfi"] / adds["plain"]
    rows = []
    for model in models.values():
        model.to(memory_format=torch.channels_last)
    for kind, make in (("inference", inference), ("training step", training_step)):
        for model in models.values():
            model.train(kind == "training step")
        for bfloat16 in (False, True):
            for batch in (1, 64):
                images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
                lfi, plain = (make(models[name], images, bfloat16) for name in ("lfi", "plain"))
                ratio, seconds = median_ratio(lfi, plain, rounds * 5 if batch == 1 else rounds)
                rows.append(
                    {
                        "backbone": backbone,
                        "fin": fin,
                        "kind": kind,
                        "precision": "bfloat16" if bfloat16 else "float32",
                        "batch": batch,
                        "lfi_milliseconds": round(1000 * seconds, 2),
                        "ratio": round(ratio, 3),
                        "multiply_adds_ratio": round(expected, 3),
                        "share_of_allowed": round(ratio / (ALLOWED * expected), 3),
                    }
                )
    return rows


def loading_share(size, rounds, batch=128):
    """Time to load, augment and normalise a batch over the time of a ResNet-20 training step on it."""
    count = 4096
    pictures = Pictures(
        images=torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8),
        labels=torch.zeros(count, dtype=torch.int64),
        class_names=["a", "b"],
        names=[""] * count,
    )
    preprocessing = Preprocessing(size, size)
    training_set = TrainingSet(pictures, preprocessing, "crop_flip", seed=0)
    keys = list(EpochSampler(count, seed=0, global_batch=batch))[:batch]
    model = lficam.create_model("cifar_resnet20", "plain").to(memory_format=torch.channels_last)
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)

    def load():
        images, _ = training_set.__getitems__(keys)
        normalise(images, preprocessing).contiguous(memory_format=torch.channels_last)

    ratio, seconds = median_ratio(load, training_step(model, images, bfloat16=True), rounds)
    return {"loading_milliseconds": round(1000 * seconds, 2), "share_of_a_step": round(ratio, 3), "allowed": 0.10}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="cifar_resnet20")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    rows = []
    for fin in ("conv3x3", "uniform"):
        rows += compare(options.backbone, options.size, fin, options.rounds)
    loading = loading_share(options.size, options.rounds)
    table = Table(
        title=f"LFI-CAM over the plain {options.backbone}, {options.size} px, {torch.get_num_threads()} threads"
    )
    for column in rows[0]:
        table.add_column(column.replace("_", " "))
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console(width=180).print(table)
    print(f"loading a batch of 128: {loading}")
    if options.json:
        facts = {"threads": torch.get_num_threads(), "torch": torch.__version__}
        options.json.write_text(json.dumps({**facts, "rows": rows, "loading": loading}, indent=2) + "\n")


if __name__ == "__main__":
    main()
