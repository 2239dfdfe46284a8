"""Train and measure what has no records yet."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from lficam.contract import in_eval_mode
from lficam.data.pictures import Pictures
from lficam.data.sources import load_source
from lficam.device import resolve_device
from lficam.errors import DataError, RunError
from lficam.evaluation import Subject, carried, evaluate, evaluation_directory
from lficam.explainers import create_explainer
from lficam.measuring import SCHEMA, measure_run
from lficam.models.plain import PlainClassifier
from lficam.progress import progress_bar
from lficam.recipes import Recipe, recipe_from_values
from lficam.stability import stability_of_maps
from lficam.sweep.plan import Sweep, slug
from lficam.sweep.records import maps_file, read_records, shown_maps, write_records
from lficam.training import Run, fit, read_curves


def run_sweep(sweep: Sweep, runs: str | Path) -> list[str]:
    """Train and measure what has no records yet, run by run over all variants, and compare the maps of the runs.

    A run with records of the same settings and measures is done, whether its weights are still there or not. Others are
    trained in ``runs``, where a finished one is not trained again and a stopped one goes on after its last epoch. What
    the file has of other settings stays until a run takes its place.

    The same sweep may go on in several processes at once with the same ``runs``, such as one a GPU: each takes the next
    run that no other is at, until there is none.

    Returns:
        The runs without records, which other processes are at or have died of; where there are none, the maps of all
        have been compared.

    Raises:
        DataError: a folder of other pictures than those that there are records of, by names and labels.
        RunError: kept maps of other pictures than the other runs'.
    """
    runs, to_do = Path(runs), _unrecorded(sweep)
    if to_do:
        _require_same_pictures(sweep, recipe_from_values(sweep.values(*to_do[0])))
    # From the first one again after each: another process may have died of what it had begun.
    while any(_take(sweep, variant, run, runs) for variant, run in _unrecorded(sweep)):
        pass
    with records_lock(sweep, runs):
        rows = read_records(sweep.records_file)
        for variant in sweep.variants:
            rows = _with_stability(sweep, variant, rows)
        write_records(sweep.records_file, rows)
        return [slug(variant, run) for variant, run in _unrecorded(sweep)]


def records_lock(sweep: Sweep, runs: str | Path) -> FileLock:
    """What is to be held while the records, or what is made of them, are written."""
    return _lock(sweep, "records", Path(runs))


def _lock(sweep: Sweep, name: str, runs: Path) -> FileLock:
    """What one process at a time may hold; the system takes it back from one that dies."""
    home = runs / sweep.name / ".locks"
    home.mkdir(parents=True, exist_ok=True)
    return FileLock(home / name)


def _unrecorded(sweep: Sweep) -> list[tuple[str, int]]:
    recorded = {row["run"] for row in sweep.current(read_records(sweep.records_file))}
    return [
        (variant, run)
        for run in range(len(sweep.runs))
        for variant in sweep.variants
        if slug(variant, run) not in recorded
    ]


def _take(sweep: Sweep, variant: str, run: int, runs: Path) -> bool:
    """Record a run, unless another process is at it or at the run that it starts from, or has recorded it since."""
    try:
        with _lock(sweep, slug(variant, run), runs).acquire(timeout=0):
            if (variant, run) not in _unrecorded(sweep):
                return False
            _record(sweep, variant, run, runs)
            return True
    except Timeout:
        return False


def _record(sweep: Sweep, variant: str, run: int, runs: Path) -> None:
    """A run's rows in place of those of other settings."""
    name, marks = slug(variant, run), {"plan": sweep.fingerprint(variant, run), "schema": SCHEMA}
    print(f"{sweep.name}: {variant}, run {run + 1} of {len(sweep.runs)}", flush=True)
    found = [{**row, **marks} for row in _run(sweep, variant, run, runs)]
    with records_lock(sweep, runs):
        rows = read_records(sweep.records_file)
        # With the run's own rows goes the stability that was found with it.
        rows = [row for row in rows if name not in row["run"].split(" and ")] + found
        write_records(sweep.records_file, rows)


def _with_stability(sweep: Sweep, variant: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, with the variant's stability over the runs so far; where maps are gone, what was found with them.

    Without stability in the file, none.
    """
    compared = list(_stability(sweep, variant, sweep.current(rows))) if sweep.stability else []
    if sweep.stability and not compared:
        return rows
    return [row for row in rows if row["variant"] != variant or not row["metric"].startswith("stability")] + compared


def _run(sweep: Sweep, variant: str, run: int, runs: Path) -> Iterator[dict[str, Any]]:
    values = sweep.values(variant, run)
    recipe, trained = recipe_from_values(values), _train(sweep, variant, run, runs)
    trained.model.to(resolve_device(recipe.device))
    common = {
        "experiment": sweep.name,
        "backbone": recipe.model.backbone,
        "method": recipe.model.method,
        "variant": variant,
        "run": slug(variant, run),
        "seed": recipe.seed,
        "epochs": recipe.epochs,
        "settings": {name: values[name] for name in sweep.runs[run]},
        "command": sweep.command,
        "hardware": _hardware(trained.model.config.training),
        "seconds": trained.metrics["training_seconds"],
    }
    for metric, value in _of_training(trained):
        yield {**common, "dataset": "training", "pictures": None, "explainer": "", "metric": metric, "value": value}
    tests, sets = sweep.tests or [recipe.data], _test_sets(sweep, recipe)
    for source in tests:
        of_set = {**common, "dataset": sweep.dataset(source), "listing": sets[source].listing_sha256[:12]}
        for row in _of_test(sweep, variant, trained, sets[source], source):
            yield {**of_set, **row}
    if sweep.stability:
        drawn = sets[recipe.data].sample(sweep.stability["pictures"])
        _keep_maps(sweep, trained.model, drawn, maps_file(sweep, variant, run))


def _test_sets(sweep: Sweep, recipe: Recipe) -> dict[str, Pictures]:
    """The sets that a run is measured on, by source."""
    needed = dict.fromkeys([*(sweep.tests or [recipe.data]), *([recipe.data] if sweep.stability else [])])
    return {source: load_source(source, recipe.image_size, with_train=False).test for source in needed}


def _require_same_pictures(sweep: Sweep, recipe: Recipe) -> None:
    """Refuse, before any training, a folder of other pictures than the runs so far were measured on.

    Raises:
        DataError: which.
    """
    recorded = {
        row["dataset"]: row["listing"] for row in sweep.current(read_records(sweep.records_file)) if "listing" in row
    }
    for source, pictures in _test_sets(sweep, recipe).items() if recorded else ():
        if not pictures.listing_sha256.startswith(recorded.get(sweep.dataset(source), "")):
            raise DataError(
                f"data: the test pictures of {source} are others than those that {sweep.records_file} has records of; "
                "name the folder of these, or begin the sweep anew in a folder of its own."
            )


def _hardware(training: Mapping[str, Any]) -> str:
    """What the seconds are of."""
    version = training["torch"].partition("+")[0]  # not of which build
    return f"{training['device']}, {training['threads']} threads, {training['precision']}, torch {version}"


def _train(sweep: Sweep, variant: str, run: int, runs: Path) -> Run:
    """The run, trained if it is not, and before it the one that it starts from.

    Raises:
        Timeout: another process is at that one.
    """
    recipe = recipe_from_values(sweep.values(variant, run))
    if recipe.init_from in sweep.variants:
        with _lock(sweep, slug(recipe.init_from, run), runs).acquire(timeout=0):
            parent = _train(sweep, recipe.init_from, run, runs)
        recipe = replace(recipe, init_from=str(parent.directory))
    return fit(recipe, runs / sweep.name / slug(variant, run))


def _of_training(run: Run) -> Iterator[tuple[str, float]]:
    yield "seconds_per_epoch", run.metrics["seconds_per_epoch"]
    if run.metrics.get("val_accuracy") is not None:
        yield "val_accuracy", run.metrics["val_accuracy"]
    for row in read_curves(run.directory):
        part = "val_accuracy" if row["val_accuracy"] else "train_accuracy"
        yield f"{part} after epoch {int(row['epoch']) + 1}", float(row[part])
    if "retrofit" in run.metrics:
        yield "points_gained by the retrofit", run.metrics["retrofit"]["points_gained"]


def _of_test(sweep: Sweep, variant: str, run: Run, pictures: Pictures, source: str) -> Iterator[dict[str, Any]]:
    """Explainer, metric, value and interval of all that is measured on a test set."""
    evaluation = evaluate(run.model, pictures, source, evaluation_directory(run.directory, source)).to_dict()
    everything = {"pictures": len(pictures)}
    sizes = {name: evaluation["facts"][name] for name in ("parameters", "multiply_adds")}
    for metric, value in {**evaluation["classification"], **sizes}.items():
        yield {**everything, "explainer": "", "metric": metric, **_bounds(value)}
    for row in evaluation["localization"]:
        for metric, value in row.items():
            if metric not in ("map", "class_targeted"):
                yield {**everything, "explainer": row["map"], "metric": metric, **_bounds(value)}
    for row in _of_shortcut(dict(evaluation["shortcut"])):
        yield {**everything, **row}
    for asked in sweep.measures_of(variant, source):
        drawn, wanted = pictures.sample(asked["pictures"]), carried(run.model, asked["explainers"])
        precision = asked.get("precision", "32")
        for record in measure_run(run.directory, run.model, drawn, source, wanted, asked["metrics"], precision):
            if record.value is not None:
                bounds = {"value": record.value, "low": record.low, "high": record.high}
                about = {"pictures": len(drawn), "explainer": record.explainer, "metric": record.metric}
                yield {**about, **bounds}


def _of_shortcut(shortcut: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """How often the label is the planted mark's, and where each map's peak lies then."""
    peaks = shortcut.pop("peaks", [])
    for metric, value in shortcut.items():
        yield {"explainer": "", "metric": metric, **_bounds(value)}
    for row in peaks:
        for place, value in row.items():
            if place != "map":
                yield {"explainer": row["map"], "metric": f"peak {place}".replace("_", " "), **_bounds(value)}


def _bounds(value: Any) -> dict[str, Any]:
    """A number, or a rate with its interval, as the fields of a record."""
    if isinstance(value, dict):
        return {bound: value[bound] for bound in ("value", "low", "high")}
    return {"value": value, "low": None, "high": None}


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
    files = {slug(variant, run): maps_file(sweep, variant, run) for run in range(len(sweep.runs))}
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
    for name, of_run in kept.items():
        if not np.array_equal(of_run["labels"], first["labels"]):
            raise RunError(f"sweep: {files[name]} has the maps of other pictures than the other runs; remove that run.")
    for name in (name for name in first.files if name != "labels"):
        maps = {
            run: shown_maps(torch.from_numpy(of_run[name]).float(), name, recipe.image_size)
            for run, of_run in kept.items()
        }
        found = stability_of_maps(maps, torch.from_numpy(first["labels"]), {"explainer": name}, validation)
        about = {**common, "run": " and ".join(kept), "seed": None, "seconds": None, "explainer": name}
        about["pictures"] = len(first["labels"])
        for measure in found.measures:
            for part in ("value", "shuffled", "corrected"):
                if measure[part] is not None:
                    metric = f"stability: {measure['measure']}" + ("" if part == "value" else f", {part}")
                    yield {**about, "metric": metric, "value": measure[part], **_spread(measure, part)}
        if found.paper and found.paper["iou"] is not None:
            yield {**about, "metric": "stability: the paper's protocol", "value": found.paper["iou"]}


def _spread(measure: Mapping[str, Any], part: str) -> dict[str, Any]:
    """The deviation of a measure's value over pairs; the corrected one's interval, and what it is without each run."""
    names = {"value": ["deviation"], "corrected": ["low", "high", "without"]}.get(part, [])
    return {name: measure[name] for name in names if measure[name] is not None}
