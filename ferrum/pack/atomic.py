"""A file that appears whole or not at all: a hidden file in the same folder, then fsync, rename, fsync of the folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
from pathlib import Path
from types import TracebackType
from typing import Any

from ferrum.errors import FerrumError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_BLOCK = 2 << 20
"""Bytes appended in one piece, at multiples of as many: a large page. A file system with large folios then keeps them in large
pages, which a mapping of the file takes over; decoding reads its weights up to a tenth faster (docs/performance.md)."""


class AtomicFile:
    """``path`` under construction.

    A link at ``path`` is followed, so that its target is replaced and the link stays. Until ``commit`` only a hidden
    file ``.<name>.<pid>-<n>.tmp`` exists; it is locked as long as its writer lives, and hidden files of dead writers of
    the same name are removed on the way in. All failures are FerrumErrors that name ``path``.
    """

    def __init__(self, path: Path, mode: int = 0o666, expected_bytes: int = 0) -> None:
        self.path = path
        self.target = Path(os.path.realpath(path))
        self._fd = -1
        self._written = 0
        self._tail = bytearray()  # what was appended and not written yet: less than a block
        self._needed = expected_bytes
        _check_target(path, self.target)
        folder = self.target.parent
        try:
            _remove_stale(folder, self.target.name)
            _check_space(path, folder, expected_bytes)
            self._open(folder, mode)
        except OSError as error:
            raise self._explain(error) from None

    def _open(self, folder: Path, mode: int) -> None:
        for attempt in range(10_000):
            self.temp = folder / f".{self.target.name}.{os.getpid()}-{attempt}.tmp"
            try:
                fd = os.open(self.temp, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
            except FileExistsError:
                continue
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:  # else another process took it for a dead one between the two calls
                self._fd = fd
                return
            os.close(fd)
        raise FileExistsError(errno.EEXIST, "too many unfinished files", str(folder))

    def __enter__(self) -> AtomicFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.abort()  # does nothing after commit

    def append(self, data: Any) -> None:
        """Put all of ``data`` (bytes-like) after what is there. Less than a block waits in memory for ``flush`` or ``commit``."""
        view = memoryview(data).cast("B")
        while view.nbytes >= (room := _BLOCK - (self._written + len(self._tail)) % _BLOCK):
            self._tail += view[:room]
            view = view[room:]
            self.flush()
        self._tail += view

    def flush(self) -> None:
        """Hand what was appended to the system, so that a reader of ``temp`` sees it."""
        self._write(self._written, self._tail)
        self._written += len(self._tail)
        self._tail.clear()

    def cut(self, length: int) -> None:
        """Take back what lies beyond ``length`` bytes; what is appended next stands there."""
        self.flush()
        try:
            os.ftruncate(self._fd, length)
        except OSError as error:
            raise self._explain(error) from None
        self._written = length

    def write_at(self, offset: int, data: Any) -> None:
        """Write all of ``data`` at ``offset``, over what was appended."""
        self.flush()
        self._write(offset, data)

    def _write(self, offset: int, data: Any) -> None:
        """All of ``data``: a short write is repeated until it is whole."""
        view = memoryview(data).cast("B")
        self._needed = max(self._needed, offset + view.nbytes)
        done = 0
        try:
            while done < view.nbytes:
                count = os.pwrite(self._fd, view[done:], offset + done)
                if count <= 0:
                    raise OSError(errno.ENOSPC, "the disk took no more bytes")
                done += count
        except OSError as error:
            raise self._explain(error) from None

    def commit(self) -> None:
        """Make the bytes durable and the file visible under its name, replacing what was there."""
        self.flush()
        try:
            os.fsync(self._fd)
            os.replace(self.temp, self.target)
        except OSError as error:
            raise self._explain(error) from None
        os.close(self._fd)
        self._fd = -1
        # the file is visible and whole from here on; a folder that cannot be synced is no reason to call it missing
        with contextlib.suppress(OSError):
            folder = os.open(self.target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def abort(self) -> None:
        """Remove the hidden file; safe to call twice and after ``commit``."""
        if self._fd < 0:
            return
        with contextlib.suppress(OSError):
            self.temp.unlink()
        with contextlib.suppress(OSError):
            os.close(self._fd)
        self._fd = -1

    def _explain(self, error: OSError) -> FerrumError:
        if error.errno in _NO_SPACE:
            limit = "the file size limit is reached" if error.errno == errno.EFBIG else "the disk is full"
            return FerrumError(
                "disk-full",
                f"{limit} after {self._written} bytes: at least {self._needed} are needed",
                str(self.path),
                "free space or choose another folder",
            )
        reason = error.strerror or str(error)
        return FerrumError("write-failed", f"cannot write: {reason}", str(self.path), "choose a folder that you can write to")


def write_atomic(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a small file whole or not at all. Raises FerrumError naming ``path``."""
    with AtomicFile(path, mode) as file:
        file.append(data)
        file.commit()


def check_place(path: Path) -> None:
    """Refuse a path that cannot be written before the work is done whose result goes there. Raises FerrumError."""
    target = path.resolve()
    _check_target(path, target)
    folder = target.parent
    reason = "" if folder.is_dir() else "there is no such folder" if not folder.exists() else "its folder is a file"
    if not reason and not os.access(folder, os.W_OK | os.X_OK):
        reason = "no file can be made in this folder"
    if reason:
        raise FerrumError("write-failed", f"cannot write: {reason}", str(path), "choose a folder that you can write to")


def _check_target(path: Path, target: Path) -> None:
    try:
        mode = target.lstat().st_mode
    except OSError:
        return  # nothing is there; a missing or closed folder is reported when the hidden file is made
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise FerrumError("write-failed", f"the place to write to is {kind}", str(path), "choose another name")


def _check_space(path: Path, folder: Path, expected: int) -> None:
    free = _free_bytes(folder)
    if expected > free:
        raise FerrumError(
            "disk-full", f"{expected} bytes are needed and {free} are free", str(path), "free space or choose another folder"
        )


def _free_bytes(folder: Path) -> int:
    try:
        info = os.statvfs(folder)
    except OSError:
        return 0
    return info.f_bavail * info.f_frsize


def _remove_stale(folder: Path, name: str) -> None:
    pattern = re.compile(rf"\.{re.escape(name)}\.(\d{{1,9}})-\d{{1,5}}\.tmp")
    for entry in os.listdir(folder):
        match = pattern.fullmatch(entry)
        if match and not _is_alive(int(match[1])):
            with contextlib.suppress(OSError):
                _remove_unlocked(folder / entry)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _remove_unlocked(path: Path) -> None:
    """Remove the file unless someone holds its lock: a writer in another container has a pid that means nothing here."""
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    finally:
        os.close(fd)
