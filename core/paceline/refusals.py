"""What the system refuses: that a file is read or written, for want of a right or of room, or because a disk fails.

Nobody's mistake in Paceline makes these errors, so whoever meets one is told what to do, and not where in the code.
"""

from __future__ import annotations

import errno
import re
from pathlib import Path

from paceline.errors import StoreError

HOME, CACHE = "PACELINE_HOME", "PACELINE_CACHE"
EITHER = f"{HOME} or {CACHE}"


def way_out(error: Exception, path: Path | str, variable: str = HOME) -> str | None:
    """What to do when `error` kept Paceline from `path`; None for an error that is no refusal of the system.

    `variable` is the one that names another place.
    """
    mend = how_to_mend(error, path)
    return f"{mend}; or set {variable} to another folder" if mend is not None else None


def how_to_mend(error: Exception, path: Path | str) -> str | None:
    """As `way_out`, for a path that the user has given, which no variable names."""
    match _number(error):
        case errno.ENOSPC | errno.EDQUOT:
            return f"make room on the disk of {path}: `paceline runtime prune --cache` deletes what nobody needs"
        case errno.EACCES | errno.EPERM:
            return f"give yourself the right to read and write {path}"
        case errno.EROFS:
            return f"make {path} writable"
        case errno.EIO:
            return f"see to the disk of {path}, which fails"
        case errno.ENOTDIR | errno.EEXIST if (file := _in_the_way(Path(path))) is not None:
            return f"move {file} away, a file where a folder has to be"
        case _:
            return None


def refusal(error: OSError) -> StoreError | None:
    """The same for people, when nobody nearer to it has said what was going on; None where the system names no file."""
    help = way_out(error, error.filename, EITHER) if error.filename is not None else None
    return StoreError(f"{error.filename}: {error.strerror}", help=help) if help is not None else None


def words(error: Exception) -> str:
    """What an error says, without the path and the number that the system's errors bring."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def told_by_program(said: str) -> OSError | None:
    """The refusal that a program written in Rust, such as uv, met and told of; None when it told of none."""
    found = re.search(r"\(os error (\d+)\)(?: at path \"(.*?)\")?", said)
    return OSError(number := int(found[1]), "", found[2], number) if found else None


def _in_the_way(path: Path) -> Path | None:
    """The file above `path`, or at it, that keeps it from being a folder's."""
    try:
        return next((p for p in (*reversed(path.parents), path) if p.exists() and not p.is_dir()), None)
    except OSError:
        return None


def _number(error: Exception) -> int | None:
    return error.errno if isinstance(error, OSError) else None
