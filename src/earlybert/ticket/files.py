"""Files that are whole or not there."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..anatomy import Refused, first_line

HALF = ".half"
"""How the name of a file or folder ends that is being written; it starts with a dot."""

FULL, FORBIDDEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG), (errno.EACCES, errno.EPERM, errno.EROFS)
"""Errors of the system that space helps against, or a right to write."""


def write_atomically(path: str | os.PathLike[str], content: bytes | Callable[[str], None]) -> None:
    """Write a file so that a reader never sees half of it, and an old one survives a failure.

    Args:
        path: The file. Its folder is made if needed.
        content: The bytes, or a function that writes a file at the path it is given.

    Raises:
        Refused: The disk is full or the folder cannot be written. Nothing was changed.
    """
    target = Path(path)
    try:
        # A folder, since some writers leave files of their own beside the one they were asked for when killed.
        with half_folder(target) as half:
            temporary = half / target.name
            if callable(content):
                content(str(temporary))
            else:
                temporary.write_bytes(content)
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, target)
    except Exception as error:
        if is_disk_error(error):
            raise Refused(
                f"{target} could not be written {and_remedy(error)}; the file that was there before is unchanged."
            ) from error
        raise


@contextmanager
def half_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder to write in beside `path`, to be renamed to it when it is whole; what is left of it behind goes.

    Args:
        path: A file or folder. The folder around it is made if needed.

    Raises:
        OSError: The folder around it cannot be written.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    half = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=HALF, dir=target.parent))
    try:
        half.chmod(half.stat().st_mode & 0o7000 | 0o777 & ~_umask())  # a shared folder hands its group on
        yield half
    finally:
        shutil.rmtree(half, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what a process that was killed had not finished writing, in a folder nobody else writes to.

    Raises:
        Refused: The folder cannot be written.
    """
    with disk_errors(folder):
        for half in [*folder.rglob(f".*{HALF}")]:
            if half.is_dir() and not half.is_symlink():
                shutil.rmtree(half)
            else:
                half.unlink(missing_ok=True)


def remove_folder(path: str | os.PathLike[str]) -> None:
    """Remove a folder at once: a process that is killed meanwhile leaves a leftover, never a part of it in its place.

    Raises:
        Refused: The folder around it cannot be written.
    """
    target = Path(path)
    with disk_errors(target), half_folder(target) as half:
        target.rename(half / target.name)


@contextmanager
def disk_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Around writing to `path`: a full or read-only disk becomes a sentence with what to do.

    Raises:
        Refused: As said.
    """
    try:
        yield
    except OSError as error:
        raise Refused(f"{os.fspath(path)} could not be written {and_remedy(error)}.") from error


def is_disk_error(error: BaseException) -> bool:
    """Whether an exception means that the disk is full, read-only or gone."""
    # safetensors' writer, in Rust, raises its own exception with the system's message in it.
    return isinstance(error, OSError) or type(error).__name__ == "SafetensorError"


def and_remedy(error: BaseException) -> str:
    """Why something could not be written, in brackets and without the name of a half file, and what to do about it.

    Args:
        error: For which `is_disk_error`.
    """
    if isinstance(error, OSError):
        number, why = error.errno, error.strerror or first_line(error)
    else:
        found = re.search(r"\(os error (\d+)\)", str(error))
        number = int(found[1]) if found else None
        why = first_line(error) if number is None else os.strerror(number)
    if number in FULL:
        return f"({why}); free some space"
    if number in FORBIDDEN:
        return f"({why}); get write access to it, or choose another folder"
    return f"({why}); choose another folder"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
