"""The command line: verbs with flags. Wrong input is one plain sentence and exit code 2."""

import json
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn

from jsonargparse import ArgumentParser, Namespace

import lficam
from lficam import portable
from lficam.errors import GateError, InvalidInputError, LficamError, LficamWarning
from lficam.files import write_json
from lficam.recipes import Recipe, recipe_from_values, recipe_names, recipe_values

_SHORT = {
    "--backbone": "--model.backbone",
    "--method": "--model.method",
    "--pretrained": "--model.pretrained",
    "--init-from": "--init_from",
}
_DEMO_TEST = "two-digits"


class _Parser(ArgumentParser):
    """Wrong usage is an error like any other: one sentence, no usage dump."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        message = re.sub(r'Parser key "([^"]+)":', r"--\1:", message)
        message = re.sub(r"<class '(\w+)'>", r"\1", message).replace("typing.", "")
        raise InvalidInputError(" ".join(message.split()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; exit code 0, 1 where a gate is not passed, 2 for wrong input, 130 for an interruption."""
    try:
        with _plain_warnings():
            return _run(list(sys.argv[1:] if arguments is None else arguments))
    except GateError as error:
        print(f"lficam: {error}", file=sys.stderr)
        return 1
    except LficamError as error:
        print(f"lficam: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"lficam: {portable.told(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lficam: interrupted; the same command goes on where it stopped.", file=sys.stderr)
        return 130


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Our warnings as sentences; those of others as they are."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", LficamWarning)
        show = warnings.showwarning

        def plainly(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, LficamWarning):
                print(f"lficam: {message}", file=sys.stderr)
            else:
                show(message, category, *place, **more)

        warnings.showwarning = plainly
        yield


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if arguments[0] == "--version":
        print(lficam.__version__)
        return 0
    verb, *rest = arguments
    if verb == "predict":
        return portable.main(rest)
    if verb not in _VERBS:
        raise InvalidInputError(f"unknown command {verb!r}; commands: {', '.join(_VERBS)}.")
    add_arguments, command = _VERBS[verb]
    parser = _Parser(prog=f"lficam {verb}", description=command.__doc__, allow_abbrev=False)
    add_arguments(parser)
    parser.add_argument("--json", type=str, default=None, metavar="FILE", help="also write the result as JSON")
    try:
        options = parser.parse_args(rest) if verb != "train" else _parse_recipe(parser, rest)
    except SystemExit as stop:  # --help has printed itself
        return int(stop.code or 0)
    if options.json:
        _require_json_file(Path(options.json))
    try:
        result = command(options)
    except GateError as error:
        _write_result(options.json, error.result)
        raise
    _write_result(options.json, result)
    return 0


def _write_result(path: str | None, result: dict[str, Any]) -> None:
    if path and result:
        write_json(Path(path), result)


def _require_json_file(path: Path) -> None:
    """Refuse before the work what could not be written after it, or would be lost."""
    if path.is_dir() or not path.parent.is_dir():
        raise InvalidInputError(f"--json: {path} cannot be a file; name one in a folder that exists.")
    if path.is_file():
        try:
            json.loads(path.read_text())
        except ValueError as error:
            raise InvalidInputError(f"--json: {path} exists and is no JSON file; name another.") from error


def _usage() -> str:
    lines = [f"lficam {lficam.__version__}: image classifiers that explain themselves", ""]
    verbs = {verb: command for verb, (_, command) in _VERBS.items()} | {"predict": portable.main}
    for verb, command in verbs.items():
        lines.append(f"  lficam {verb:<9} {(command.__doc__ or '').splitlines()[0]}")
    return "\n".join([*lines, "", "lficam COMMAND --help tells more."])


def _parse_recipe(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """Parse flags over the recipe that ``--config`` names, wherever it stands."""
    words = [_spelled_out(word) for word in arguments]
    config, words = _take_config(words)
    if config is not None:
        parser.set_defaults(_checked(config))
    return parser.parse_args(words)


def _spelled_out(word: str) -> str:
    if word == "--pretrained":
        word += "=true"
    flag, equals, value = word.partition("=")
    return _SHORT.get(flag, flag) + equals + value


def _take_config(words: list[str]) -> tuple[str | None, list[str]]:
    config, rest = None, []
    remaining = iter(words)
    for word in remaining:
        if word == "--config":
            config = next(remaining, None)
            if config is None:
                raise InvalidInputError("--config: expected the name of a recipe or a file, got nothing.")
        elif word.startswith("--config="):
            config = word.removeprefix("--config=")
        else:
            rest.append(word)
    return config, rest


def _checked(config: str) -> dict[str, Any]:
    """The settings of a recipe as flags, each of the type its flag has."""
    checker = _Parser(prog="lficam train")
    checker.add_class_arguments(Recipe, as_group=False)
    values = recipe_values(config)
    if not isinstance(values.get("model", {}), dict):
        raise InvalidInputError(f"config: expected a mapping under model in {config}, got {values['model']!r}.")
    try:
        checked = checker.parse_object(values)
    except (LficamError, KeyError) as error:
        raise InvalidInputError(f"config: {config}: {' '.join(str(error).split())}") from error
    model = values.pop("model", {})
    flags = {key: checked[key] for key in values}
    return flags | {f"model.{key}": checked.model[key] for key in model}


def _train_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=str, default=None, metavar="RECIPE", help="a recipe's name or file; flags win over it"
    )
    parser.add_class_arguments(Recipe, as_group=False)
    parser.add_argument("--out", type=str, required=True, metavar="RUN", help="the run directory, new or to resume")
    parser.add_argument("--resume", type=Literal["auto", "never"], default="auto", help="go on where RUN stopped")
    parser.epilog = (
        "--backbone, --method and --pretrained are short for --model.backbone, --model.method and --model.pretrained "
        "true. "
        f"Recipes: {', '.join(recipe_names())}."
    )


def train(options: Namespace) -> dict[str, Any]:
    """Train a classifier that explains itself, on a folder of images or a named source."""
    from lficam.tables import print_values
    from lficam.training import fit

    run = fit(recipe_from(options), options.out, options.resume)
    if not run.is_main:
        return {}
    values = {**run.metrics, "run": str(run.directory)}
    retrofit = values.pop("retrofit", None)
    print_values("trained", values)
    if retrofit:
        print_values("before and after, on the test pictures", retrofit)
    return {"run": str(run.directory), **run.metrics}


def recipe_from(options: Namespace) -> Recipe:
    """The typed recipe in parsed options."""
    values = {name: options[name] for name in Recipe.__dataclass_fields__}
    return recipe_from_values({**values, "model": vars(options.model)})


def _runs_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("runs", type=str, nargs="+", metavar="RUN", help="run directories")
    _model_arguments(parser)


def _run_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=str, help="a run directory")
    _model_arguments(parser)


def _model_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--device", type=Literal["auto", "cpu", "cuda", "mps"], default="auto", help="where to compute")
    parser.add_argument(
        "--model",
        type=str,
        default=None,
        metavar="MODULE:FACTORY",
        help="the trunk of a run whose trunk is your own code",
    )


def _evaluate_arguments(parser: ArgumentParser) -> None:
    _runs_arguments(parser)
    parser.add_argument("--data", type=str, required=True, help="source; its test part is used")
    _explainers_arguments(parser)
    parser.add_argument("--metrics", type=str, nargs="+", default=[], metavar="NAME", help="what to measure of them")
    parser.add_argument("--limit", type=int, default=500, help="pictures for --metrics, drawn from the whole set")


def _explainers_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--explainers",
        type=str,
        nargs="+",
        default=[],
        metavar="NAME",
        help="whose maps, beside the baselines; the usual ones unless given",
    )
    parser.add_argument(
        "--precision",
        type=Literal["32", "auto"],
        default="32",
        help="of Score-CAM, RISE and LIME; auto: bfloat16 where the device has it natively",
    )


def evaluate(options: Namespace) -> dict[str, Any]:
    """Measure runs on a test set: errors, calibration, size, where maps point; with --metrics what maps are worth."""
    from lficam.evaluation import evaluate_run, evaluation_directory
    from lficam.tables import print_evaluation

    if options.metrics or options.explainers:
        return _measure(options)
    found = {}
    for run in options.runs:
        evaluation = evaluate_run(run, _load(run, options), options.data)
        found[run] = evaluation.to_dict()
        print_evaluation(found[run])
        print(f"records: {evaluation_directory(run, options.data)}")
    return found if len(found) > 1 else next(iter(found.values()))


def _measure(options: Namespace) -> dict[str, Any]:
    from lficam.evaluation import carried
    from lficam.measuring import (
        BASELINES,
        DEFAULT_EXPLAINERS,
        DEFAULT_MEASURES,
        about,
        combine,
        measure_run,
    )
    from lficam.tables import print_measures

    models, pictures = _load_comparable(options)
    pictures = pictures.sample(options.limit)
    metrics = options.metrics or DEFAULT_MEASURES
    records = {}
    for run, model in models.items():
        explainers = options.explainers or carried(model, DEFAULT_EXPLAINERS)
        beside = dict.fromkeys([*explainers, *BASELINES])
        records[run] = measure_run(run, model, pictures, options.data, list(beside), metrics, options.precision)
    rows = combine(records)
    runs = "1 run" if len(models) == 1 else f"{len(models)} runs"
    print_measures(f"{options.data}: {len(pictures)} pictures, {runs}, 95 % intervals", rows)
    notes = about(next(iter(models.values())), metrics)
    print(*notes, sep="\n", end="\n" if notes else "")
    return {"source": options.data, "pictures": len(pictures), "rows": rows, "notes": notes}


def _load_all(options: Namespace) -> dict[str, Any]:
    """The runs by name; one that is named twice is one, and a copy of one is refused: it is no other training."""
    from lficam.files import read_record

    runs = {Path(run).resolve(): run for run in reversed(options.runs)}
    models = {run: _load(run, options) for run in reversed(runs.values())}
    first_of: dict[str, str] = {}
    for run in models:
        weights = read_record(Path(run) / "config.json").get("weights_sha256")
        if weights and first_of.setdefault(weights, run) != run:
            raise InvalidInputError(f"runs: {run} has the weights of {first_of[weights]}; name each training once.")
    return models


def _load_comparable(options: Namespace) -> tuple[dict[str, Any], Any]:
    """Runs alike but for their training, and the test pictures of ``--data``."""
    from lficam.data.sources import load_source
    from lficam.evaluation import require_comparable, require_same_classes

    models = _load_all(options)
    require_comparable(models)
    first = next(iter(models.values()))
    pictures = load_source(options.data, first.config.required_preprocessing().size, with_train=False).test
    require_same_classes(first, pictures, options.data)
    return models, pictures


def _load(run: str, options: Namespace) -> Any:
    from lficam.device import resolve_device
    from lficam.models.factory import load

    return load(run, options.model).to(resolve_device(options.device))


def _explain_arguments(parser: ArgumentParser) -> None:
    _run_arguments(parser)
    parser.add_argument("paths", type=str, nargs="+", metavar="PATH", help="image files and folders")
    parser.add_argument("--out", type=str, required=True, metavar="DIR", help="a new or empty directory")
    parser.add_argument(
        "--class", dest="class_name", type=str, default=None, help="explain this class, not the predicted"
    )
    parser.add_argument(
        "--format", type=Literal["pictures", "parquet"], default="pictures", help="parquet: for very many; resumes"
    )
    parser.add_argument("--devices", type=int, default=1, help="processes, with --format parquet")


def explain(options: Namespace) -> dict[str, Any]:
    """Explain image files: a picture each (evidence, then attention) and explanations.jsonl."""
    from lficam.data.folders import printable
    from lficam.errors import DataError, RunError
    from lficam.predict import explain_images, find_images
    from lficam.progress import track
    from lficam.visualize import save_png

    if options.format == "parquet":
        return _explain_to_parquet(options)
    if options.devices != 1:
        raise InvalidInputError("devices: several share Parquet shards only; add --format parquet.")
    out = Path(options.out)
    try:
        portable.require_new(out)
    except portable.PortableError as error:
        raise RunError(str(error)) from error
    model = _load(options.run, options)
    paths = find_images(options.paths)
    rows, failed = [], []
    for number, result in enumerate(track(explain_images(model, paths, options.class_name), "explaining", len(paths))):
        if isinstance(result, DataError):
            failed.append(str(result))
            continue
        out.mkdir(parents=True, exist_ok=True)
        picture = portable.file_name(number, result.path)
        save_png(result.picture(), out / picture)
        rows.append({**result.to_dict(), "picture": picture})
        with (out / "explanations.jsonl").open("a") as lines:
            lines.write(json.dumps(rows[-1]) + "\n")
    for row in rows[:20]:
        print(f"{printable(row['path'])}  {row['label']}  {row['probability']:.1%}  {row['map']} peak {row['peak']}")
    print(f"{len(rows)} explained, in {out}")
    if failed:
        raise DataError(f"{len(failed)} of {len(paths)} files could not be explained: {' '.join(failed)}")
    return {"out": str(out), "explanations": rows}


def _explain_to_parquet(options: Namespace) -> dict[str, Any]:
    from lficam.batch import explain_to_parquet
    from lficam.models.factory import load
    from lficam.predict import find_images

    if options.class_name is not None:
        raise InvalidInputError("class: shards hold the predicted class; leave --class out, or take --format pictures.")
    model, paths = load(options.run, options.model), find_images(options.paths)
    found = explain_to_parquet(options.run, model, paths, options.out, options.device, options.devices)
    if not found:  # another process speaks
        return found
    broken = f"; {found['broken']} could not be read, their rows say why" if found["broken"] else ""
    print(f"{found['pictures']} pictures in {found['shards']} shards, in {options.out}{broken}")
    return found


def _compare_arguments(parser: ArgumentParser) -> None:
    _run_arguments(parser)
    parser.add_argument("--data", type=str, default=None, help="source; its test part is used")
    parser.add_argument("--images", type=str, nargs="+", default=[], metavar="PATH", help="image files and folders")
    parser.add_argument(
        "--pairs", type=bool, default=False, help="two pictures of --data side by side, each class asked"
    )
    parser.add_argument("--count", type=int, default=6, help="rows of the figure")
    parser.add_argument("--explainers", type=str, nargs="+", default=None, metavar="NAME", help="columns of the figure")
    parser.add_argument("--out", type=str, default=None, metavar="DIR", help="RUN/comparison/NAME by default")


def compare(options: Namespace) -> dict[str, Any]:
    """Show explainers side by side on the same pictures and classes, with the time of each."""
    from lficam import comparison as room
    from lficam.data.sources import load_source
    from lficam.evaluation import name_for_files
    from lficam.predict import find_images
    from lficam.tables import print_rows

    if bool(options.images) == bool(options.data):
        raise InvalidInputError("compare: expected either --images or --data.")
    if options.pairs and options.images:
        raise InvalidInputError("compare: --pairs takes the pictures of --data.")
    if options.count < 1:
        raise InvalidInputError(f"--count: expected at least 1, got {options.count}.")
    model = _load(options.run, options)
    preprocessing = model.config.required_preprocessing()
    if options.images:
        name, questions = "images", room.questions_of_files(find_images(options.images)[: options.count], preprocessing)
    else:
        pictures = load_source(options.data, preprocessing.size, with_train=False).test
        ask = room.questions_of_pairs if options.pairs else room.questions_of_set
        name = name_for_files(options.data) + ("-pairs" if options.pairs else "")
        questions = ask(pictures, preprocessing, options.count)
    out = Path(options.out) if options.out else Path(options.run) / "comparison" / name
    result = room.compare(model, questions, out, options.explainers or room.DEFAULT_EXPLAINERS)
    print_rows("one picture at a time", result.explainers)
    print(f"figure: {out / room.FIGURE_FILE}")
    return {"out": str(out), **result.to_dict()}


def _stability_arguments(parser: ArgumentParser) -> None:
    _runs_arguments(parser)
    parser.add_argument("--data", type=str, required=True, help="source; its test part is used")
    parser.add_argument("--explainer", type=str, default="attention", help="whose maps")
    parser.add_argument("--limit", type=int, default=1000, help="pictures at most, drawn from the whole set")
    parser.add_argument("--minimum", type=float, default=None, help="exit with 1 if the corrected IoU is below")
    parser.add_argument("--figure", type=str, default=None, metavar="FILE", help="draw the matrix of the pairs")


def stability(options: Namespace) -> dict[str, Any]:
    """Hold the maps of several runs against each other and against chance; may gate a build."""
    from lficam.files import read_record
    from lficam.stability import measure_stability, require_figure, save_stability_figure
    from lficam.tables import print_rows

    if options.figure:
        require_figure(Path(options.figure))
    models, pictures = _load_comparable(options)
    validation = {run: read_record(Path(run) / "metrics.json").get("val_accuracy") for run in models}
    found = measure_stability(models, pictures, options.data, options.explainer, options.limit, validation)
    rows = [{name: value for name, value in row.items() if name != "without"} for row in found.measures]
    print_rows(f"{options.explainer}, {found.facts['pictures']} pictures, all pairs of runs", rows)
    numbers = range(1, len(models) + 1)
    of_runs = zip(numbers, models, found.matrix, strict=True)
    print_rows(
        "IoU of the pairs",
        [{"run": f"{number}: {run}", **dict(zip(map(str, numbers), row, strict=True))} for number, run, row in of_runs],
    )
    if found.paper:
        iou = "n/a" if found.paper["iou"] is None else f"{found.paper['iou']:.3f}"
        print(f"the paper's protocol: IoU {iou} with the baseline {found.paper['baseline']}")
    else:
        print("the paper's protocol: none, because a run without a validation part cannot be chosen")
    if options.figure:
        save_stability_figure(found, Path(options.figure))
    corrected = found.measures[0]["corrected"]
    if options.minimum is not None and (corrected is None or corrected < options.minimum):
        sentence = f"stability: corrected IoU {corrected} is below --minimum {options.minimum}."
        raise GateError(sentence, found.to_dict())
    return found.to_dict()


def _audit_arguments(parser: ArgumentParser) -> None:
    _runs_arguments(parser)
    parser.add_argument("--data", type=str, required=True, help="source; its test part is used")
    _explainers_arguments(parser)
    parser.add_argument("--limit", type=int, default=500, help="pictures at most, drawn from the whole set")
    parser.add_argument("--out", type=str, default=None, metavar="FILE", help="the page; audit.html in the first run")


def audit(options: Namespace) -> dict[str, Any]:
    """Judge maps against maps that cost nothing: a page, a verdict a line; exit code 1 if one fails or all are open."""
    from lficam.audit import audit as judge
    from lficam.report import require_page, write_audit

    page = Path(options.out) if options.out else Path(options.runs[0]) / "audit.html"
    require_page(page)
    models, pictures = _load_comparable(options)
    found = judge(models, pictures, options.data, options.limit, options.explainers, options.precision)
    for verdict in found.verdicts:
        print(f"{verdict.verdict:<16} {verdict.explainer} {verdict.claim}: {verdict.reason}")
    for note in found.notes:
        print(note)
    print(f"audit: {write_audit(found.to_dict(), page)}")
    if not options.out:
        write_json(page.with_suffix(".json"), found.to_dict())
    if found.failed:
        names = "; ".join(f"{verdict.explainer} {verdict.claim}" for verdict in found.failed)
        sentence = f"audit: {len(found.failed)} of {len(found.verdicts)} claims fail: {names}."
        raise GateError(sentence, found.to_dict())
    if all(verdict.verdict == "unknown" for verdict in found.verdicts):
        raise GateError("audit: no claim could be decided; give it more pictures, or more runs.", found.to_dict())
    return found.to_dict()


def _report_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=str, help="a run directory")
    parser.add_argument("--out", type=str, default=None, metavar="FILE", help="the page; RUN/report.html by default")


def report(options: Namespace) -> dict[str, Any]:
    """Write one self-contained HTML page from a run's records."""
    from lficam.report import write_report

    page = write_report(options.run, options.out)
    print(f"report: {page}")
    return {"report": str(page)}


def _scan_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=str, metavar="FOLDER", help="of pictures, as folder:FOLDER names it elsewhere")
    parser.add_argument("--quarantine", type=bool, default=False, help="list broken files in FOLDER/quarantine.txt")


def scan(options: Namespace) -> dict[str, Any]:
    """Look through a folder of pictures before training: broken, empty and doubled files, copies in the test part."""
    from lficam.data.scan import QUARANTINE_FILE, scan_folder, write_quarantine

    found = scan_folder(Path(options.folder))
    print(found.text())
    if options.quarantine and found.broken:
        write_quarantine(found)
        print(f"{Path(options.folder) / QUARANTINE_FILE}: {len(found.broken)} files, left out from now on")
    if found.leaks or (found.broken and not options.quarantine):
        sentence = "scan: the folder has faults; mend them, or pass --quarantine true to leave broken files out."
        raise GateError(sentence, found.to_dict())
    return found.to_dict()


def _sweep_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("file", type=str, metavar="FILE", help="a sweep's YAML file; records go into its folder")
    parser.add_argument("--runs", type=str, required=True, metavar="DIR", help="where the runs go, or stand already")
    parser.add_argument("--data", type=str, default=None, help="source, in place of the recipe's")
    parser.add_argument("--only-tables", type=bool, default=False, help="tables and plots of the records, no panels")


def sweep(options: Namespace) -> dict[str, Any]:
    """Train, measure and compare all variants and runs of a file; goes on where it stopped, from its records alone."""
    from lficam.sweep import draw_panels, read_sweep, records_lock, run_sweep, write_summary

    plan = read_sweep(options.file, options.data)
    if options.only_tables:
        print(write_summary(plan))
    elif left := run_sweep(plan, options.runs):
        print(f"Without records: {', '.join(left)}. Other processes are at them; if none is, start the command again.")
    else:
        with records_lock(plan, options.runs):
            print(write_summary(plan))
            draw_panels(plan)
    return {"records": str(plan.records_file)}


def _demo_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--out", type=str, default="demo", metavar="RUN", help="the run directory")


def demo(options: Namespace) -> dict[str, Any]:
    """Train on digits in photographs in minutes, without a download, and show what the maps are worth."""
    from lficam.evaluation import evaluate_run, evaluation_directory
    from lficam.report import write_report
    from lficam.tables import print_evaluation
    from lficam.training import fit
    from lficam.visualize import save_gallery_figure

    recipe = recipe_from_values(recipe_values("demo"))
    print(f"training {recipe.model.backbone} with LFI-CAM on {recipe.data}, {recipe.epochs} epochs", flush=True)
    run = fit(recipe, options.out)
    result: dict[str, Any] = {"run": str(run.directory), "training": run.metrics}
    for source in (recipe.data, _DEMO_TEST):
        result[source] = evaluate_run(run.directory, run.model, source).to_dict()
        print_evaluation(result[source])
    two_digits = evaluation_directory(run.directory, _DEMO_TEST)
    figure = run.directory / "two-digits.png"
    save_gallery_figure(two_digits, [row for row in result[_DEMO_TEST]["gallery"] if row["right"]][:4], figure)
    page = write_report(run.directory)
    print(f"trained in {run.metrics['training_seconds']:.0f} s; open {page}")
    return result


def _export_arguments(parser: ArgumentParser) -> None:
    _run_arguments(parser)
    parser.add_argument("--out", type=str, required=True, metavar="FILE", help="MODEL.onnx, or MODEL.pt2")
    parser.add_argument("--format", type=Literal["onnx", "torch-export"], default="onnx", help="of the graph")
    parser.add_argument("--top", type=int, default=5, help="of how many likeliest classes evidence is given")
    parser.add_argument("--pixels", type=bool, default=False, help="take uint8 pixels and normalise them inside")
    parser.add_argument("--upsample", type=bool, default=False, help="maps at the size of the picture")
    parser.add_argument("--dynamic-size", type=bool, default=False, help="pictures of any height and width")


def export(options: Namespace) -> dict[str, Any]:
    """Write one graph that explains itself: logits, evidence and attention, checked against PyTorch."""
    from lficam.export import export_model

    model = _load(options.run, options)
    wanted = (options.top, options.pixels, options.upsample, options.dynamic_size)
    facts = export_model(model, options.out, options.format, *wanted)
    print(f"{options.out}: differs from PyTorch by at most {facts['largest_difference']:.1e}")
    return {name: value for name, value in facts.items() if name != "heat_colours"}


def _serve_arguments(parser: ArgumentParser) -> None:
    _run_arguments(parser)
    parser.add_argument("--host", type=str, default="127.0.0.1", help="this machine alone unless another is named")
    parser.add_argument("--port", type=int, default=7860, help="of the page and the endpoint")
    parser.add_argument("--seconds", type=float, default=30.0, help="that a request may take")
    parser.add_argument("--waiting", type=int, default=32, help="requests that may wait; more are told 503")
    parser.add_argument("--megabytes", type=float, default=10.0, help="of a request")
    parser.add_argument("--examples", type=str, nargs="*", default=[], metavar="PATH", help="pictures to try")


def serve(options: Namespace) -> dict[str, Any]:
    """Serve a run on this machine: a page for people, POST /api/explain for programs."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    folder = tempfile.TemporaryDirectory(prefix="lficam-serve-")  # of what people upload, gone with the server
    os.environ["GRADIO_TEMP_DIR"] = folder.name
    try:
        from lficam.serving.api import Limits
        from lficam.serving.server import create_server, require_free_port, run_server
    except ImportError as error:
        raise InvalidInputError(f"serve: {error}; pip install 'lficam[serve]'.") from error
    from lficam.predict import find_images

    require_free_port(options.host, options.port)
    limits = Limits(int(options.megabytes * 2**20), options.seconds, options.waiting)
    examples = [str(path) for path in find_images(options.examples)] if options.examples else []
    app = create_server(_load(options.run, options), limits, examples)
    print(f"lficam: http://{options.host}:{options.port} (page), /api/explain (programs); Ctrl-C ends it", flush=True)
    with folder:
        run_server(app, options.host, options.port, options.seconds)
    return {}


def _publish_arguments(parser: ArgumentParser) -> None:
    _run_arguments(parser)
    parser.add_argument("repository", type=str, metavar="USER/NAME", help="on Hugging Face's hub; made if need be")
    parser.add_argument("--private", type=bool, default=False, help="for its owner only")


def publish(options: Namespace) -> dict[str, Any]:
    """Upload a run's model to Hugging Face's hub, with a card of its own figures, its audit and a picture."""
    from lficam.report.card import publish as upload

    address = upload(options.run, _load(options.run, options), options.repository, private=options.private)
    print(address)
    return {"commit": address}


def _params_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "recipes",
        type=str,
        nargs="*",
        metavar="RECIPE",
        help="names or files; the rows of the paper's Table 3 by default",
    )
    parser.add_argument("--classes", type=int, default=1000, help="number of classes of every model")


def params(options: Namespace) -> dict[str, Any]:
    """Print the sizes of models beside those of the paper's Table 3, and the share that the method adds."""
    from lficam.sizes import model_sizes
    from lficam.tables import print_rows

    rows = model_sizes(options.recipes, options.classes)
    print_rows("parameters in millions", rows)
    return {"sizes": rows}


_VERBS: dict[str, tuple[Callable[[ArgumentParser], None], Callable[[Namespace], dict[str, Any]]]] = {
    "train": (_train_arguments, train),
    "evaluate": (_evaluate_arguments, evaluate),
    "explain": (_explain_arguments, explain),
    "compare": (_compare_arguments, compare),
    "stability": (_stability_arguments, stability),
    "audit": (_audit_arguments, audit),
    "scan": (_scan_arguments, scan),
    "sweep": (_sweep_arguments, sweep),
    "report": (_report_arguments, report),
    "serve": (_serve_arguments, serve),
    "publish": (_publish_arguments, publish),
    "export": (_export_arguments, export),
    "params": (_params_arguments, params),
    "demo": (_demo_arguments, demo),
}


if __name__ == "__main__":
    sys.exit(main())
