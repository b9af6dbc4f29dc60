"""Sandboxed processes that open untrusted files, so that a crash or a runaway ends that process only.

A small server is forked before any framework or thread starts, and forks a child for each file. The child
limits its memory, processor time and open files, gives up network, other programs and all folders but that of
the file, and answers calls with plain values and arrays. Whatever ends it becomes one `InputError`.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import logging
import math
import operator
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from lulc.core.budgets import Allowance, allowance, is_trusted
from lulc.core.confinement import confine
from lulc.core.schema import InputError
from lulc.core.storage import Resource

logger = logging.getLogger("lulc")

_FRAMEWORKS = ("tensorflow", "jax", "torch", "openvino", "keras", "distributed")
"""Packages that start threads: a process that has loaded one is not forked."""

_HEADER = struct.Struct("<QQ")
_MOST_HEADER = 256 * 2**20
_MESSAGE, _BUFFER = 2**16, 2**20
_ENDINGS = {
    signal.SIGXCPU: "reading it takes more than {seconds} s of processor time",
    signal.SIGKILL: "reading it takes more time or memory than files of its size need",
}


class Apart(Resource):
    """A file that is open in its own process. Raises InputError if the file is refused, or ends its process.

    Parameters
    ----------
    make
        Function, or its full name, that opens the file in that process; the methods of its result answer
        `call`. A name spares the caller the import.
    path
        The file or folder, for messages.
    place
        File or folder to open, if not `path`; the process sees only its folder.
    stored
        Bytes of the file, which decide the limits of memory and time; None to look.
    reading
        What is read, for messages: "the weights".
    memory
        Bytes beyond what a file of its size needs.
    ahead
        Modules that opening the file needs: the server loads them once for all files.
    """

    def __init__(
        self, make: Callable[..., Any] | str, *arguments: Any, path: str | os.PathLike[str],
        place: str | os.PathLike[str] | None = None, stored: int | None = None, reading: str = "",
        memory: int = 0, ahead: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.path = os.fspath(path)
        self._reading = f"{reading} " if reading else ""
        place = Path(place or self.path).resolve()
        name = make if isinstance(make, str) else f"{make.__module__}.{make.__qualname__}"
        module, _, function = name.rpartition(".")
        if stored is None:
            stored = place.stat().st_size if place.is_file() else 0
        self._allowance = allowance(stored)
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair()
        for end in (self._socket, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        request = {
            "module": module,
            "ahead": ahead,
            "folder": str(place if place.is_dir() else place.parent),
            # The server may have been started in another folder, and paths may be relative.
            "working_folder": os.getcwd(),
            "seconds": self._allowance.seconds,
            "memory": min(self._allowance.memory + memory, 2**62),
            "files": self._allowance.files,
        }
        self._server = _server()
        with theirs:
            self._pid = self._server.fork(request, theirs)
        try:
            self.made = self._ask([function, list(arguments)])
        except BaseException:
            self.close()
            raise

    @property
    def has_ended(self) -> bool:
        """True if a file has ended the process."""
        return not self._pid

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the opened file with plain arguments."""
        return self._ask([method, list(arguments)])

    def _ask(self, message: list[Any]) -> Any:
        with self._lock:
            end = time.monotonic() + self._allowance.wall_seconds
            try:
                _send(self._socket, message)
                answer = _receive(self._socket, end)
            except (EOFError, OSError) as error:
                raise self._ended(isinstance(error, TimeoutError)) from None
        for level, text in answer.get("log", ()):
            logger.log(level, "%s", text)
        if "refused" in answer:
            raise InputError(*answer["refused"])
        if "damaged" in answer:
            raise self._damaged(answer["damaged"])
        return answer["value"]

    def _ended(self, late: bool) -> InputError:
        number, self._pid = self._server.end(self._pid), 0
        if late:
            return self._damaged(f"reading it takes more than {self._allowance.wall_seconds:.0f} s")
        if number in _ENDINGS:
            return self._damaged(_ENDINGS[signal.Signals(number)].format(seconds=self._allowance.seconds))
        how = signal.Signals(number).name if number > 0 else f"exit code {-number}"
        return self._damaged(f"it is so damaged that the library which reads it ends ({how})")

    def _damaged(self, reason: str) -> InputError:
        return InputError(
            f"cannot read {self._reading}'{self.path}', since {reason}",
            "Copy or download it again. If you trust the file and it is only large, lift the limits: --trust",
        )

    def __del__(self) -> None:
        # The process ends when its socket closes; asking the server could wait for itself here.
        with contextlib.suppress(Exception):
            self._socket.close()

    def close(self) -> None:
        self._socket.close()
        if self._pid and self._server.owner == os.getpid():
            self._server.end(self._pid)
        self._pid = 0


class SharedApart:
    """A process that opens the files of one folder in turn, since each start takes some 50 ms.

    `make` is the full name of a function or class; the methods of its result answer `call`.

    A new process starts for another folder, for a file with a longer time limit, and after a file has ended
    the last one: only that file is refused.
    """

    def __init__(self, make: str) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._key: tuple[Any, ...] = ()
        self._seconds = 0
        self._process: Apart | None = None

    def call(self, path: str, place: Path, stored: int, method: str, *arguments: Any) -> Any:
        """Call a method with plain arguments; `path`, `place` and `stored` as for `Apart`."""
        key, seconds = (os.getpid(), os.getcwd(), place.parent, is_trusted()), allowance(stored).seconds
        with self._lock:
            if self._process is not None and (
                key != self._key or seconds > self._seconds or self._process.has_ended
            ):
                self._process.close()
                self._process = None
            if self._process is None:
                self._process = Apart(self._make, path=path, place=place, stored=stored)
                self._key, self._seconds = key, seconds
            self._process.path = path
            return self._process.call(method, *arguments)


def read_apart(
    function: Callable[..., Any] | str,
    *arguments: Any,
    path: str | os.PathLike[str],
    stored: int | None = None,
    reading: str = "",
) -> Any:
    """Return the plain values and arrays that `function` reads from a file in its own process.

    The parameters are those of `Apart`.
    """
    with Apart(function, *arguments, path=path, stored=stored, reading=reading) as process:
        return process.made


class _Server:
    """Process that forks a child for each file; it ends with its parent."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process: subprocess.Popen[bytes] | None = None
        self._pid = 0
        with theirs:
            if threading.active_count() == 1 and not any(name in sys.modules for name in _FRAMEWORKS):
                self._pid = os.fork()
                if not self._pid:
                    _serve(os.dup(theirs.fileno()))
            else:
                code = (
                    f"import sys; sys.path[:] = {sys.path!r}; from lulc.core.reader_process import _serve; "
                )
                self._process = subprocess.Popen(
                    [sys.executable, "-c", f"{code}_serve({theirs.fileno()})"],
                    pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True,
                )  # fmt: skip

    def fork(self, request: dict[str, Any], theirs: socket.socket) -> int:
        """Start a child that answers on a socket; returns its process id."""
        return self._ask({"fork": request}, [theirs.fileno()])

    def end(self, pid: int) -> int:
        """End a child; returns the signal that ended it, or its negative exit code."""
        try:
            return self._ask({"end": pid}, [])
        except EOFError:
            return signal.SIGKILL

    def _ask(self, message: dict[str, Any], descriptors: list[int]) -> int:
        with self._lock:
            try:
                socket.send_fds(self._socket, [json.dumps(message).encode()], descriptors)
                answer = self._socket.recv(_MESSAGE)
            except OSError as error:
                raise EOFError from error
        if not answer:
            raise EOFError("the server of reader processes has ended")
        return int(answer)

    def close(self) -> None:
        """End the server and its children."""
        self._socket.close()
        if self._pid and self.owner == os.getpid():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._pid, 0)


_current: _Server | None = None
_starting = threading.Lock()


def _server() -> _Server:
    global _current
    with _starting:
        if _current is None or _current.owner != os.getpid():
            _current = _Server()
            atexit.register(_current.close)
        return _current


def _serve(descriptor: int) -> NoReturn:
    """Fork children until the other end closes; runs in the server."""
    try:
        with contextlib.suppress(PermissionError):
            os.setsid()
        _forget_files(descriptor)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        logging.disable(logging.NOTSET)
        # Arrow's own allocators reserve more address space than a child may have.
        os.environ.update(ARROW_DEFAULT_MEMORY_POOL="system")
        server = socket.socket(fileno=descriptor)
        while True:
            content, descriptors, _, _ = socket.recv_fds(server, _MESSAGE, 1)
            if not content:
                break
            message = json.loads(content)
            if "end" in message:
                server.send(str(_reap(message["end"])).encode())
                continue
            request = message["fork"]
            for name in (request["module"], *request["ahead"]):
                with contextlib.suppress(Exception):
                    importlib.import_module(name)
            pid = os.fork()
            if not pid:
                server.close()
                _answer(socket.socket(fileno=descriptors[0]), request)
            os.close(descriptors[0])
            server.send(str(pid).encode())
    finally:
        os._exit(0)


def _forget_files(descriptor: int) -> None:
    """Point every open file descriptor but one at /dev/null.

    The numbers stay taken, since libraries close them later by number, as PROJ does with its database.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for number in map(int, os.listdir("/dev/fd")):
        if number not in (descriptor, null):
            with contextlib.suppress(OSError):
                os.fstat(number)
                os.dup2(null, number)


def _reap(pid: int) -> int:
    """Wait for a child whose socket has closed, or kill it; returns its end as `_Server.end` does."""
    # A busy machine may end it late; a kill would wrongly be reported as too much memory.
    for _ in range(2000):
        try:
            ended, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            return 0
        if ended:
            return -os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return signal.SIGKILL


def _answer(ours: socket.socket, request: dict[str, Any]) -> NoReturn:
    """Answer calls until the other end closes; runs in a child."""
    code = 1
    try:
        os.chdir(request["working_folder"])
        limits = Allowance(request["seconds"], 0.0, request["memory"], request["files"])
        confine(Path(request["folder"]), limits)
        log = _LogBuffer()
        logger.handlers[:], logger.propagate = [log], False
        target: Any = importlib.import_module(request["module"])
        opened = False
        while True:
            try:
                name, arguments = _receive(ours, math.inf)
            except EOFError:
                break
            _allow_seconds(limits.seconds)
            try:
                value = operator.attrgetter(name)(target)(*arguments)
                if not opened:
                    target, opened = value, True
                    value = value.describe() if hasattr(value, "describe") else value
                answer = {"value": value}
            except InputError as error:
                answer = {"refused": [error.problem, error.hint]}
            except MemoryError:
                answer = {"damaged": "reading it takes more memory than files of its size need"}
            except BaseException as error:
                what = f"{type(error).__name__}: {str(error)[:300]}"
                answer = {"damaged": f"it is damaged, or of another kind than it says ({what})"}
            _send(ours, answer | {"log": log.records})
            log.records.clear()
        code = 0
    finally:
        os._exit(code)


class _LogBuffer(logging.Handler):
    """Level and text of the messages that a child logs, to be sent with the next answer."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[list[Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append([record.levelno, record.getMessage()])


def _allow_seconds(seconds: int) -> None:
    """Let SIGXCPU end this process after this many more seconds of processor time."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = math.ceil(usage.ru_utime + usage.ru_stime)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (min(used + seconds, 2**31 - 1), hard))


def _send(target: socket.socket, value: Any) -> None:
    """Send a value as JSON, followed by the bytes of its arrays."""
    buffers: list[memoryview] = []
    header = json.dumps(_plain(value, buffers)).encode()
    target.sendall(_HEADER.pack(len(header), sum(map(len, buffers))) + header)
    for buffer in buffers:
        target.sendall(buffer)


def _receive(source: socket.socket, end: float) -> Any:
    """Receive what `_send` sent, until the time `end` of the monotonic clock."""
    header, _ = _HEADER.unpack(_fill(source, bytearray(_HEADER.size), end))
    if header > _MOST_HEADER:
        raise EOFError("the answer is too large")
    value = json.loads(bytes(_fill(source, bytearray(header), end)))
    return _restored(value, lambda array: _fill(source, array, end))


def _fill(source: socket.socket, target: Any, end: float) -> Any:
    view = memoryview(target).cast("B") if len(target) else memoryview(b"")
    while len(view):
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        source.settimeout(None if math.isinf(left) else left)
        count = source.recv_into(view)
        if not count:
            raise EOFError
        view = view[count:]
    return target


def _plain(value: Any, buffers: list[memoryview]) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biufc":
            raise TypeError(f"arrays of {value.dtype} are not passed on")
        flat = np.ascontiguousarray(value).reshape(-1)
        if flat.size:
            buffers.append(flat.view(np.uint8).data)
        return {"array": [value.dtype.str, list(value.shape)]}
    if isinstance(value, bytes):
        return {"bytes": _plain(np.frombuffer(value, np.uint8), buffers)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        return [_plain(item, buffers) for item in value]
    if isinstance(value, dict):
        return {"pairs": [[_plain(k, buffers), _plain(v, buffers)] for k, v in value.items()]}
    return value


def _restored(value: Any, fill: Callable[[Any], Any]) -> Any:
    if isinstance(value, list):
        return [_restored(item, fill) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "array":
        array = np.empty(content[1], _number_type(content[0]))
        if array.size:
            fill(array.reshape(-1).view(np.uint8))
        return array
    if kind == "bytes":
        return _restored(content, fill).tobytes()
    return {_restored(k, fill): _restored(v, fill) for k, v in content}


def _number_type(code: str) -> np.dtype:
    dtype = np.dtype(code)
    if dtype.kind not in "biufc":
        raise EOFError(f"arrays of {dtype} are not passed on")
    return dtype
