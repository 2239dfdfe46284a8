"""The errors that lficam raises on purpose. Each says: argument, what was expected, what came, what to do."""

import difflib
from collections.abc import Iterable
from typing import Any


class LficamError(Exception):
    """The root of all errors of lficam; the command line prints it as one sentence and exits with 2."""


class InvalidInputError(LficamError, ValueError):
    """An argument, an image or a setting that cannot be worked with."""


class UnknownNameError(InvalidInputError):
    """A name that nothing is registered under; the message lists the known ones, the nearest first."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        nearest = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        super().__init__(f"unknown {kind} {name!r}.{hint} Known: {', '.join(names)}.")


class DataError(LficamError):
    """A data source that is missing, empty, unreadable or does not fit the model."""


class RunError(LficamError):
    """A run directory that is missing, damaged, or in the way."""


class LficamWarning(UserWarning):
    """What a user should know and nothing stops for; the command line prints it as one sentence."""


class GateError(LficamError):
    """A measure below what was asked for: nothing is wrong with the input, and a build should stop. Exit code 1.

    Attributes:
        result: what was measured, fit for JSON.
    """

    def __init__(self, message: str, result: dict[str, Any]) -> None:
        super().__init__(message)
        self.result = result
