"""Sandbox of a process that opens untrusted files.

Linux enforces it by resource limits, Landlock (folders and TCP) and seccomp (sockets and programs). If the
kernel lacks one, Python's audit hook and GDAL's own settings remain. The numbers are those of the kernel's
interface (linux/landlock.h, linux/seccomp.h, linux/audit.h).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import signal
import socket
import struct
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lulc.core.budgets import Allowance

OFFLINE = {
    "PROJ_NETWORK": "OFF",
    "CPL_VSIL_CURL_ALLOWED_FILENAME": "none",
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": "none",
    "GDAL_HTTP_MAX_RETRY": "0",
    "GDAL_HTTP_TIMEOUT": "1",
    "GDAL_DRIVER_PATH": "disable",
    "GDAL_MAX_DATASET_POOL_SIZE": "100",
    "OGR_SQLITE_LOAD_EXTENSIONS": "",
    "HDF5_PLUGIN_PATH": os.devnull,
}
"""Settings that keep PROJ, GDAL and HDF5 from opening connections, plug-ins or many files."""

_REFUSED_EVENTS = ("socket.", "subprocess.", "os.exec", "os.posix_spawn", "os.system")

_NO_NEW_PRIVILEGES, _PARENT_DEATH_SIGNAL, _SET_SECCOMP, _FILTER = 38, 1, 22, 2
_SYSTEM_CALLS = {
    # socket, connect, execve, execveat, ptrace, process_vm_readv, process_vm_writev, io_uring_setup
    "x86_64": (0xC000003E, (41, 42, 59, 322, 101, 310, 311, 425)),
    "aarch64": (0xC00000B7, (198, 203, 221, 281, 117, 270, 271, 425)),
}
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""Number of file rights by version of Landlock; each of them is lost unless a rule grants it."""
_READ = 0b1101  # rights to execute (to map libraries), read files and list folders


def confine(folder: Path, limits: Allowance) -> None:
    """Permanently give up every right that reading a file below `folder` does not need."""
    os.environ.update(OFFLINE)
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    kernel = ctypes.CDLL(None, use_errno=True)
    sys.addaudithook(_refuse)
    _limit(limits)
    if sys.platform == "linux" and not kernel.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        _restrict_folders(kernel, folder)
        _restrict_calls(kernel)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    # Event loops wake themselves by a pair of local sockets.
    of_pair = event == "socket.__new__" and arguments[1] == socket.AF_UNIX
    if event.startswith(_REFUSED_EVENTS) and not of_pair:
        raise PermissionError(f"{event} is not allowed while a file is read")


def _limit(limits: Allowance) -> None:
    """Limit memory, open files, written bytes and core dumps of this process."""
    size, data = _own_memory()
    for kind, used in ((resource.RLIMIT_AS, size), (resource.RLIMIT_DATA, data)):
        if used and limits.memory < 2**62:
            _lower(kind, used + limits.memory)
    _lower(resource.RLIMIT_NOFILE, limits.files)
    _lower(resource.RLIMIT_FSIZE, 0)
    _lower(resource.RLIMIT_CORE, 0)


def _lower(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(kind, (value, value))


def _own_memory() -> tuple[int, int]:
    """Return the bytes of address space and private data of this process; 0 where unknown."""
    try:
        pages = Path("/proc/self/statm").read_text().split()
    except OSError:
        return 0, 0
    return int(pages[0]) * resource.getpagesize(), int(pages[5]) * resource.getpagesize()


def _restrict_folders(kernel: Any, folder: Path) -> None:
    """Let this process read only below `folder` and Python's own folders, and write nowhere."""
    version = kernel.syscall(_LANDLOCK_CREATE, None, 0, 1)
    if version < 1:
        return
    handled = struct.pack("=QQ", 2 ** _FILE_RIGHTS.get(version, 16) - 1, 0b11 if version >= 4 else 0)
    rules = kernel.syscall(_LANDLOCK_CREATE, handled, 16 if version >= 4 else 8, 0)
    if rules < 0:
        return
    for place in {folder, *_own_folders()}:
        with contextlib.suppress(OSError):
            opened = os.open(place, os.O_PATH | os.O_CLOEXEC)
            rights = _READ if place.is_dir() else _READ & 0b0101
            kernel.syscall(_LANDLOCK_ADD, rules, 1, struct.pack("=Qi", rights, opened), 0)
            os.close(opened)
    kernel.syscall(_LANDLOCK_RESTRICT, rules, 0)
    os.close(rules)


def _own_folders() -> Iterator[Path]:
    """Yield folders and files of Python, its packages and the system's libraries."""
    yield Path(__file__).resolve().parents[1]
    yield from (Path(p) for p in sys.path if p and Path(p).name in ("site-packages", "dist-packages"))
    paths = sysconfig.get_paths()
    yield from (Path(paths[key]) for key in ("stdlib", "platstdlib", "purelib", "platlib"))
    for name in ("GDAL_DATA", "PROJ_DATA", "PROJ_LIB"):
        if os.environ.get(name):
            yield Path(os.environ[name])
    named = "/lib /lib64 /usr/lib /usr/lib64 /usr/share/zoneinfo /usr/share/proj /usr/share/gdal"
    named += " /etc/ld.so.cache /proc/self /proc/cpuinfo /proc/meminfo /sys/devices/system/cpu /dev/null"
    named += " /dev/urandom"
    yield from (Path(p) for p in named.split())


def _restrict_calls(kernel: Any) -> None:
    """Block system calls that open sockets, run programs or access other processes."""
    if platform.machine() not in _SYSTEM_CALLS:
        kernel.unshare(0x40000000)  # CLONE_NEWNET: an isolated network
        return
    architecture, calls = _SYSTEM_CALLS[platform.machine()]
    load, equal, larger, result = 0x20, 0x15, 0x35, 0x06
    allow, refuse = 0x7FFF0000, 0x00050000 | 1
    rows = [(load, 0, 0, 4), (equal, 1, 0, architecture), (result, 0, 0, refuse), (load, 0, 0, 0)]
    # Numbers above this are the x32 variants of the same calls.
    rows += [(larger, len(calls), 0, 0x40000000)]
    rows += [(equal, len(calls) - 1 - i, 0, number) for i, number in enumerate(calls)]
    rows += [(result, 0, 0, allow), (result, 0, 0, refuse)]
    # Every jump leads to the last row, which refuses the call.
    rows = [
        (code, len(rows) - 2 - i if code in (equal, larger) and i > 3 else yes, no, value)
        for i, (code, yes, no, value) in enumerate(rows)
    ]
    program = b"".join(struct.pack("=HBBI", *row) for row in rows)
    buffer = ctypes.create_string_buffer(program)
    kernel.prctl(_SET_SECCOMP, _FILTER, struct.pack("@HP", len(rows), ctypes.addressof(buffer)), 0, 0)
