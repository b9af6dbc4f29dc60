"""The installed commands of lulc: finding their Python, and running them with progress.

Nothing of lulc is imported: QGIS has a Python of its own, with other packages.
"""

from __future__ import annotations

import glob
import json
import os
import queue
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time

COMMAND = "lulc-make-classifications"
"""Installed beside the Python that can run it."""

PLACES = (
    "~/.venv/bin", "~/venv/bin", "~/.virtualenvs/*/bin", "~/.local/share/pipx/venvs/*/bin",
    "~/miniconda3/envs/*/bin", "~/miniforge3/envs/*/bin", "~/anaconda3/envs/*/bin",
    "~/miniforge3/envs/*/Scripts", "~/miniconda3/envs/*/Scripts",
)  # fmt: skip
"""Where environments often lie."""

OF_QGIS = ("PYTHONHOME", "PYTHONPATH", "GDAL_DATA", "GDAL_DRIVER_PATH", "PROJ_LIB", "PROJ_DATA")
"""Variables by which QGIS tells its own Python and libraries what to load."""

PATIENCE = 60
"""Seconds after a cancellation until a command that doesn't end is killed."""

PERCENT = re.compile(r"(\d{1,3})%\|")


class CommandError(Exception):
    """A command refused its input, or failed; the message is what it said."""


def find_python(chosen=""):
    """Return the Python that has lulc: the chosen one, or one that is found; empty where there is none."""
    named = [path for path in (os.environ.get("LULC_PYTHON", ""), chosen) if path]
    if named:
        return named[0] if os.path.isfile(named[0]) else ""
    on_path = shutil.which(COMMAND)
    folders = [os.path.dirname(os.path.realpath(on_path))] if on_path else []
    for place in PLACES:
        folders += sorted(glob.glob(os.path.expanduser(place)))
    for folder in folders:
        if os.path.isfile(os.path.join(folder, COMMAND)) or os.path.isfile(
            os.path.join(folder, COMMAND + ".exe")
        ):
            for python in ("python", "python3", "python.exe", os.path.join(os.pardir, "python.exe")):
                if os.path.isfile(os.path.join(folder, python)):
                    return os.path.join(folder, python)
    return ""


def environment():
    """Return the environment of a command: this one's, without what is about the Python of QGIS."""
    kept = {name: value for name, value in os.environ.items() if name not in OF_QGIS}
    # Nothing is imported from the folder in which QGIS was started.
    return {**kept, "TQDM_MININTERVAL": "1", "PYTHONSAFEPATH": "1"}


def read_forms(python):
    """Return the forms of the installed version.

    Raises
    ------
    CommandError
        If this Python has no lulc, or one without forms.
    """
    call = [python, "-m", "lulc.cli.forms"]
    try:
        done = subprocess.run(
            call, capture_output=True, text=True, timeout=120, check=False, env=environment()
        )
        found = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise CommandError(f"'{python}' has no lulc 0.2 or later ({error})") from error
    if found["format_version"] != 1:
        raise CommandError(
            f"lulc {found['lulc']} has newer forms than this plug-in knows: update the plug-in"
        )
    return found


def several_of(text):
    """Return the values in a text, separated by blanks; one that holds blanks is quoted, or a path alone."""
    return [text] if os.path.exists(text) else shlex.split(text, posix=os.name == "posix")


def arguments_of(options, values):
    """Return the words of a command line.

    Parameters
    ----------
    options
        Those of a form.
    values
        Value by name; None where it is left open. Several values are a list.
    """
    named, placed = [], []
    for option in options:
        value = values.get(option["name"])
        if value is None or value in ("", []) or value == option["default"]:
            continue
        if option["kind"] == "switch":
            named.append(option["flag"])
            continue
        words = [str(v) for v in value] if isinstance(value, (list, tuple)) else [str(value)]
        if option["flag"]:
            named += [option["flag"], *words]
        else:
            placed += words
    # Options that take several values end where the next one begins.
    return [*placed, *named]


def run(python, module, arguments, canceled, progress, say):
    """Run a command and return its result.

    Parameters
    ----------
    python, module, arguments
        What to run.
    canceled
        Returns True where the command is to stop; it then continues when it is run again.
    progress, say
        Called with per cents, and with lines of its messages.

    Raises
    ------
    CommandError
        With what the command says, where it does not end well.
    """
    process = subprocess.Popen(
        [python, "-m", module, "--json", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL, env=environment(),
    )  # fmt: skip
    answer, lines, said = [], queue.Queue(), []
    readers = [
        threading.Thread(target=lambda: answer.append(process.stdout.read()), daemon=True),
        threading.Thread(target=_read_lines, args=(process.stderr, lines), daemon=True),
    ]
    for reader in readers:
        reader.start()
    asked = None
    while process.poll() is None or readers[1].is_alive() or not lines.empty():
        _tell(lines, said, progress, say)
        if canceled() and asked is None:
            asked = time.monotonic()
            process.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)
        elif asked is not None and time.monotonic() > asked + PATIENCE:
            process.kill()
    for reader in readers:
        reader.join()
    if process.returncode:
        raise CommandError("canceled; the same inputs continue" if asked else "\n".join(said[-30:]))
    text = b"".join(answer).decode("utf-8", "replace")
    return json.loads(text) if text.strip() else {}


def _read_lines(stream, lines):
    """Put lines into a queue; progress ends each of its own by a return."""
    line = b""
    while True:
        byte = stream.read(1)
        if byte in (b"\n", b"\r", b""):
            lines.put(line.decode("utf-8", "replace"))
            line = b""
            if not byte:
                return
        else:
            line += byte


def _tell(lines, said, progress, say):
    try:
        line = lines.get(timeout=0.1)
    except queue.Empty:
        return
    found = PERCENT.search(line)
    if found:
        progress(float(found.group(1)))
    elif line.strip():
        said.append(line)
        say(line)
