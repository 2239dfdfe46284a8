"""What LFI-CAM costs over its plain net, beside the ratio of their multiply-adds; and loading beside a training step.

    python benchmarks/overhead.py [--backbone NAME ...] [--size 32] [--batch 1 64] [--fin conv3x3 uniform] [--json FILE]

Every pair is timed side by side in one run: the two take turns, round after round, and the median of their ratios is
printed, so that a machine whose speed drifts does not decide. A ratio is good when it is at most 1.10 times the ratio
of multiply-adds.
"""

import argparse
import contextlib
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
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


def inference(model, images, bfloat16, maps):
    """With all maps, or the label alone."""
    ask = model.explain if maps else model

    def run():
        with torch.inference_mode(), autocast(bfloat16):
            ask(images)

    return run


def training_step(model, images, bfloat16, maps=False):
    ask = (lambda images: model.explain(images).logits) if maps else model
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


def compare(backbone, size, fin, batches, rounds):
    """LFI-CAM with all maps, and the plain net with class evidence, over the plain net with its label alone."""
    plain, lfi = lficam.create_model(backbone, "plain"), lficam.create_model(backbone, "lfi", fin=fin)
    sizes = {model: model_size(model.eval(), size) for model in (plain, lfi)}
    subjects = {"LFI-CAM, all maps": lfi, "plain, evidence": plain}
    rows = []
    for model in (plain, lfi):
        model.to(memory_format=torch.channels_last)
    for kind, make in (("inference", inference), ("training step", training_step)):
        for model in (plain, lfi):
            model.train(kind == "training step")
        for (name, model), bfloat16, batch in itertools.product(subjects.items(), (False, True), batches):
            if model is plain and (kind == "training step" or plain.linear_head is None):
                continue
            expected = sizes[model]["multiply_adds"] / sizes[plain]["multiply_adds"]
            images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
            one, other = make(model, images, bfloat16, maps=True), make(plain, images, bfloat16, maps=False)
            ratio, seconds = median_ratio(one, other, rounds * 5 if batch == 1 else rounds)
            rows.append(
                {
                    "backbone": backbone,
                    "what": name,
                    "fin": fin if model is lfi else "",
                    "kind": kind,
                    "precision": "bfloat16" if bfloat16 else "float32",
                    "batch": batch,
                    "milliseconds": round(1000 * seconds, 2),
                    "ratio": round(ratio, 3),
                    "multiply_adds_ratio": round(expected, 3),
                    "share_of_allowed": round(ratio / (ALLOWED * expected), 3),
                    "added_parameters": round(sizes[model]["parameters"] / sizes[plain]["parameters"] - 1, 3),
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
    parser.add_argument("--backbone", nargs="+", default=["cifar_resnet20"])
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--fin", nargs="+", default=["conv3x3", "uniform"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    rows = []
    for backbone, fin in track(list(itertools.product(options.backbone, options.fin))):
        rows += compare(backbone, options.size, fin, options.batch, options.rounds)
    loading = loading_share(options.size, options.rounds)
    table = Table(title=f"over the plain net, {options.size} px, {torch.get_num_threads()} threads")
    for column in rows[0]:
        table.add_column(column.replace("_", " "))
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console(width=180).print(table)
    print(f"loading a batch of 128: {loading}")
    if options.json:
        command = "python " + " ".join(sys.argv)
        facts = {"command": command, "threads": torch.get_num_threads(), "torch": torch.__version__}
        options.json.write_text(json.dumps({**facts, "rows": rows, "loading": loading}, indent=2) + "\n")


if __name__ == "__main__":
    main()
