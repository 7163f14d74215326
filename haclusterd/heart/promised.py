"""Reading back what this node promised before it restarted (DESIGN 6, Epochs).

Heart reads the file once, before its loop starts, because a promise has to be known before the
first grant. What is in it is `core.promises`'s knowledge.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from haclusterd.core.inputs import Restored
from haclusterd.core.model import ClusterSpec
from haclusterd.core.promises import FILE_BYTES_MAX, FILE_NAME, PromisesError, decode

_UNKNOWN = (
    "the promises of the last run are not known, so the node waits and learns the epochs from the "
    "others before it votes. Fix: make the file readable, or move it away"
)


def read_promises(folders: Sequence[Path], spec: ClusterSpec) -> tuple[Restored | None, str]:
    """(what is known, "" or why a file could not be used); the first file counts.

    Without promises the hold-down after the start, and the epochs heard from the others, protect
    what this node may have promised.
    """
    for folder in folders:
        path = folder / FILE_NAME
        try:
            with path.open("rb") as file:
                return decode(file.read(FILE_BYTES_MAX + 1), spec), ""
        except FileNotFoundError:
            continue
        except OSError as error:
            return None, f"{path}: {error.strerror}: {_UNKNOWN}"
        except PromisesError as error:
            return None, f"{path}: {error}: {_UNKNOWN}"
    return None, ""
