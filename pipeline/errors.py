"""The errors a user can meet: each names what failed, where, the value seen and what to do next.

`exit_code` is what the command line returns: 2 when the user can mend it in the spec, the command or the
data; 1 when the run itself failed. Anything that is not an `AtelierError` is a defect of ours.
"""

from __future__ import annotations


class AtelierError(Exception):
    """A failure with a message a practitioner can act on without reading a traceback."""

    exit_code = 1


class SpecError(AtelierError):
    """The spec, or an override of it, is wrong: carries every mistake at once."""

    exit_code = 2


class CorpusError(AtelierError):
    """The corpus is missing, empty, of another modality, or too much of it cannot be decoded."""

    exit_code = 2


class PreparedDataError(AtelierError):
    """A prepared set is incomplete or differs from its manifest."""


class CodecError(AtelierError):
    """A codec cannot be fitted on this corpus, or does not fit the network that the spec asks for."""

    exit_code = 2


class StorageError(AtelierError):
    """The storage cannot be reached, read or written (a full disk, a missing bucket, permissions)."""


class CheckpointError(AtelierError):
    """A checkpoint is damaged, or belongs to another spec."""


class ComparisonError(AtelierError):
    """Two models, or two scores, cannot be compared: other protocols, codecs or layouts."""

    exit_code = 2


class TransferError(AtelierError):
    """The weights that a training should begin with do not fit its model, or were changed."""

    exit_code = 2


class NonFiniteLossError(AtelierError):
    """A loss stopped being finite: carries the phase, the step and the last good checkpoint."""


class OutOfMemoryError(AtelierError):
    """A step does not fit into the memory of its GPU or process: carries the number of examples that does."""


class TrainingFailedError(AtelierError):
    """Training ended without a model for a reason that no more specific error covers."""


class RunBusyError(AtelierError):
    """Another process trains this run."""

    exit_code = 2


class TrackingError(AtelierError):
    """MLflow does not answer, or refuses what was sent."""


class RegistryError(AtelierError):
    """A model, a version or an alias is not in the registry, or what is there cannot be loaded."""

    exit_code = 2


class ChampionMovedError(AtelierError):
    """The champion is no longer the version that a challenger was compared with."""


class LedgerError(AtelierError):
    """A ledger was edited, cut short, or is being written by another process."""

    exit_code = 2


class ScheduleError(AtelierError):
    """A schedule cannot be kept: its state, or what it starts."""


class SubmissionError(AtelierError):
    """A job cannot be sent as asked: its package is too large, a secret would go along, a variable is not set."""

    exit_code = 2


class ClusterError(AtelierError):
    """A Ray cluster does not answer, refuses the token, does not know the job, or lost it."""
