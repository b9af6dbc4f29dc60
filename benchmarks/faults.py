"""Kill each command, and fill its disk, at each of its file operations; report what breaks and what stays.

A library that gcc builds here and LD_PRELOAD loads counts the operations that change files below one folder.
At a chosen operation it sends SIGKILL, or answers every later one that needs room with ENOSPC. After each
fault the same command runs again. It has to end well, with the bytes of an undisturbed run and no other file.
Example:

    python benchmarks/faults.py --points 20

The exit code is 1 where a fault left something, and 2 where there is no gcc. The scene is simulated.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char root[PATH_MAX];
static long at, kind;               /* kind: 0 counts, 1 kills, 2 fills the disk */
static long *done;                  /* shared with the parent */

void fault_arm(const char *folder, long what, long when, long *counter) {
    strcpy(root, folder); kind = what; at = when; done = counter;
}
static int hit(int inside, int needs_room) {
    if (!done || !inside) return 0;
    long n = __sync_add_and_fetch(done, 1);
    if (kind == 1 && n == at) kill(getpid(), SIGKILL);
    if (kind == 2 && n >= at && needs_room) { errno = ENOSPC; return 1; }
    return 0;
}
static int below(const char *p) {
    char full[PATH_MAX];
    if (!done || !p) return 0;
    if (p[0] == '/') return strncmp(p, root, strlen(root)) == 0;
    return getcwd(full, sizeof full) && strncmp(full, root, strlen(root)) == 0;
}
static int inside(int fd) {
    char link[64], p[PATH_MAX];
    if (!done) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, p, sizeof p - 1);
    if (n < 0) return 0;
    p[n] = 0;
    return below(p);
}
#define REAL(ret, name, ...) static ret (*real)(__VA_ARGS__); if (!real) real = dlsym(RTLD_NEXT, #name)
#define OPENS(name) \
int name(const char *p, int flags, ...) { \
    va_list v; va_start(v, flags); int mode = va_arg(v, int); va_end(v); \
    REAL(int, name, const char *, int, ...); \
    if ((flags & (O_CREAT | O_TRUNC)) && hit(below(p), flags & O_CREAT)) return -1; \
    return real(p, flags, mode); }
OPENS(open) OPENS(open64)
#define OPENS_AT(name) \
int name(int d, const char *p, int flags, ...) { \
    va_list v; va_start(v, flags); int mode = va_arg(v, int); va_end(v); \
    REAL(int, name, int, const char *, int, ...); \
    if ((flags & (O_CREAT | O_TRUNC)) && hit(below(p), flags & O_CREAT)) return -1; \
    return real(d, p, flags, mode); }
OPENS_AT(openat) OPENS_AT(openat64)
#define FOPENS(name) \
FILE *name(const char *p, const char *m) { \
    REAL(FILE *, name, const char *, const char *); \
    if (strpbrk(m, "wa+") && hit(below(p), 1)) return NULL; \
    return real(p, m); }
FOPENS(fopen) FOPENS(fopen64)
size_t fwrite(const void *b, size_t s, size_t n, FILE *f) {
    REAL(size_t, fwrite, const void *, size_t, size_t, FILE *);
    return hit(inside(fileno(f)), 1) ? 0 : real(b, s, n, f); }
ssize_t write(int fd, const void *b, size_t n) {
    REAL(ssize_t, write, int, const void *, size_t);
    return hit(inside(fd), 1) ? -1 : real(fd, b, n); }
#define PWRITES(name, off) ssize_t name(int fd, const void *b, size_t n, off o) { \
    REAL(ssize_t, name, int, const void *, size_t, off); return hit(inside(fd), 1) ? -1 : real(fd, b, n, o); }
PWRITES(pwrite, off_t) PWRITES(pwrite64, off64_t)
ssize_t writev(int fd, const struct iovec *v, int n) {
    REAL(ssize_t, writev, int, const struct iovec *, int);
    return hit(inside(fd), 1) ? -1 : real(fd, v, n); }
#define FD1(name) int name(int fd) { REAL(int, name, int); return hit(inside(fd), 0) ? -1 : real(fd); }
FD1(fsync) FD1(fdatasync)
#define TRUNCS(name, off) int name(int fd, off n) { \
    REAL(int, name, int, off); return hit(inside(fd), 1) ? -1 : real(fd, n); }
TRUNCS(ftruncate, off_t) TRUNCS(ftruncate64, off64_t)
int rename(const char *a, const char *b) { REAL(int, rename, const char *, const char *);
    return hit(below(b), 0) ? -1 : real(a, b); }
int renameat(int c, const char *a, int d, const char *b) {
    REAL(int, renameat, int, const char *, int, const char *);
    return hit(below(b), 0) ? -1 : real(c, a, d, b); }
int unlink(const char *p) { REAL(int, unlink, const char *); return hit(below(p), 0) ? -1 : real(p); }
int unlinkat(int d, const char *p, int f) { REAL(int, unlinkat, int, const char *, int);
    return hit(d == AT_FDCWD ? below(p) : inside(d), 0) ? -1 : real(d, p, f); }
int rmdir(const char *p) { REAL(int, rmdir, const char *); return hit(below(p), 0) ? -1 : real(p); }
int mkdir(const char *p, mode_t m) { REAL(int, mkdir, const char *, mode_t);
    return hit(below(p), 1) ? -1 : real(p, m); }
"""

COUNT, KILL, FULL = 0, 1, 2


def build(folder: Path) -> Path:
    """Build the library with gcc."""
    source, library = folder / "shim.c", folder / "shim.so"
    source.write_text(SHIM)
    command = ["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True)
    return library


def commands(scene: Path, out: Path) -> dict[str, list[str]]:
    """Name of a case to a command and its arguments; every output lies below `out`."""
    made = str(scene / "map.tif")
    image = [str(scene / "summer.tif"), str(scene / "indices.tif")]
    weights = str(Path(__file__).parents[1] / "weights" / "kaakonkulma-sim")
    bands = ["--bands", image[0], "--indices", image[1], "--labels", str(scene / "labels.tif")]
    return {
        "export .nc, .zarr": ["export_map", made, "--out", f"{out}/map.nc", f"{out}/map.zarr"],
        "export styles": ["export_map", made, "--out", f"{out}/map.qml", f"{out}/map.sld"],
        "export level": ["export_map", made, "--level", "1", "--out", f"{out}/level.tif"],
        "report": ["evaluate_classifications", made, str(scene / "labels.tif"), "--out", f"{out}/report"],
        "stacks": ["preprocess", *bands, "--scheme", "kaakonkulma-13", "--size", "32", "--gap", "0",
                   "--out", f"{out}/stacks"],
        "map": ["make_classifications", weights, *image, f"{out}/map.tif"],
        "map, sieved, polygons": [
            "make_classifications", weights, *image, f"{out}/map.tif", "--sieve", "5",
            "--polygons", f"{out}/map.gpkg",
        ],
    }  # fmt: skip


def run(arguments: list[str], out: Path, kind: int = COUNT, at: int = 0) -> tuple[int, int, str]:
    """Run a command in a forked process; exit status (negative: signal), operations, messages."""
    import mmap

    shared = mmap.mmap(-1, 8)
    counter = ctypes.c_long.from_buffer(shared)
    log = tempfile.TemporaryFile()  # noqa: SIM115
    child = os.fork()
    if child == 0:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        arm = ctypes.CDLL(None).fault_arm
        arm(os.fsencode(out), ctypes.c_long(kind), ctypes.c_long(at), ctypes.byref(counter))
        status = 70
        with contextlib.suppress(BaseException):
            status = importlib.import_module(f"lulc.cli.{arguments[0]}").main(arguments[1:])
        os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    log.seek(0)
    text = log.read().decode(errors="replace")
    log.close()
    return status, counter.value, text


def contents(folder: Path) -> dict[str, str]:
    """Path to checksum of each file below a folder, and of each folder to nothing."""
    paths = sorted(folder.rglob("*"))
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else ""
        for p in paths
    }


def faults(arguments: list[str], out: Path, points: int, kind: int) -> Iterator[str]:
    """Yield what is wrong after each fault: empty, or a word for the table."""
    expected, operations = _undisturbed(arguments, out)
    chosen = range(1, operations + 1, max(1, operations // points) if points else 1)
    for at in chosen:
        _empty(out)
        status, _, text = run(arguments, out, kind, at)
        if kind == FULL and ("Traceback" in text or status not in (0, 1)):
            print(text[-1500:], file=sys.stderr)
            yield "traceback"
            continue
        again, _, text = run(arguments, out)
        refused = again != 0 and "exists already" not in text
        found = contents(out)
        if refused:
            yield "refused"
        elif expected.keys() - found.keys():
            yield "incomplete"
        elif found.keys() - expected.keys():
            yield "files left"
        elif any(found[n] != expected[n] for n in expected if "report" not in n):
            yield "other bytes"
        else:
            yield ""


def _undisturbed(arguments: list[str], out: Path) -> tuple[dict[str, str], int]:
    _empty(out)
    status, operations, text = run(arguments, out)
    if status or not operations:
        raise SystemExit(f"{arguments[0]} fails without a fault ({status}, {operations}):\n{text}")
    return contents(out), operations


def _empty(out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()


def prepare(scene: Path) -> None:
    """Simulate a scene and classify it."""
    from lulc.demo.landscape import simulate, write_scene

    write_scene(simulate((96, 128), 1), scene)
    status, _, text = run(commands(scene, scene)["map"], scene)
    if status:
        raise SystemExit(text)


def main() -> int:
    """Print a row for each command and kind of fault."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--points", type=int, default=0, help="operations tried of each command (0: all)")
    parser.add_argument("--only", nargs="+", help="names of cases")
    options = parser.parse_args()
    if "LULC_FAULTS" not in os.environ:
        if shutil.which("gcc") is None:
            print("no gcc", file=sys.stderr)
            return 2
        with tempfile.TemporaryDirectory() as folder:
            shim = build(Path(folder))
            environment = {**os.environ, "LD_PRELOAD": str(shim), "LULC_FAULTS": "1"}
            return subprocess.run([sys.executable, *sys.argv], env=environment, check=False).returncode
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    bad = 0
    with tempfile.TemporaryDirectory() as name:
        scene, out = Path(name).resolve() / "scene", Path(name).resolve() / "out"
        scene.mkdir()
        prepare(scene)
        print("| command | fault | tried | what went wrong |\n|---|---|---|---|")
        for case, arguments in commands(scene, out).items():
            if options.only and case not in options.only:
                continue
            for kind, word in ((KILL, "killed"), (FULL, "disk full")):
                found = Counter(faults(arguments, out, options.points, kind))
                wrong = ", ".join(f"{n} {what}" for what, n in sorted(found.items()) if what) or "nothing"
                print(f"| {case} | {word} | {found.total()} | {wrong} |", flush=True)
                bad += found.total() - found[""]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
