"""What a sweep's file says, checked before any work."""

import hashlib
import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from lficam.data.sources import require_source, shown_source
from lficam.errors import InvalidInputError, UnknownNameError
from lficam.evaluation import UNIFORM
from lficam.explainers import EXPLAINERS
from lficam.measuring import ONES, require_known
from lficam.recipes import merge, recipe_from_values, recipe_values
from lficam.stability import require_same_question

MAPS = (ONES, UNIFORM)  # that have records and are no explainers of their own
RECORDS_FILE = "records.jsonl"
RESERVED = ("summary", "curves")  # figures that every sweep has


@dataclass(frozen=True)
class Sweep:
    """What a sweep's file says.

    Attributes:
        path: the file; its folder's name is the experiment's.
        recipe: a shipped recipe or a file.
        settings: over the recipe's, for all variants.
        variants: name to settings, over all others but ``data``; ``init_from`` may name another variant, whose run of
            the same number it then starts from.
        runs: settings of each run, such as its seed; a variant that sets the same, such as its own rate, keeps its own.
        measure: of each, ``explainers``, ``metrics`` and ``pictures`` (a number) of `lficam.measuring`, and if need be
            its ``precision``, and which ``variants`` and ``tests`` are measured so (all unless given).
        stability: ``explainers`` and ``pictures`` of `lficam.stability`.
        tests: the sources that are measured on; the training source's test part where empty.
        headline: the columns of the first table and of its picture; the usual ones unless given. Of each, ``name``,
            ``metric`` and ``map`` of its records (no map unless given), ``data`` (the first test set that has them) and
            ``percent`` (times 100; false).
        panels: by the name of a figure, ``pictures`` (rows) and ``columns``: of each, ``variant``, ``map`` (one of
            stability's explainers) and ``run`` (0 unless given).
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
    headline: list[dict[str, Any]]
    panels: dict[str, dict[str, Any]]
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
        path = Path(self.name) / self.path.name if self.path.is_absolute() else self.path
        return f"lficam sweep {path} --runs RUNS{folder}"

    def dataset(self, source: str) -> str:
        """A source as the records name it: the path of a folder is nobody's business but its owner's.

        A folder in place of the recipe's set has the experiment's name, wherever it lies.
        """
        return f"folder:{self.name}" if source == self.data else shown_source(source)

    def current(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Those records that are of this file as it stands; of earlier settings, measures or variants none.

        The set's own name may have been replaced with a folder, or not. Stability is of the runs that it names.
        """
        elsewhere = replace(self, data="elsewhere")
        plans = {
            (variant, slug(variant, run)): {of.fingerprint(variant, run) for of in (self, elsewhere)}
            for variant in self.variants
            for run in range(len(self.runs))
        }
        kept = [dict(row) for row in rows if row.get("plan") in plans.get((row["variant"], row["run"]), ())]
        recorded = {(row["variant"], row["run"]) for row in kept}
        stability = [
            dict(row)
            for row in rows
            if row["seed"] is None and all((row["variant"], run) in recorded for run in row["run"].split(" and "))
        ]
        return kept + stability

    def measures_of(self, variant: str, source: str | None = None) -> list[dict[str, Any]]:
        """What is measured of a variant on a test set, or on any, beside what every run is."""
        return [
            asked
            for asked in self.measure
            if variant in asked.get("variants", [variant]) and source in (None, *asked.get("tests", [source]))
        ]

    def fingerprint(self, variant: str, run: int) -> str:
        """Of all that a run's records depend on, but the place of the data."""
        measures = [
            {name: value for name, value in asked.items() if name != "variants"} for asked in self.measures_of(variant)
        ]
        plan = json.dumps([*self._lineage(variant, run), measures, self.stability, self.tests], sort_keys=True)
        return hashlib.sha256(plan.encode()).hexdigest()[:12]

    def _lineage(self, variant: str, run: int) -> list[dict[str, Any]]:
        """The settings of a run and of those that it starts from, but the place of the data."""
        values = {name: value for name, value in self.values(variant, run).items() if name != "data" or not self.data}
        parent = values.get("init_from")
        return [values, *(self._lineage(parent, run) if parent in self.variants else [])]

    def values(self, variant: str, run: int) -> dict[str, Any]:
        """The settings of one run's recipe."""
        values = recipe_values(self.recipe)
        for over in (self.settings, self.runs[run], self.variants[variant], {"data": self.data} if self.data else {}):
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
    "headline": list,
    "panels": dict,
    "against": str,
}


def _check(sweep: Sweep) -> None:
    for part in (*sweep.variants.values(), *sweep.runs, *sweep.measure, *sweep.headline):
        if not isinstance(part, dict):
            raise InvalidInputError(f"sweep: expected names and values in {sweep.path}, got {part!r}.")
    _check_runs(sweep)
    _check_measures(sweep)
    _check_headline(sweep)
    for variant in sweep.variants:
        _check_parents(sweep, variant)
    for name, panel in sweep.panels.items():
        _check_panel(sweep, name, panel)
    for variant in sweep.variants:
        for run in range(len(sweep.runs)):
            recipe = recipe_from_values(sweep.values(variant, run))
            recipe.check()
            if recipe.devices != 1:
                raise InvalidInputError(
                    f"devices: a sweep trains each run on one device, got {recipe.devices}; start the command once for "
                    "each device instead, with the same --runs."
                )


def _check_runs(sweep: Sweep) -> None:
    variants = sweep.variants
    if not variants or not sweep.runs:
        raise InvalidInputError(f"sweep: expected at least one variant and one run in {sweep.path}.")
    if sweep.against and sweep.against not in variants:
        raise InvalidInputError(f"sweep: against {sweep.against!r} is none of {', '.join(variants)}.")
    for variant in variants:
        runs = [sweep.values(variant, run) for run in range(len(sweep.runs))]
        if any(run in runs[:number] for number, run in enumerate(runs)):
            raise InvalidInputError(
                f"sweep: two of the runs of {variant} in {sweep.path} are the same; give each its own seed."
            )
    if len({slug(name, 0) for name in variants}) < len(variants):
        raise InvalidInputError(f"sweep: two of the variants {', '.join(variants)} would share a directory.")


def _check_measures(sweep: Sweep) -> None:
    for asked in sweep.measure:
        _check_measure(asked, known={"explainers", "metrics", "pictures", "precision", "variants", "tests"})
        for name, known in (("variants", sweep.variants), ("tests", sweep.tests)):
            for one in asked.get(name, []):
                if one not in known:
                    raise UnknownNameError(f"{name} of a measure", str(one), list(known))
    if sweep.stability:
        _check_measure({"metrics": [], **sweep.stability}, known={"explainers", "metrics", "pictures"})
    for name in sweep.stability.get("explainers", []):
        require_same_question(name)
    for source in sweep.tests:
        require_source(source)


def _check_measure(asked: Mapping[str, Any], known: Set[str]) -> None:
    if not {"explainers", "metrics", "pictures"} <= set(asked) <= known or not isinstance(asked["pictures"], int):
        raise InvalidInputError(f"sweep: expected explainers, metrics and pictures (a number), got {asked}.")
    if asked["pictures"] < 2:
        raise InvalidInputError(f"sweep: expected at least 2 pictures to measure on, got {asked['pictures']}.")
    require_known(asked["explainers"], asked["metrics"], asked.get("precision", "32"))


def _check_headline(sweep: Sweep) -> None:
    for column in sweep.headline:
        if not {"name", "metric"} <= set(column) <= {"name", "metric", "map", "data", "percent"}:
            raise InvalidInputError(f"sweep: a column of the headline needs name and metric, got {column!r}.")
        if not isinstance(column["name"], str) or not isinstance(column["metric"], str):
            raise InvalidInputError(f"sweep: name and metric of a column are words, got {column!r}.")
        if (of := column.get("map", "attention")) not in (*EXPLAINERS, *MAPS):
            raise UnknownNameError("map of the headline", str(of), [*EXPLAINERS, *MAPS])


def _check_parents(sweep: Sweep, variant: str) -> None:
    seen = [variant]
    while (parent := sweep.values(seen[-1], 0).get("init_from")) in sweep.variants:
        if parent in seen:
            raise InvalidInputError(f"sweep: {' starts from '.join([*seen, parent])}; one must start from nothing.")
        seen.append(parent)


def _check_panel(sweep: Sweep, name: str, panel: Any) -> None:
    shaped = isinstance(panel, dict) and set(panel) == {"pictures", "columns"} and isinstance(panel["columns"], list)
    if name in RESERVED or not shaped or not isinstance(panel["pictures"], int) or panel["pictures"] < 1:
        raise InvalidInputError(
            f"sweep: panel {name} needs a name of its own, pictures (a number) and columns, got {panel!r}."
        )
    for column in panel["columns"]:
        if not isinstance(column, dict) or not {"variant", "map"} <= set(column) <= {"variant", "map", "run"}:
            raise InvalidInputError(f"sweep: a column of panel {name} needs variant and map, got {column!r}.")
        if column["variant"] not in sweep.variants or column["map"] not in sweep.stability.get("explainers", []):
            raise InvalidInputError(
                f"sweep: panel {name} shows {column['map']} of {column['variant']}; expected one of the variants and "
                "of stability's explainers, whose maps are kept."
            )
        method = recipe_from_values(sweep.values(column["variant"], 0)).model.method
        if column["map"] == "attention" and method == "plain":
            raise InvalidInputError(f"sweep: panel {name} shows the attention of {column['variant']}, which has none.")
        if column.get("run", 0) not in range(len(sweep.runs)):
            raise InvalidInputError(f"sweep: panel {name} shows run {column['run']} of {len(sweep.runs)}.")
