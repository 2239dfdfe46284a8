"""What is wrong with a folder of pictures, before hours are spent on it."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lficam.data.annotations import ANNOTATIONS_FILE
from lficam.data.folders import QUARANTINE_FILE, TABLES, part_folders, printable, quarantined, table_rows
from lficam.data.images import read_image
from lficam.errors import DataError
from lficam.files import write_whole
from lficam.portable import is_image_name
from lficam.progress import track

_SHOWN = 5
_BEGINNING = 2**16


@dataclass
class Scan:
    """What `scan_folder` found; files as `lficam.data.folders.printable` names, relative to the folder.

    Attributes:
        root: the folder.
        classes: by part ("" where there are no parts) and class, the number of readable pictures.
        broken: file and reason: what cannot be read, with links that lead nowhere.
        ignored: files whose names are not those of pictures, and hidden ones.
        quarantined: files that ``quarantine.txt`` leaves out already.
        leaks: pairs of a training and a test file of the same content.
        doubled: groups of files of the same content in one part, with more than one class: at most one is right.
        repeated: groups of files of the same content in one class of one part.
    """

    root: Path
    classes: dict[str, dict[str, int]] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    quarantined: list[str] = field(default_factory=list)
    leaks: list[tuple[str, str]] = field(default_factory=list)
    doubled: list[list[str]] = field(default_factory=list)
    repeated: list[list[str]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return {**asdict(self), "root": printable(self.root)}

    def text(self) -> str:
        """For people: the classes of each part, then a heading and a few names of each kind of finding."""
        lines = []
        for part, classes in self.classes.items():
            counts = ", ".join(f"{name} {count}" for name, count in classes.items())
            lines.append(f"{part or 'pictures'}: {sum(classes.values())} ({counts})")
        findings: dict[str, Sequence[str]] = {
            "broken": [f"{name}: {reason}" for name, reason in self.broken.items()],
            "both in training and in the test": [f"{one} and {other}" for one, other in self.leaks],
            "one content, several classes": [", ".join(group) for group in self.doubled],
            "one content, several times in a class": [", ".join(group) for group in self.repeated],
            f"left out by {QUARANTINE_FILE}": self.quarantined,
            "no pictures by their names, ignored": self.ignored,
        }
        for kind, names in findings.items():
            if names:
                lines.append(f"{kind}: {len(names)}")
                lines += [f"  {name}" for name in names[:_SHOWN]]
                lines += [f"  and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
        return "\n".join(lines)


def scan_folder(root: Path) -> Scan:
    """Read every file of a folder once, and tell what training on it would meet.

    Links to folders inside a class are not followed, so that a loop of links has no length.

    Raises:
        DataError: no such folder, no classes in it, or a broken table.

    >>> import tempfile
    >>> from PIL import Image
    >>> root = Path(tempfile.mkdtemp())
    >>> (root / "cat").mkdir()
    >>> Image.new("RGB", (4, 4)).save(root / "cat" / "a.png")
    >>> (root / "cat" / "b.png").touch()
    >>> print(scan_folder(root).text().replace(str(root), "ROOT"))
    pictures: 1 (cat 1)
    broken: 1
      cat/b.png: not a picture in one of the formats BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP.
    """
    if not root.is_dir():
        raise DataError(f"data: expected a folder of images, got {root}, which is no folder.")
    scan, left_out = Scan(root), quarantined(root)
    files: dict[tuple[str, str], list[Path]] = {}
    for part, folder in (part_folders(root) or {"": root}).items():
        rows = table_rows(folder)
        if rows is not None:
            for path, kind in rows:
                members = files.setdefault((part, kind), [])
                if _name(scan, path) in left_out:
                    scan.quarantined.append(_name(scan, path))
                else:
                    members.append(path)
            continue
        for inner in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
            files[part, inner.name] = _pictures(scan, inner, left_out)
        scan.ignored += [_name(scan, path) for path in sorted(folder.iterdir()) if _is_stray(path)]
    if not files:
        raise DataError(f"data: no class folders in {root}, nor labels in a metadata.csv; see lficam train --help.")
    paths = [path for members in files.values() for path in members]
    with ThreadPoolExecutor() as pool:
        reasons = list(track(pool.map(_fault, paths), f"reading {root.name}", len(paths)))
    broken = {path: reason for path, reason in zip(paths, reasons, strict=True) if reason}
    scan.broken |= {_name(scan, path): printable(reason) for path, reason in broken.items()}
    for (part, kind), members in files.items():
        files[part, kind] = [path for path in members if path not in broken]
        scan.classes.setdefault(part, {})[printable(kind)] = len(files[part, kind])
    _compare(scan, files)
    return scan


def _name(scan: Scan, path: Path) -> str:
    return printable(path.relative_to(scan.root))


def _is_stray(path: Path) -> bool:
    """A file beside the class folders that is none of those that say something about them."""
    return path.is_file() and path.name not in (*TABLES, ANNOTATIONS_FILE, QUARANTINE_FILE)


def _pictures(scan: Scan, folder: Path, left_out: set[str]) -> list[Path]:
    """The files to read of a class; what is none of them goes into the scan."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if not path.is_dir()):
        if not is_image_name(path):
            scan.ignored.append(_name(scan, path))
        elif _name(scan, path) in left_out:
            scan.quarantined.append(_name(scan, path))
        elif not path.is_file():
            scan.broken[_name(scan, path)] = "a link that leads nowhere, or no file."
        else:
            found.append(path)
    return found


def _fault(path: Path) -> str:
    """Why a picture cannot be read, without its path; empty where it can."""
    try:
        read_image(path)
    except DataError as error:
        return str(error).removeprefix(f"{path}: ")
    return ""


def _compare(scan: Scan, files: dict[tuple[str, str], list[Path]]) -> None:
    parts: dict[str, dict[Path, str]] = defaultdict(dict)
    for (part, kind), members in files.items():
        parts[part] |= dict.fromkeys(members, kind)
    for kinds in parts.values():
        for group in _same(kinds):
            several = len({kinds[path] for path in group}) > 1
            (scan.doubled if several else scan.repeated).append([_name(scan, path) for path in group])
    test = parts.get("test") or parts.get("val", {})
    scan.leaks = [(_name(scan, one), _name(scan, other)) for one, other in copies(parts["train"], test)]


def _same(paths: Iterable[Path]) -> list[list[Path]]:
    """Groups of two files and more with the same content; a file is read as far as its size and beginning ask for."""
    groups = [list(paths)]
    for key in (_size, _beginning, _whole):
        groups = [alike for group in groups for alike in _by(key, group) if len(alike) > 1]
    return groups


def _by(key: Callable[[Path], Any], paths: Iterable[Path]) -> Iterable[list[Path]]:
    found = defaultdict(list)
    for path in paths:
        found[key(path)].append(path)
    return found.values()


def copies(train: Iterable[Path], test: Iterable[Path]) -> list[tuple[Path, Path]]:
    """Each test file with the first training file of the same content; links that lead nowhere are none."""
    kept, tested = ({path: _size(path) for path in paths if path.is_file()} for paths in (train, test))
    sizes = set(kept.values()) & set(tested.values())
    known: dict[Path, Path] = {}
    for group in _same(path for path, size in {**kept, **tested}.items() if size in sizes):
        first = next((path for path in group if path in kept), None)
        known |= dict.fromkeys(group, first) if first is not None else {}
    return [(known[path], path) for path in tested if path in known]


def _size(path: Path) -> int:
    return path.stat().st_size


def _beginning(path: Path) -> bytes:
    """Of the first bytes, which tell nearly all files apart without reading them whole."""
    with path.open("rb") as file:
        return hashlib.blake2b(file.read(_BEGINNING)).digest()


def _whole(path: Path) -> bytes:
    if _size(path) <= _BEGINNING:  # which was all of it
        return b""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()


def write_quarantine(scan: Scan) -> None:
    """Leave the broken files out from now on: add them to ``quarantine.txt`` in the folder."""
    names = sorted({*quarantined(scan.root), *scan.broken})
    write_whole(scan.root / QUARANTINE_FILE, "\n".join(names) + "\n")
