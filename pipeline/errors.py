"""Every error a user can meet, in one file.

    ZooError                      1   something unexpected
    ├── InputError                2   a value, a file or a folder that cannot be used
    │   ├── UnknownIdError            an id that no entry has
    │   ├── DataError                 data altered, cut off or not fit for the model
    │   │   └── DataUnavailableError  data neither at hand nor to be fetched
    │   ├── CheckpointError           a checkpoint that is corrupt or of another run
    │   ├── FolderError               a file or folder that is missing or cannot be read, written or locked
    │   └── SignatureError            another input, output or label list under a released name
    ├── RefusedError              3   the candidate was judged and refused
    │   ├── GateError                 a gate failed
    │   ├── VerdictError              the server would not load it or answered otherwise
    │   └── NonFiniteLossError        the loss became NaN or infinite
    ├── RemoteError                   what another process has ended with; its exit status
    └── ServiceError              4   a server or a store failed
        ├── ServerError               Triton cannot start, stopped or did not answer
        │   └── ReloadError               a server did not take what was to go live
        ├── PortInUseError            another process listens there
        ├── WorkerError               a training process was lost
        └── StorageError              disk full, or the repository cannot be reached
            └── ConflictError             another publisher has changed it meanwhile

The number is the exit status. A message is one line: what was wrong, what was expected, what to
do. Only `pipeline.cli` catches these.
"""

import difflib
import errno
from collections.abc import Iterable


class ZooError(Exception):
    """Base of all errors of this project; `exit_status` is what the command ends with."""

    exit_status = 1


class InputError(ZooError):
    exit_status = 2


class UnknownIdError(InputError):
    """An id that names no entry; the message lists the nearest known ones first."""

    def __init__(self, kind: str, given: str, known: Iterable[str]) -> None:
        names = sorted(known)
        nearest = difflib.get_close_matches(given, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(nearest)}? " if nearest else ""
        super().__init__(f"unknown {kind} {given!r}: {hint}known: {', '.join(names)}")


class DataError(InputError):
    pass


class DataUnavailableError(DataError):
    pass


class CheckpointError(InputError):
    pass


class FolderError(InputError):
    pass


class SignatureError(InputError):
    pass


class RefusedError(ZooError):
    exit_status = 3


class GateError(RefusedError):
    pass


class VerdictError(RefusedError):
    pass


class NonFiniteLossError(RefusedError):
    pass


class RemoteError(ZooError):
    def __init__(self, exit_status: int, message: str) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class ServiceError(ZooError):
    exit_status = 4


class ServerError(ServiceError):
    pass


class ReloadError(ServerError):
    pass


class PortInUseError(ServiceError):
    pass


class WorkerError(ServiceError):
    pass


class StorageError(ServiceError):
    pass


class ConflictError(StorageError):
    pass


def unwritable(error: OSError) -> type[FolderError | StorageError]:
    """What a file that cannot be written is: StorageError where the disk is full, else the fault of its folder."""
    return StorageError if error.errno == errno.ENOSPC else FolderError
