"""The exception tree: every error a person may meet, with what came, what was expected and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class BackendError(Exception):
    """Base of all errors this package raises on purpose; its message is a sentence for a person."""


class SettingsError(BackendError):
    """One or more settings are missing or malformed; the message lists all of them."""


class UsageError(BackendError):
    """A command was given options or arguments that it cannot be run with."""


class ProjectNotReadyError(BackendError):
    """What was waited for did not come in time."""


class BadRequestError(BackendError):
    """A request to the web service cannot be understood; the message says what was expected."""


class LabelingConfigError(BackendError):
    """The labeling config is not one this service can learn from."""


class LabelStudioError(BackendError):
    """Label Studio answered with an error."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class LabelStudioUnreachableError(LabelStudioError):
    """Label Studio did not answer at all."""


class LabelStudioAuthError(LabelStudioError):
    """Label Studio refused the token."""


class ProjectNotFoundError(LabelStudioError):
    """The project does not exist in Label Studio, or the token may not see it."""


class TaskNotFoundError(BackendError):
    """The project has no such task in Label Studio."""


class RedisUnavailableError(BackendError):
    """Redis did not answer."""


class StorageError(BackendError):
    """The disk or object store that holds the data folder did not answer, or refused."""


class LockLostError(BackendError):
    """The project's lock expired or was taken while a job still worked under it."""


class ProjectBusyError(LockLostError):
    """Another worker held the project's lock for as long as this one could wait."""


class ImageError(BackendError):
    """One task's image cannot be used.

    `transient` tells a failure that may pass (a timeout, a server error) from one that will not (a broken file).
    """

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class ImageSourceError(BackendError):
    """The folder or bucket that images are to come from is not there, not open to us, or holds none."""


class FileFormatError(BackendError):
    """A file of labels or predictions is not in the format it should be in; nothing of it is used."""


class UnmatchedError(BackendError):
    """Images that a file refers to fit no name, or several.

    matched: those that fit one, reference → name.
    unmatched: the others, reference → the names it may mean, none or several.
    """

    def __init__(self, message: str, matched: Mapping[str, str], unmatched: Mapping[str, Sequence[str]]) -> None:
        super().__init__(message)
        self.matched = matched
        self.unmatched = unmatched


class BackboneError(BackendError):
    """The backbone or its weights file cannot be used."""


class FinetuningError(BackendError):
    """The backbone cannot be fine-tuned on these labels, and trying again would change nothing."""


class SelectionError(BackendError):
    """A selection was asked for with impossible input (NaN embeddings, a budget above the pool, …)."""


class TagError(BackendError):
    """A tag does not exist, or exists already, or its name or file cannot be used."""


class VersionNotFoundError(BackendError):
    """No such model version is kept for this project."""


class VersionUnusableError(BackendError):
    """The model version is kept, but cannot serve the project as it is now."""


class FitInterruptedError(BackendError):
    """A fit was given up, for something more urgent came."""
