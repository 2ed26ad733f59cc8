"""One writer per run folder, also across processes and after a crash.

The system's own file lock decides: it ends with the process that holds it, however that ends, and process ids that are
used again (containers) cannot fool it. Where a file system has no locks, the process id in the file decides instead.

The filelock package does the same locking, but a second writer would only learn that the run is locked. Here it learns
by whom, on which machine and since when, and Run Inspector can say it without taking the lock. That needs the holder's
description inside the locked file, written by whoever holds it, which filelock leaves no room for.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from ..errors import RunFolderError, RunLockedError

if sys.platform == "win32":
    import ctypes
    import msvcrt
else:
    import fcntl

LOCK = "run.lock"
_LOCKED_BYTE = 1 << 20  # Windows locks hide the bytes they cover; the holder's name before them stays readable
_BUSY = {errno.EACCES, errno.EAGAIN, errno.EDEADLK}
_held_here: set[str] = set()
_guard = threading.Lock()


class RunLock:
    """The lock of one run folder: `acquire` and `release`.

    Args:
        path: the lock file; it stays on disk, empty while nobody holds it.
        owner: who asks, in words, for the message that a second one gets.
    """

    def __init__(self, path: Path, owner: str = "") -> None:
        self.path = path
        self.owner = owner
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor is not None

    def acquire(self) -> RunLock:
        """Take the lock or raise at once.

        Raises:
            RunLockedError: somebody else holds it; says who, where and since when.
            RunFolderError: the folder cannot be written.
        """
        if self.held:
            return self
        key = os.path.realpath(self.path)
        with _guard:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                raise RunFolderError(f"{self.path.parent} cannot be written: {error.strerror}") from error
            try:
                if key in _held_here:
                    raise self._refusal(descriptor)
                self._take(descriptor)
                if not _same_file(descriptor, self.path):
                    raise self._refusal(descriptor)  # its holder removed the folder at this very moment
                os.ftruncate(descriptor, 0)
                os.lseek(descriptor, 0, os.SEEK_SET)
                os.write(descriptor, json.dumps(self._self_description()).encode())
            except BaseException:
                os.close(descriptor)
                raise
            self._descriptor = descriptor
            _held_here.add(key)
        return self

    def release(self, remove: bool = False) -> None:
        """Give the lock back, and with `remove` delete its file; does nothing when it is not held."""
        if self._descriptor is None:
            return
        with _guard:
            descriptor, self._descriptor = self._descriptor, None
            _held_here.discard(os.path.realpath(self.path))
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
            if sys.platform == "win32":
                os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
                with contextlib.suppress(OSError):
                    msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
            if remove and os.name != "nt":
                self.path.unlink(missing_ok=True)  # while it is held, so that nobody can hold the name and not the file
            os.close(descriptor)
            if remove and os.name == "nt":
                with contextlib.suppress(OSError):
                    self.path.unlink(missing_ok=True)

    def _self_description(self) -> dict[str, Any]:
        return {"pid": os.getpid(), "host": socket.gethostname(), "time": time.time(), "owner": self.owner}

    def _take(self, descriptor: int) -> None:
        try:
            if sys.platform == "win32":
                os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _BUSY:
                raise self._refusal(descriptor) from None
            self._take_by_process_id(descriptor)  # no locks on this file system

    def _take_by_process_id(self, descriptor: int) -> None:
        holder = _read_holder(descriptor)
        if not holder:
            return
        same_machine = holder.get("host") == socket.gethostname()
        if same_machine and (holder.get("pid") == os.getpid() or not _alive(int(holder.get("pid", 0)))):
            return  # left by a process that is gone (or by an earlier one with our id: ours are in _held_here)
        raise self._refusal(descriptor)

    def _refusal(self, descriptor: int) -> RunLockedError:
        return RunLockedError(
            f"run {self.path.parent.name!r} is in use by {_words(_read_holder(descriptor))}; wait for it, stop it, or "
            "choose another run name"
        )


def holder(path: Path) -> str:
    """Who holds the lock in `path`, in words, without taking it; "" for nobody, as far as this machine can tell."""
    try:
        with open(path, "rb") as file:
            found = _read_holder(file.fileno())
    except OSError:
        return ""
    here = found.get("host") == socket.gethostname()
    if not found or (here and not _alive(int(found.get("pid", 0)))):
        return ""
    if here and found.get("pid") == os.getpid() and os.path.realpath(path) not in _held_here:
        return ""
    return _words(found)


def _words(found: dict[str, Any]) -> str:
    begun = found.get("time")
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(begun)) if begun else "an unknown time"
    who = f"{found['owner']}, " if found.get("owner") else ""
    return f"{who}process {found.get('pid', '?')} on {found.get('host', '?')}, since {since}"


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _read_holder(descriptor: int) -> dict[str, Any]:
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        holder = json.loads(os.read(descriptor, 4096) or b"{}")
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _alive(pid: int) -> bool:
    if pid <= 0:
        return False
    if sys.platform == "win32":
        handle = ctypes.windll.kernel32.OpenProcess(0x1000, False, pid)  # PROCESS_QUERY_LIMITED_INFORMATION
        if handle:
            ctypes.windll.kernel32.CloseHandle(handle)
        return bool(handle)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
