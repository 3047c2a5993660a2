"""Writing where it may not be possible: a full disk, a read-only folder, a file in the way."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from djepa_mm.errors import UserError
from djepa_mm.ranks import Ranks

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO}  # of the disk, whatever the file


@contextmanager
def written_to(path: Path) -> Iterator[None]:
    """Turn what the system says against writing `path`, or what is in it, into one line."""
    try:
        yield
    except SafetensorError as error:  # which is how a full disk is told by safetensors
        raise _cannot(path, " ".join(str(error).split())) from error
    except OSError as error:
        if error.errno not in FULL and not _within(error.filename, path):
            raise
        raise _cannot(os.fsdecode(error.filename or path), (error.strerror or str(error)).lower()) from error


def _cannot(where: Path | str, reason: str) -> UserError:
    return UserError(f"{where}: cannot be written ({reason}); make room there, or choose another place")


def _within(file: str | bytes | None, path: Path) -> bool:
    """Whether a file is `path`, in it, or one of the folders that it lies in."""
    if file is None:
        return False
    ours, theirs = path.absolute(), Path(os.fsdecode(file)).absolute()
    return theirs == ours or ours in theirs.parents or theirs in ours.parents


def check_writable(folder: Path) -> None:
    """Raises OSError where a folder cannot be made or written to; makes nothing."""
    there = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "a file is in the way", str(there))
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "permission denied", str(there))


@contextmanager
def only_run(folder: Path, ranks: Ranks) -> Iterator[None]:
    """In here no other run may use the folder, which is made. The lock ends with the process, however it ends.

    Raises UserError where another has it."""
    lock = FileLock(folder / ".lock", timeout=0)

    def take() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            raise UserError(f"{folder}: another run is using this folder; wait for it, or choose --out") from None

    ranks.agree(written_to(folder)(take), first_only=True)
    try:
        yield
    finally:
        if lock.is_locked:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()
