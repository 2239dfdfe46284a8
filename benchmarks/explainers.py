"""What an explanation costs: ours and the peer libraries', over one plain forward pass, in turn in one run.

    python benchmarks/explainers.py [--backbone resnet18] [--size 224] [--rounds 15] [--slow-rounds 3] [--json FILE]

Times are medians over rounds in which all methods of a group take turns. Score-CAM's memory is the peak of a process of
its own above what the model and one forward pass take. The peers need ``pip install -e '.[dev]'``.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus, LayerCAM
from pytorch_grad_cam import ScoreCAM as PackageScoreCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import spearmanr
from torchcam.methods import CAM, ScoreCAM
from torchcam.methods import GradCAM as TorchcamGradCAM

import lficam

CLASS = 7


def models(backbone):
    torch.manual_seed(0)
    plain = lficam.create_model(backbone, "plain").eval()
    return plain, lficam.create_model(backbone, "lfi", fin="pointwise").eval()


def ours(plain, lfi, image) -> dict[str, Callable[[], object]]:
    def of(name, model=plain, **options):
        explain = lficam.create_explainer(name, model, **options)
        target = CLASS if explain.class_targeted else None
        return lambda: explain(image, target)

    names = ("class_evidence", "cam", "grad_cam", "grad_cam_pp", "layer_cam")
    return {
        "lficam attention and evidence (LFI-CAM's own pass)": lambda: explain_pass(lfi, image),
        **{f"lficam {name}": of(name) for name in names},
    }


@torch.inference_mode()
def explain_pass(model, image):
    return model.explain(image)


@torch.inference_mode()
def forward(model, image):
    return model(image)


def torchcams(kind, network, image, **options):
    def run():
        with kind(network, "layer4", input_shape=tuple(image.shape[1:]), **options) as peer:
            scores = network(image)
            return peer(CLASS, scores)

    return run


def packages(kind, network, image):
    def run():
        with kind(network, [network.layer4[-1]]) as peer:
            return peer(image, [ClassifierOutputTarget(CLASS)])

    return run


def fast_peers(network, image) -> dict[str, Callable[[], object]]:
    return {
        "torchcam CAM": torchcams(CAM, network, image, fc_layer="fc"),
        "torchcam Grad-CAM": torchcams(TorchcamGradCAM, network, image),
        "grad-cam Grad-CAM": packages(GradCAM, network, image),
        "grad-cam Grad-CAM++": packages(GradCAMPlusPlus, network, image),
        "grad-cam LayerCAM": packages(LayerCAM, network, image),
    }


def slow(plain, image, samples: int) -> dict[str, Callable[[], object]]:
    def of(name, **options):
        explain = lficam.create_explainer(name, plain, **options)
        return lambda: explain(image, CLASS)

    def torchcam_score():
        with torch.no_grad():
            return torchcams(ScoreCAM, plain.backbone, image)()

    return {
        "torchcam Score-CAM": torchcam_score,
        "lficam score_cam, the same variant, float32": of("score_cam", variant="score_cam"),
        "lficam score_cam, the same variant, precision auto": of("score_cam", variant="score_cam", precision="auto"),
        "grad-cam Score-CAM": packages(PackageScoreCAM, plain.backbone, image),
        f"lficam rise, {samples} masks": of("rise", count=samples),
        f"lficam lime, {samples} samples": of("lime", samples=samples),
    }


def in_turn(methods: dict[str, Callable[[], object]], rounds: int, warm_up: bool = True) -> dict[str, float]:
    """Median milliseconds."""
    if warm_up:
        for run in methods.values():
            run()
    times: dict[str, list[float]] = {name: [] for name in methods}
    for _ in track(range(rounds), "measuring"):
        for name, run in methods.items():
            start = time.perf_counter()
            run()
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def resident_megabytes(field: str) -> float:
    """VmRSS, what the process holds, or VmHWM, the most it held since its peak was reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def peak_megabytes(backbone: str, size: int, queue) -> None:
    """In a process of its own: how much Score-CAM's peak is above what model and libraries hold (Linux)."""
    plain, _ = models(backbone)
    image = torch.randn(1, 3, size, size)
    forward(plain, image)
    before = resident_megabytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak, which a new process inherits from its parent
    lficam.create_explainer("score_cam", plain)(image, CLASS)
    queue.put(resident_megabytes("VmHWM") - before)


def measure_memory(backbone: str, size: int) -> float:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=peak_megabytes, args=(backbone, size, queue))
    process.start()
    found = queue.get()
    process.join()
    return found


def agreement(plain, image) -> dict[str, float]:
    """Score-CAM's raw maps: ours against torchcam's, and bfloat16's ranks against float32's."""
    exact = lficam.create_explainer("score_cam", plain, variant="score_cam")
    narrow = lficam.create_explainer("score_cam", plain, variant="score_cam", precision="auto")
    with ScoreCAM(plain.backbone, "layer4", input_shape=tuple(image.shape[1:])) as peer, torch.no_grad():
        plain.backbone(image)
        (expected,) = peer(CLASS, normalized=False)
    found = exact(image, CLASS, raw=True)[:, 0]
    return {
        "largest_difference_to_torchcam": float((found - expected.relu()).abs().max() / found.max()),
        "rank_correlation_of_auto": float(
            spearmanr(exact(image, CLASS).flatten(), narrow(image, CLASS).flatten()).statistic
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--slow-rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=256, help="masks of RISE, samples of LIME")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    plain, lfi = models(options.backbone)
    image = torch.randn(1, 3, options.size, options.size)
    fast = {"plain forward pass": lambda: forward(plain, image), **ours(plain, lfi, image)}
    times = in_turn({**fast, **fast_peers(plain.backbone, image)}, options.rounds)
    times |= in_turn(slow(plain, image, options.samples), options.slow_rounds, warm_up=False)
    passes = {
        "lficam score_cam": lficam.create_explainer("score_cam", plain).passes(image),
        "lficam rise": options.samples + 1,
        "lficam lime": options.samples + 1,
    }
    base = times["plain forward pass"]
    rows = [
        {
            "method": name,
            "milliseconds": round(value, 1),
            "over_a_forward_pass": round(value / base, 2),
            "over_torchcam_score_cam": round(value / times["torchcam Score-CAM"], 3),
            "passes": next(
                (count for start, count in passes.items() if name.startswith(start)), 1 if name in fast else None
            ),
        }
        for name, value in times.items()
    ]
    facts = agreement(plain, image) | {
        "score_cam_peak_megabytes": round(measure_memory(options.backbone, options.size), 1)
    }
    table = Table(title=f"one picture of {options.size} px, {options.backbone}, {torch.get_num_threads()} threads")
    for column in rows[0]:
        table.add_column(column.replace("_", " "))
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    Console(width=150).print(table)
    print(facts)
    if options.json:
        command = "python " + " ".join(sys.argv)
        record = {
            "command": command,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            **facts,
            "rows": rows,
        }
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
