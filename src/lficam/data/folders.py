"""A folder of pictures as a labelled set: folders of classes, or a table of file names; with boxes where known."""

import csv
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lficam.data.annotations import ANNOTATIONS_FILE, Objects, read_annotations
from lficam.data.pictures import Pictures, read_whole_files
from lficam.errors import DataError, LficamWarning
from lficam.portable import is_image_name

PARTS = {"train": ("train",), "val": ("val", "validation", "valid", "dev"), "test": ("test",)}
QUARANTINE_FILE = "quarantine.txt"
TABLES = ("metadata.csv", "metadata.jsonl")


@dataclass
class Listing:
    """The files of a folder and their labels, before anything is decoded.

    Attributes:
        root: what the pictures' names are relative to.
        paths: of N files.
        labels: (N,) int64.
        class_names: C names.
    """

    root: Path
    paths: list[Path]
    labels: Tensor
    class_names: list[str]

    def read(self, indices: Tensor | None = None, with_objects: bool = False) -> Pictures:
        """Decode the pictures, or some of them; for a test with what an ``annotations.json`` beside them tells of.

        Files that cannot be read are left out, and told.

        Raises:
            DataError: a class of which nothing can be read.
        """
        chosen = list(range(len(self.paths))) if indices is None else indices.tolist()
        images, broken = read_whole_files([self.paths[i] for i in chosen], self.root.name)
        self._tell(broken)
        whole = [place for position, place in enumerate(chosen) if position not in broken]
        paths, labels = [self.paths[i] for i in whole], self.labels[whole]
        lost = sorted(set(self.labels[chosen].tolist()) - set(labels.tolist()))
        if lost:
            raise DataError(f"data: no picture of class {self.class_names[lost[0]]} can be read; see lficam scan.")
        objects = self._objects(paths, labels) if with_objects else None
        return Pictures(
            images,
            labels,
            self.class_names,
            [printable(path.relative_to(self.root)) for path in paths],
            broken=[printable(str(error)) for error in broken.values()],
            boxes=objects.boxes if objects else None,
            masks=objects.masks if objects else None,
            object_labels=labels.unsqueeze(1) if objects else None,
        )

    def _tell(self, broken: Mapping[int, DataError]) -> None:
        if broken:
            first, more = printable(str(next(iter(broken.values())))), len(broken) - 1
            others = f" and {more} more" if more else ""
            warnings.warn(
                f"data: left out {first}{others} lficam scan lists what is wrong with a folder.",
                LficamWarning,
                stacklevel=3,
            )

    def _objects(self, paths: Sequence[Path], labels: Tensor) -> Objects | None:
        """Of the nearest ``annotations.json``: in the folder of the part, else at the root."""
        parts = [folder for folder in part_folders(self.root).values() if paths[0].is_relative_to(folder)]
        for folder in (*parts, self.root):
            file = folder / ANNOTATIONS_FILE
            if file.is_file():
                relative = [path.relative_to(folder).as_posix() for path in paths]
                return read_annotations(file, relative, [self.class_names[label] for label in labels.tolist()])
        return None


def printable(name: Path | str) -> str:
    r"""A file's name on one line that any terminal and file can hold.

    >>> print(printable("two\nlines"))
    two\nlines
    """
    text = str(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def quarantined(root: Path) -> set[str]:
    """The `printable` names, relative to the root, that its ``quarantine.txt`` has, one a line: they are no data."""
    file = root / QUARANTINE_FILE
    try:
        return set(file.read_text(encoding="utf-8").splitlines()) if file.is_file() else set()
    except UnicodeDecodeError as error:
        raise DataError(f"data: {file} is not in UTF-8 ({error.reason}); lficam scan writes it anew.") from error


def part_folders(root: Path) -> dict[str, Path]:
    """The folders named after parts: ``train``, ``val`` (also ``validation``, ``valid``, ``dev``), ``test``."""
    found = {part: [root / name for name in names if (root / name).is_dir()] for part, names in PARTS.items()}
    return {part: folders[0] for part, folders in found.items() if folders}


def list_folder(root: Path, folder: Path, class_names: Sequence[str] | None = None) -> Listing:
    """The image files of a folder, sorted, by its ``metadata.csv`` or ``metadata.jsonl``, else by its class folders.

    Args:
        root: what names are relative to.
        folder: at or below it.
        class_names: of the training part; None: those found here.

    Raises:
        DataError: fewer than two classes, an empty one, one that ``class_names`` does not have, or a broken table.
    """
    rows = table_rows(folder)
    by_class = _by_class_folder(folder) if rows is None else _by_table(rows)
    names = list(class_names) if class_names else sorted(by_class)
    if len(names) < 2:
        found = f"one ({names[0]})" if names else "none"
        raise DataError(
            f"data: expected at least two class folders in {folder}, or labels in a metadata.csv, got {found}."
        )
    strangers = sorted(set(by_class) - set(names))
    if strangers:
        raise DataError(f"data: {folder} has classes that the training folder does not: {', '.join(strangers)}.")
    paths: list[Path] = []
    labels: list[int] = []
    left_out = quarantined(root)
    for label, name in enumerate(names):
        files = [file for file in by_class.get(name, []) if printable(file.relative_to(root)) not in left_out]
        if not files:
            raise DataError(f"data: no image files of class {name} in {folder}; add some, or remove it everywhere.")
        paths += files
        labels += [label] * len(files)
    return Listing(root, paths, torch.tensor(labels), names)


def _by_class_folder(folder: Path) -> dict[str, list[Path]]:
    return {
        path.name: sorted(file for file in path.rglob("*") if file.is_file() and is_image_name(file))
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith(".")
    }


def _by_table(rows: Sequence[tuple[Path, str]]) -> dict[str, list[Path]]:
    by_class: dict[str, list[Path]] = {}
    for path, label in sorted(rows):
        by_class.setdefault(label, []).append(path)
    return by_class


def table_rows(folder: Path) -> list[tuple[Path, str]] | None:
    """(file, class) of a folder's table; None where it has none, or one without labels."""
    table = next((folder / name for name in TABLES if (folder / name).is_file()), None)
    return None if table is None else _labelled_rows(table)


def _labelled_rows(table: Path) -> list[tuple[Path, str]] | None:
    """(file, label) of Hugging Face's table of an image folder; None where it has no labels."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows: list[dict[str, Any]] = (
                list(csv.DictReader(file))
                if table.suffix == ".csv"
                else [json.loads(line) for line in file if line.strip()]
            )
    except (ValueError, csv.Error) as error:
        raise DataError(f"data: {table} is no readable table ({error}).") from error
    if not rows or not all(isinstance(row, dict) and isinstance(row.get("file_name"), str) for row in rows):
        raise DataError(f"data: {table} needs a column file_name, and label where folders do not tell the class.")
    if any("label" not in row for row in rows):
        return None
    unlabelled = [row["file_name"] for row in rows if row["label"] in (None, "")]
    outside = [row["file_name"] for row in rows if not (table.parent / row["file_name"]).is_relative_to(table.parent)]
    for names, fault in ((unlabelled, "without a label"), (outside, "outside its folder")):
        if names:
            raise DataError(f"data: {table} names {names[0]} {fault} ({len(names)} such rows).")
    labelled = [(table.parent / row["file_name"], str(row["label"])) for row in rows]
    missing = [path for path, _ in labelled if not path.is_file()]
    if missing:
        raise DataError(f"data: {table} names {missing[0].name}, which is not there ({len(missing)} missing).")
    return labelled
