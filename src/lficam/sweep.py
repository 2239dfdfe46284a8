"""Variants x runs -> records, a table and a figure: an experiment that goes on where it stopped."""

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor

from lficam import functional as LF
from lficam.contract import in_eval_mode
from lficam.data.pictures import Pictures
from lficam.data.sources import load_source
from lficam.device import resolve_device
from lficam.errors import InvalidInputError, RunError, UnknownNameError
from lficam.evaluation import Subject, carried, evaluate, evaluation_directory
from lficam.explainers import EXPLAINERS, create_explainer
from lficam.files import write_whole
from lficam.measuring import BASELINES, measure_run, require_known
from lficam.models.plain import PlainClassifier
from lficam.progress import progress_bar
from lficam.recipes import merge, recipe_from_values, recipe_values
from lficam.stability import stability_of_maps
from lficam.training import Run, fit, read_curves

RECORDS_FILE = "records.jsonl"


@dataclass(frozen=True)
class Sweep:
    """What a sweep's file says.

    Attributes:
        path: the file; its folder's name is the experiment's.
        recipe: a shipped recipe or a file.
        settings: over the recipe's, for all variants.
        variants: name to settings, over those.
        runs: settings of each run, such as its seed, over those.
        measure: of each, ``explainers``, ``metrics`` and ``pictures`` (a number) of `lficam.measuring`.
        stability: ``explainers`` and ``pictures`` of `lficam.stability`.
        tests: the sources that are measured on; the training source's test part where empty.
        against: the variant that the others are held against, run by run.
        data: source in place of the recipe's; its path stays out of the records.
    """

    path: Path
    recipe: str
    settings: dict[str, Any]
    variants: dict[str, dict[str, Any]]
    runs: list[dict[str, Any]]
    measure: list[dict[str, Any]]
    stability: dict[str, Any]
    tests: list[str]
    against: str
    data: str | None

    @property
    def name(self) -> str:
        """The experiment's."""
        return self.path.resolve().parent.name

    @property
    def records_file(self) -> Path:
        """One JSON object a line; all that a later session needs."""
        return self.path.parent / RECORDS_FILE

    @property
    def command(self) -> str:
        """What makes the records again."""
        folder = f" --data {'folder:FOLDER' if self.data.startswith('folder:') else self.data}" if self.data else ""
        return f"lficam sweep experiments/{self.name}/{self.path.name} --runs RUNS{folder}"

    def dataset(self, source: str) -> str:
        """A source as the records name it: the path of a folder is nobody's business but its owner's."""
        return f"folder:{self.name}" if source.startswith("folder:") else source

    def fingerprint(self, variant: str, run: int) -> str:
        """Of all that a run's records depend on, but the place of the data."""
        values = {name: value for name, value in self.values(variant, run).items() if name != "data" or not self.data}
        plan = json.dumps([values, self.measure, self.stability, self.tests], sort_keys=True)
        return hashlib.sha256(plan.encode()).hexdigest()[:12]

    def values(self, variant: str, run: int) -> dict[str, Any]:
        """The settings of one run's recipe."""
        values = recipe_values(self.recipe)
        for over in (self.settings, self.variants[variant], self.runs[run], {"data": self.data} if self.data else {}):
            values = merge(values, over)
        return values


def slug(variant: str, run: int) -> str:
    """The name of a run's directory.

    >>> slug("LFI-CAM, w = 1/K", 2)
    'lfi-cam-w-1-k-2'
    """
    words = "".join(letter if letter.isalnum() else " " for letter in variant.lower()).split()
    return "-".join([*words, str(run)])


def read_sweep(path: str | Path, data: str | None = None) -> Sweep:
    """A sweep's file.

    Raises:
        InvalidInputError: no such file, fields that are unknown, missing or of a wrong kind, unknown names, or a recipe
            that cannot be trained: all before any work.
    """
    path = Path(path)
    if not path.is_file():
        raise InvalidInputError(f"sweep: expected a YAML file, got {path}; mend the path.")
    try:
        fields = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"sweep: {path} is no YAML file ({' '.join(str(error).split())}).") from error
    if not isinstance(fields, dict) or set(fields) - set(_KINDS) or not {"recipe", "variants", "runs"} <= set(fields):
        raise InvalidInputError(f"sweep: expected recipe, variants, runs and of {', '.join(_KINDS)} in {path}.")
    fields = {name: kind() for name, kind in _KINDS.items()} | fields
    for name, kind in _KINDS.items():
        if not isinstance(fields[name], kind):
            raise InvalidInputError(f"sweep: expected a {kind.__name__} under {name} in {path}, got {fields[name]!r}.")
    fields["variants"] = {str(name): values or {} for name, values in fields["variants"].items()}
    sweep = Sweep(path, data=data, **fields)
    _check(sweep)
    return sweep


_KINDS = {
    "recipe": str,
    "settings": dict,
    "variants": dict,
    "runs": list,
    "measure": list,
    "stability": dict,
    "tests": list,
    "against": str,
}


def _check(sweep: Sweep) -> None:
    variants = sweep.variants
    if sweep.against and sweep.against not in variants:
        raise InvalidInputError(f"sweep: against {sweep.against!r} is none of {', '.join(variants)}.")
    if len({slug(name, 0) for name in variants}) < len(variants):
        raise InvalidInputError(f"sweep: two of the variants {', '.join(variants)} would share a directory.")
    for part in (*variants.values(), *sweep.runs, *sweep.measure):
        if not isinstance(part, dict):
            raise InvalidInputError(f"sweep: expected names and values in {sweep.path}, got {part!r}.")
    for asked in (*sweep.measure, *([{"metrics": [], **sweep.stability}] if sweep.stability else [])):
        if not isinstance(asked.get("pictures"), int) or not {"explainers", "metrics"} <= set(asked):
            raise InvalidInputError(f"sweep: expected explainers, metrics and pictures (a number), got {asked}.")
        require_known(asked["explainers"], asked["metrics"])
    for name in sweep.stability.get("explainers", []):
        if name not in EXPLAINERS:
            raise UnknownNameError("explainer of stability", name, EXPLAINERS)
    for variant in variants:
        for run in range(len(sweep.runs)):
            recipe_from_values(sweep.values(variant, run)).check()


def run_sweep(sweep: Sweep, runs: str | Path) -> None:
    """Train and measure what has no records yet, run by run over all variants, and compare the maps of the runs.

    A run with records of the same settings and measures is done, whether its weights are still there or not. Others are
    trained in ``runs``, where a finished one is not trained again and a stopped one goes on after its last epoch.
    """
    rows = read_records(sweep.records_file)
    for run in range(len(sweep.runs)):
        for variant in sweep.variants:
            name, plan = slug(variant, run), sweep.fingerprint(variant, run)
            if not any(row["run"] == name and row.get("plan") == plan for row in rows):
                print(f"{sweep.name}: {variant}, run {run + 1} of {len(sweep.runs)}", flush=True)
                found = [{**row, "plan": plan} for row in _run(sweep, variant, run, Path(runs))]
                rows = [row for row in rows if row["run"] != name] + found
                rows = _with_stability(sweep, variant, rows)
                _write(sweep.records_file, rows)


def _with_stability(sweep: Sweep, variant: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, with the variant's stability over the runs so far; where maps are gone, what was found with them."""
    compared = list(_stability(sweep, variant, rows))
    if not compared:
        return rows
    return [row for row in rows if row["variant"] != variant or not row["metric"].startswith("stability")] + compared


def read_records(path: Path) -> list[dict[str, Any]]:
    """The rows of a record file; none where there is no file yet.

    Raises:
        RunError: a damaged file.
    """
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except ValueError as error:
        raise RunError(f"sweep: {path} is damaged ({error}); restore it.") from error


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    write_whole(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def _run(sweep: Sweep, variant: str, run: int, runs: Path) -> Iterator[dict[str, Any]]:
    recipe = recipe_from_values(sweep.values(variant, run))
    trained = fit(recipe, runs / sweep.name / slug(variant, run))
    trained.model.to(resolve_device(recipe.device))
    common = {
        "experiment": sweep.name,
        "backbone": recipe.model.backbone,
        "method": recipe.model.method,
        "variant": variant,
        "run": slug(variant, run),
        "seed": recipe.seed,
        "epochs": recipe.epochs,
        "settings": sweep.runs[run],
        "command": sweep.command,
        "seconds": trained.metrics["training_seconds"],
    }
    for metric, value in _of_training(trained):
        yield {**common, "dataset": "training", "pictures": None, "explainer": "", "metric": metric, "value": value}
    tests = sweep.tests or [recipe.data]
    needed = dict.fromkeys([*tests, *([recipe.data] if sweep.stability else [])])
    sets = {source: load_source(source, recipe.image_size, with_train=False).test for source in needed}
    for source in tests:
        for row in _of_test(sweep, trained, sets[source], source):
            yield {**common, "dataset": sweep.dataset(source), **row}
    if sweep.stability:
        drawn = sets[recipe.data].sample(sweep.stability["pictures"])
        _keep_maps(sweep, trained.model, drawn, _maps_file(sweep, variant, run))


def _of_training(run: Run) -> Iterator[tuple[str, float]]:
    yield "seconds_per_epoch", run.metrics["seconds_per_epoch"]
    if run.metrics.get("val_accuracy") is not None:
        yield "val_accuracy", run.metrics["val_accuracy"]
    for row in read_curves(run.directory):
        part = "val_accuracy" if row["val_accuracy"] else "train_accuracy"
        yield f"{part} after epoch {int(row['epoch']) + 1}", float(row[part])


def _of_test(sweep: Sweep, run: Run, pictures: Pictures, source: str) -> Iterator[dict[str, Any]]:
    """Explainer, metric, value and interval of all that is measured on a test set."""
    evaluation = evaluate(run.model, pictures, source, evaluation_directory(run.directory, source)).to_dict()
    everything = {"pictures": len(pictures)}
    sizes = {name: evaluation["facts"][name] for name in ("parameters", "multiply_adds")}
    for metric, value in {**evaluation["classification"], **sizes}.items():
        yield {**everything, "explainer": "", "metric": metric, **_bounds(value)}
    for row in evaluation["localization"]:
        for metric in ("pointing", "pointing_chance", "box_iou", "box_iou_chance"):
            yield {**everything, "explainer": row["map"], "metric": metric, **_bounds(row[metric])}
    for row in evaluation["shortcut"].get("peaks", []):
        for metric in ("on_the_mark", "near_the_mark", "on_the_digit"):
            about = {"explainer": row["map"], "metric": f"peak {metric}".replace("_", " ")}
            yield {**everything, **about, **_bounds(row[metric])}
    for asked in sweep.measure:
        drawn, wanted = pictures.sample(asked["pictures"]), carried(run.model, asked["explainers"])
        for record in measure_run(run.directory, run.model, drawn, source, wanted, asked["metrics"]):
            if record.value is not None:
                bounds = {"value": record.value, "low": record.low, "high": record.high}
                about = {"pictures": len(drawn), "explainer": record.explainer, "metric": record.metric}
                yield {**about, **bounds}


def _bounds(value: Any) -> dict[str, Any]:
    """A number, or a rate with its interval, as the fields of a record."""
    if isinstance(value, dict):
        return {bound: value[bound] for bound in ("value", "low", "high")}
    return {"value": value, "low": None, "high": None}


def _maps_file(sweep: Sweep, variant: str, run: int) -> Path:
    return sweep.path.parent / "maps" / f"{slug(variant, run)}.npz"


def _keep_maps(sweep: Sweep, model: PlainClassifier, pictures: Pictures, path: Path) -> None:
    """Raw maps on their grid, and the labels: what stability needs when the weights are gone."""
    kept = {"labels": pictures.labels.numpy()}
    with in_eval_mode(model), progress_bar() as progress:
        subject = Subject(model, pictures, model.config.required_preprocessing(), 100, progress)
        for name in carried(model, sweep.stability["explainers"]):
            maps = subject.maps(create_explainer(name, model), pictures.labels, raw=True)
            kept[name] = maps.numpy().astype(np.float16)
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **kept)  # type: ignore[arg-type]


def _stability(sweep: Sweep, variant: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """All pairs of a variant's runs, from the maps that were kept."""
    files = {slug(variant, run): _maps_file(sweep, variant, run) for run in range(len(sweep.runs))}
    of_variant = [row for row in rows if row["variant"] == variant]
    recorded = {row["run"] for row in of_variant}
    kept = {name: np.load(path) for name, path in files.items() if name in recorded and path.is_file()}
    if len(kept) < 2 or len(kept) < len(recorded & set(files)):
        return
    validation = {row["run"]: row["value"] for row in of_variant if row["metric"] == "val_accuracy"}
    recipe = recipe_from_values(sweep.values(variant, 0))
    fields = ("experiment", "backbone", "method", "variant", "epochs", "command")
    common = {"dataset": sweep.dataset(recipe.data), **{field: of_variant[0][field] for field in fields}}
    first = next(iter(kept.values()))
    for name in (name for name in first.files if name != "labels"):
        maps = {
            run: _shown(torch.from_numpy(of_run[name]).float(), name, recipe.image_size) for run, of_run in kept.items()
        }
        found = stability_of_maps(maps, torch.from_numpy(first["labels"]), {"explainer": name}, validation)
        about = {**common, "run": " and ".join(kept), "seed": None, "seconds": None, "explainer": name}
        about["pictures"] = len(first["labels"])
        for measure in found.measures:
            for part in ("value", "shuffled", "corrected"):
                if measure[part] is not None:
                    metric = f"stability: {measure['measure']}" + ("" if part == "value" else f", {part}")
                    over_pairs = {"deviation": measure["deviation"]} if part == "value" and len(found.pairs) > 1 else {}
                    yield {**about, "metric": metric, "value": measure[part], **over_pairs}
        if found.paper and found.paper["iou"] is not None:
            yield {**about, "metric": "stability: the paper's protocol", "value": found.paper["iou"]}


def _shown(maps: Tensor, name: str, side: int) -> Tensor:
    """Raw maps as an explainer normalises them."""
    return LF.min_max(LF.upsample(maps.relu() if EXPLAINERS[name].signed else maps, (side, side)))


def write_summary(sweep: Sweep) -> str:
    """Make ``table.md`` and ``summary.png`` from the records, and return the table."""
    rows = read_records(sweep.records_file)
    if not rows:
        raise InvalidInputError(f"sweep: no records in {sweep.records_file}; run the sweep first.")
    table = _table(sweep, rows)
    write_whole(sweep.path.parent / "table.md", table)
    _figure(sweep, rows).savefig(sweep.path.parent / "summary.png")
    return table


def _table(sweep: Sweep, rows: Sequence[Mapping[str, Any]]) -> str:
    variants = list(sweep.variants)
    rows = [row for row in rows if row["variant"] in variants]
    keys = list(dict.fromkeys(_key(row) for row in rows))
    count = len({row["run"] for row in rows if row["seed"] is not None})
    paired = f" In brackets the difference to {sweep.against}, run by run, with its 95 % t-interval."
    lines = [
        f"Made by `{sweep.command}`; {count} runs in all, of {rows[0]['epochs']} epochs, {platform.machine()}. "
        "Mean and standard deviation over the runs of a variant; stability over all pairs of them."
        + (paired if sweep.against else ""),
        "",
        "| data | pictures | map | measure | " + " | ".join(variants) + " |",
        "|---|---|---|---|" + "---|" * len(variants),
    ]
    for key in keys:
        of_each = {
            variant: {
                row["run"].rpartition("-")[2]: row for row in rows if _key(row) == key and row["variant"] == variant
            }
            for variant in variants
        }
        cells = [
            _cell(of_each[variant], of_each.get(sweep.against, {}), variant == sweep.against) for variant in variants
        ]
        named = " | ".join("" if part is None else str(part) for part in key)
        lines.append(f"| {named} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes a line of the table."""
    return row["dataset"], row["pictures"], row["explainer"], row["metric"]


def _cell(found: Mapping[str, Mapping[str, Any]], against: Mapping[str, Mapping[str, Any]], itself: bool) -> str:
    values = [row["value"] for row in found.values()]
    if not values:
        return ""
    if all(isinstance(value, int) for value in values) and len(set(values)) == 1:
        return f"{values[0]:,}"
    deviation = np.std(values, ddof=1) if len(values) > 1 else next(iter(found.values())).get("deviation")
    shown = f"{np.mean(values):.3f}" + (f" ± {deviation:.3f}" if deviation is not None else "")
    paired = sorted(set(found) & set(against))
    if itself or len(paired) < 2:
        return shown
    low, high = paired_interval([found[run]["value"] - against[run]["value"] for run in paired])
    difference = np.mean([found[run]["value"] - against[run]["value"] for run in paired])
    return f"{shown} ({difference:+.3f}, {low:+.3f} to {high:+.3f})"


def paired_interval(differences: Sequence[float]) -> tuple[float, float]:
    """The 95 % t-interval of the mean of differences between paired runs, two at least.

    >>> tuple(round(bound, 3) for bound in paired_interval([1.0, 2.0, 3.0]))
    (-0.484, 4.484)
    """
    if len(set(differences)) == 1:
        return differences[0], differences[0]
    mean, error = float(np.mean(differences)), float(stats.sem(differences))
    low, high = stats.t.interval(0.95, len(differences) - 1, loc=mean, scale=error)
    return float(low), float(high)


def _figure(sweep: Sweep, rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Error, corrected stability and faithfulness on the first test set, a dot a run, a row a variant."""
    first = next(row["dataset"] for row in rows if row["metric"] == "top1_error")
    rows = [row for row in rows if row["dataset"] == first and row["variant"] in sweep.variants]
    variants, explainers = list(sweep.variants), list(dict.fromkeys((*_mapped(rows), *BASELINES)))
    panels = [
        ("top-1 error", "top1_error", [""]),
        ("IoU of two runs' maps, corrected", "stability: iou, corrected", explainers),
        ("correlation with what a patch's loss costs", "patch_deletion", explainers),
    ]
    panels = [panel for panel in panels if any(row["metric"] == panel[1] for row in rows)]
    figure = Figure(figsize=(4.6 * len(panels), 1.8 + 0.55 * len(variants)), dpi=130, layout="constrained")
    for column, (title, metric, names) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), column + 1)
        for number, name in enumerate(names):
            found = [row for row in rows if (row["metric"], row["explainer"]) == (metric, name)]
            places = [variants.index(row["variant"]) + 0.12 * (number - (len(names) - 1) / 2) for row in found]
            values = [row["value"] for row in found]
            colour = f"C{explainers.index(name)}" if name else "black"
            axes.plot(values, places, "o", color=colour, markersize=4, label=name if found else None)
        axes.set_title(title, fontsize=10)
        axes.set_yticks(range(len(variants)), variants if column == 0 else [""] * len(variants))
        axes.set_ylim(len(variants) - 0.5, -0.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", alpha=0.3)
    handles, labels = figure.axes[-1].get_legend_handles_labels()
    named = [(handle, label) for handle, label in zip(handles, labels, strict=True) if label]
    if named:
        figure.legend(
            *zip(*named, strict=True), loc="outside lower center", ncols=len(named), frameon=False, fontsize=8
        )
    return figure


def _mapped(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The explainers with stability records."""
    return list(dict.fromkeys(row["explainer"] for row in rows if row["metric"].startswith("stability")))
