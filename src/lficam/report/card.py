"""A run on Hugging Face's hub: the model, and a card with the run's own figures."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lficam.data.sources import shown_source
from lficam.errors import RunError
from lficam.files import read_record
from lficam.models import hub
from lficam.models.plain import PlainClassifier

AUDIT_FILE = "audit.json"
SAMPLE = "sample.png"


def publish(run: str | Path, model: PlainClassifier, repo_id: str, **options: Any) -> str:
    """Upload a run's model with a card of what was measured of it: evaluations, the audit, a sample picture.

    Args:
        run: the run directory.
        model: loaded from it.
        repo_id: ``user/name``.
        options: of `huggingface_hub.ModelHubMixin.push_to_hub`, such as ``private``.

    Returns:
        The address of the commit.

    Raises:
        RunError: no finished run, or a hub that cannot be reached or refuses.
    """
    return model.push_to_hub(repo_id, model_card_kwargs=card_files(Path(run), model, repo_id), **options)


def card_files(run: Path, model: PlainClassifier, repo_id: str) -> dict[str, str | bytes]:
    """``README.md`` and the picture that it shows, if the run was evaluated."""
    evaluations = [(path, read_record(path)) for path in sorted(run.glob("evaluation/*/evaluation.json"))]
    told = [*_training(read_record(run / "metrics.json"), model), *_measured(evaluations), *_audited(run / AUDIT_FILE)]
    files: dict[str, str | bytes] = {}
    sample = next((path.parent / row["file"] for path, record in evaluations for row in record["gallery"]), None)
    if sample is not None and sample.is_file():
        files[SAMPLE] = sample.read_bytes()
        told = [f"![A test picture and its maps]({SAMPLE})", "", *told]
    return {"README.md": hub.card(model.config.to_dict(), repo_id, "\n" + "\n".join(told) + "\n"), **files}


def _training(metrics: dict[str, Any], model: PlainClassifier) -> Iterator[str]:
    facts = model.config.training
    try:
        yield f"Trained for {facts['epochs']} epochs with seed {facts['seed']}; weights: {metrics['chosen_by']}."
    except KeyError as error:
        raise RunError(f"run: its metrics.json or config.json has no {error}; it is no finished run.") from error


def _measured(evaluations: list[tuple[Path, dict[str, Any]]]) -> Iterator[str]:
    if not evaluations:
        yield "Not evaluated yet."
        return
    yield from ("", "| test set | pictures | top-1 error (95 % interval) |", "|---|---|---|")
    for _, record in evaluations:
        error = record["classification"]["top1_error"]
        interval = f"{error['value']:.2%} ({error['low']:.2%} to {error['high']:.2%})"
        yield f"| {shown_source(record['facts']['source'])} | {record['facts']['pictures']:,} | {interval} |"


def _audited(path: Path) -> Iterator[str]:
    if not path.is_file():
        yield from ("", "Its maps were not audited: nothing says that they are worth anything.")
        return
    yield from ("", "| map | claim | verdict |", "|---|---|---|")
    for verdict in read_record(path)["verdicts"]:
        yield f"| {verdict['explainer']} | {verdict['claim']} | {verdict['verdict']}: {verdict['reason']} |"
