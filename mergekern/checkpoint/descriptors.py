"""Opening more files than a process is first allowed to: models come in hundreds of shards."""

from __future__ import annotations

import errno
import os
import resource


def open_file(path: str | os.PathLike[str], flags: int, mode: int = 0o666) -> int:
    """os.open, not passed to children, for files that stay open by the hundred.

    Raises the soft limit to the hard one once half of it is used, so that whatever else is opened
    finds room too. Raises OSError as os.open does; at the hard limit it names the mend.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    flags |= os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, mode)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        if not _raise_limit():
            reason = f"all {soft} files that this process may open are open; raise ulimit -n"
            raise OSError(errno.EMFILE, reason, str(path)) from error
        return os.open(path, flags, mode)
    # Descriptors are given out from the lowest on: a high one says that as many are in use.
    if soft != resource.RLIM_INFINITY and 2 * descriptor >= soft:
        _raise_limit()
    return descriptor


def _raise_limit() -> bool:
    """Allow as many open files as can be allowed; False when that is no more than before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):  # some systems have no such number of files
        return False
    return soft != hard
