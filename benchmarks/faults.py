"""Kill each command, and fill its disk, at each of its file operations; report what breaks and what stays.

A library that gcc builds here and LD_PRELOAD loads counts the operations that change files below one folder.
At a chosen operation it sends SIGKILL, or answers every later one that needs room with ENOSPC. Whatever lies
under a final name then is whole: the file of an undisturbed run, or the one that was there before. The same
command then runs again. It has to end well, with the bytes of an undisturbed run and no other file. No file
gets its name while nobody holds a lock on it. Example:

    python benchmarks/faults.py --points 20

The exit code is 1 where a fault left something, and 2 where there is no gcc. The scene is simulated.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import rasterio

from lulc.core.removal import is_temporary
from lulc.core.storage import lock_of

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
#include <sys/sendfile.h>
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
ssize_t sendfile(int to, int from, off_t *o, size_t n) {
    REAL(ssize_t, sendfile, int, int, off_t *, size_t);
    return hit(inside(to), 1) ? -1 : real(to, from, o, n); }
ssize_t copy_file_range(int from, off64_t *a, int to, off64_t *b, size_t n, unsigned f) {
    REAL(ssize_t, copy_file_range, int, off64_t *, int, off64_t *, size_t, unsigned);
    return hit(inside(to), 1) ? -1 : real(from, a, to, b, n, f); }
int posix_fallocate(int fd, off_t o, off_t n) { REAL(int, posix_fallocate, int, off_t, off_t);
    return hit(inside(fd), 1) ? ENOSPC : real(fd, o, n); }
int rmdir(const char *p) { REAL(int, rmdir, const char *); return hit(below(p), 0) ? -1 : real(p); }
int mkdir(const char *p, mode_t m) { REAL(int, mkdir, const char *, mode_t);
    return hit(below(p), 1) ? -1 : real(p, m); }
"""

COUNT, KILL, FULL = 0, 1, 2
FAULTS = ((KILL, "killed"), (FULL, "disk full"))

TIMED = ("report", "run/history", "run/run.json", "run/plan.json")
"""Beginnings of files that hold times."""

REWRITTEN = "mosaic_scenes.json"
"""A file that a run writes twice, whole each time: the scenes, then with what was read of them."""

AHEAD = (
    "geopandas", "matplotlib.pyplot", "xarray", "lulc.api", "lulc.compositing.mosaic",
    "lulc.evaluation.evaluate", "lulc.export.export", "lulc.importing.import_model",
    "lulc.inference.classify", "lulc.inference.sieve", "lulc.preprocessing.preprocess",
)  # fmt: skip
"""Modules that all runs use: loaded once, and forked. Frameworks are not among them."""


class Case(NamedTuple):
    """One command.

    Parameters
    ----------
    arguments
        Name of the command, and what is typed behind it.
    before
        Files of the scene that lie in the output's folder when the command starts.
    """

    arguments: list[str]
    before: tuple[str, ...] = ()


def build(folder: Path) -> Path:
    """Build the library with gcc."""
    source, library = folder / "shim.c", folder / "shim.so"
    source.write_text(SHIM)
    command = ["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True)
    return library


def cases(scene: Path, out: Path) -> dict[str, Case]:
    """Return each command by the name of its row; every output lies below `out`."""
    made, labels = str(scene / "map.tif"), str(scene / "labels.tif")
    image = [str(scene / "summer.tif"), str(scene / "indices.tif")]
    weights = str(Path(__file__).parents[1] / "weights" / "kaakonkulma-sim")
    classify = ["make_classifications", weights, *image, f"{out}/map.tif"]
    preprocess = ["preprocess", "--bands", image[0], "--indices", image[1], "--labels", labels,
                  "--scheme", "kaakonkulma-13", "--size", "32", "--gap", "0"]  # fmt: skip
    train = ["train_model", str(scene / "stacks"), "--out", f"{out}/run", "--epochs", "1", "--steps", "1",
             "--validation-steps", "1", "--batch-size", "2", "--crop-sizes", "16",
             "--validation-crop-sizes", "16", "--filters", "2", "--workers", "1"]  # fmt: skip
    bounds = ["--bounds", *(scene / "bounds").read_text().split()] if (scene / "bounds").exists() else []
    mosaic = ["make_mosaic", "--scenes", str(scene / "products"), *bounds, "--dates", "2018-01-01/2019-12-31",
              "--out", f"{out}/mosaic.tif"]  # fmt: skip
    imported = ["import_model", str(scene / "model.onnx"), "--channels", "kaakonkulma-14",
                "--legend", "kaakonkulma-13", "--out", f"{out}/imported"]  # fmt: skip
    return {
        "map": Case(classify),
        "map over a map": Case([*classify, "--activations", "none", "--overwrite"], ("map.tif",)),
        "map as tiles": Case([*classify[:-1], f"{out}/tiles", "--tiles", "--date", "2018-07-01"]),
        "sieved map": Case([*classify, "--sieve", "5"]),
        "polygons": Case([*classify, "--polygons", f"{out}/map.gpkg"]),
        "map again": Case(["reproduce_map", made, "--out", f"{out}/again.tif",
                           "--difference", f"{out}/difference.tif"]),
        "stacks": Case([*preprocess, "--out", f"{out}/stacks"]),
        "mosaic": Case(mosaic),
        "export .nc, .zarr": Case(["export_map", made, "--out", f"{out}/map.nc", f"{out}/map.zarr"]),
        "export styles": Case(["export_map", made, "--out", f"{out}/map.qml", f"{out}/map.sld",
                               f"{out}/map.tif.aux.xml"]),
        "export level": Case(["export_map", made, "--level", "1", "--out", f"{out}/level.tif"]),
        "report": Case(["evaluate_classifications", made, labels, "--label-errors", "0.5",
                        "--out", f"{out}/report"]),
        "points": Case(["evaluate_classifications", made, "--design-sample", "60", "--out", f"{out}/report"]),
        "model as ONNX": Case(["export_model", weights, "--out", f"{out}/model.onnx"]),
        "model item": Case(["export_model", weights, "--out", f"{out}/model.json"]),
        "model repository": Case(["export_model", weights, "--hub", f"{out}/hub"]),
        "imported model": Case(imported),
        "training": Case(train),
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
        unclaimed = watch_names(out)
        try:
            status = importlib.import_module(f"lulc.cli.{arguments[0]}").main([*arguments[1:], "-q"])
        except BaseException:
            traceback.print_exc()
        if unclaimed:
            os.write(2, f"no lock is held on {', '.join(unclaimed)}".encode())
        os._exit(71 if unclaimed else status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    log.seek(0)
    text = log.read().decode(errors="replace")
    log.close()
    return status, counter.value, text


def watch_names(out: Path) -> list[str]:
    """Return a list to which each file is added that gets a final name while nobody holds a lock on it.

    The lock may be that of the file, of a folder above it, or of the map whose parts the folder holds.
    """
    found: list[str] = []

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "os.rename":
            return
        target = Path(os.fsdecode(arguments[1])).absolute()
        places = [place for place in (target, *target.parents) if out in place.parents]
        if any(map(is_temporary, places)):
            return
        locks = [lock_of(place.with_name(place.name.removesuffix(".parts"))) for place in places]
        locks += [mark for place in places if place.is_dir() for mark in place.glob(".lulc-*")]
        if places and not any(map(_is_held, locks)):
            found.append(str(target.relative_to(out)))

    sys.addaudithook(look)
    return found


def _is_held(lock: Path) -> bool:
    if not lock.is_file():
        return False
    with open(lock) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def contents(folder: Path) -> dict[str, str]:
    """Path to checksum of each file below a folder, and of each folder to nothing."""
    paths = sorted(folder.rglob("*"))
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else ""
        for p in paths
    }


def faults(
    case: Case, scene: Path, out: Path, kind: int, points: int, rng: random.Random
) -> Iterator[tuple[int, str, str]]:
    """Yield each operation at which a fault came, what is wrong (empty: nothing), and details."""
    _begin(case, scene, out)
    earlier = contents(out)
    status, operations, text = run(case.arguments, out)
    if status or not operations:
        raise SystemExit(f"{case.arguments} fails without a fault ({status}, {operations}):\n{text}")
    expected = contents(out)
    every = range(1, operations + 1)
    chosen = sorted(rng.sample(every, min(points, operations))) if points else every
    for at in chosen:
        _begin(case, scene, out)
        status, _, text = run(case.arguments, out, kind, at)
        if kind == FULL and ("Traceback" in text or status not in (0, 1)):
            yield at, "traceback", text
            continue
        torn = _others(expected, contents(out), earlier)
        again, _, text = run(case.arguments, out)
        yield at, *_judge(expected, contents(out), torn, text if again else "")


def _judge(expected: dict[str, str], found: dict[str, str], torn: list[str], text: str) -> tuple[str, str]:
    if torn:
        return "torn", str(torn)
    missing, more = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    other = _others(expected, found)
    if text and (missing or more or other):
        return "refused", text
    if missing or more:
        return ("incomplete", str(missing)) if missing else ("files left", str(more))
    # Where all is there, that the command does not write over it is right.
    return ("other bytes", str(other)) if other else ("", "")


def _others(
    expected: dict[str, str], found: dict[str, str], earlier: dict[str, str] | None = None
) -> list[str]:
    """Return the files whose bytes are neither those of an undisturbed run nor the earlier ones."""
    same = {name for name in expected if found.get(name) in (None, expected[name], (earlier or {}).get(name))}
    same |= set() if earlier is None else {REWRITTEN}
    return [name for name in expected if name not in same and not name.startswith(TIMED)]


def _begin(case: Case, scene: Path, out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    for name in case.before:
        shutil.copyfile(scene / name, out / name)


def prepare(scene: Path) -> None:
    """Simulate a scene, classify it, and make stacks, a product and a network of it."""
    from rasterio.warp import transform_bounds

    from lulc.demo.landscape import simulate, write_product, write_scene

    simulated = simulate((96, 128), 1)
    write_scene(simulated, scene)
    write_product(simulated, scene / "products")
    grid = simulated.grid
    west, south, east, north = transform_bounds(
        grid.crs, "EPSG:4326", *rasterio.open(scene / "summer.tif").bounds
    )
    (scene / "bounds").write_text(f"{west:.6f} {south:.6f} {east:.6f} {north:.6f}")
    chosen = cases(scene, scene)
    for name in ("map", "stacks", "model as ONNX"):
        status, _, text = run(chosen[name].arguments, scene)
        if status:
            raise SystemExit(text)


def table(results: dict[str, Any]) -> str:
    """Return the rows of the page."""
    rows = ["| command | fault | operations tried | what went wrong |", "|---|---|---|---|"]
    for case, kinds in results.items():
        for word, found in kinds.items():
            wrong = ", ".join(f"{n} {what}" for what, n in sorted(found["wrong"].items())) or "nothing"
            rows.append(f"| {case} | {word} | {found['tried']} | {wrong} |")
    return "\n".join(rows) + "\n"


def main() -> int:
    """Print a row for each command and kind of fault."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--points", type=int, default=0, help="operations tried of each command (0: all)")
    parser.add_argument("--seed", type=int, default=1, help="which operations are tried (default: 1)")
    parser.add_argument("--only", nargs="+", help="names of rows")
    parser.add_argument("--out", type=Path, help="JSON file to which these rows are added")
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
    for module in AHEAD:
        importlib.import_module(module)
    kept = options.out and options.out.exists()
    results: dict[str, Any] = json.loads(options.out.read_text()) if kept else {}
    bad = 0
    with tempfile.TemporaryDirectory() as name:
        scene, out = Path(name).resolve() / "scene", Path(name).resolve() / "out"
        scene.mkdir()
        prepare(scene)
        print(table({}), end="", flush=True)
        for row, case in cases(scene, out).items():
            if options.only and row not in options.only:
                continue
            results[row] = {}
            for kind, word in FAULTS:
                found: Counter[str] = Counter()
                rng = random.Random(f"{options.seed} {row} {word}")
                for at, what, details in faults(case, scene, out, kind, options.points, rng):
                    found[what] += 1
                    if what:
                        print(
                            f"{row}, {word} at {at}: {what}: {details[-1500:]}", file=sys.stderr, flush=True
                        )
                bad += found.total() - found[""]
                results[row][word] = {"tried": found.total(), "wrong": {k: n for k, n in found.items() if k}}
            print(table({row: results[row]}).split("\n", 2)[2], end="", flush=True)
            if options.out:
                options.out.write_text(json.dumps(results, indent=1) + "\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
