"""Fixtures that several test modules use."""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import re
import runpy
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="a skipped test fails the run, as in CI")
    parser.addoption("--unit", action="store_true", help="unit tests alone, held to what they must not do")


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts what runs in its background with Ctrl-C ignored, and so would all that tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("--unit"):
        guard = Path(__file__).with_name("unit_guard")
        os.environ["PYTHONPATH"] = os.pathsep.join([str(guard), os.environ.get("PYTHONPATH", "")])
        runpy.run_path(str(guard / "sitecustomize.py"))
        # Examples in modules that need a framework are for the whole suite.
        config.option.doctest_ignore_import_errors = True


INTEGRATION = re.compile(r"^pytestmark = \[?\s*pytest\.mark\.integration\b", re.MULTILINE)
"""How a module says that all its tests are integration tests; such a module is not even imported."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if collection_path.parent.name == "unit_guard":
        return True  # importing it for its doctests would set it on every later test of this process
    if not config.getoption("--unit") or collection_path.suffix != ".py":
        return None
    return bool(INTEGRATION.search(collection_path.read_text(encoding="utf-8"))) or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if {"tiny_model", "demonstration"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.integration)
    if config.getoption("--unit"):
        others = [i for i in items if any(map(i.get_closest_marker, ("integration", "documents", "stress")))]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if session.config.getoption("--no-skips") and reporter and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of facts and real rasters beside the checkout; tests skip where it is absent."""
    folder = Path(__file__).resolve().parents[1].parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("needs the folder 'shared' with real rasters beside the checkout")
    return folder


@pytest.fixture(scope="session")
def write_stacks() -> Callable[..., Path]:
    """A function that writes a folder of stacks with its manifest: patches of classes, plus noise."""
    from affine import Affine
    from rasterio.crs import CRS

    from lulc.core.grid import GridSpec
    from lulc.core.schema import LandCoverClass, Legend
    from lulc.core.statistics import Statistics
    from lulc.core.storage import sha256_of
    from lulc.core.windows import Window
    from lulc.datasets.arrays import NpyWriter
    from lulc.datasets.manifest import Manifest, StackFile

    def write(
        folder: Path,
        splits: tuple[str, ...] = ("train", "train", "val"),
        *,
        side: int = 96,
        bands: int = 3,
        classes: int = 3,
        seed: int = 0,
        east: float = 0.0,
        gap: int | None = 0,
        legend: Legend | None = None,
        change: Callable[[str, np.ndarray, np.ndarray], None] | None = None,
    ) -> Path:
        rng = np.random.default_rng(seed)
        legend = legend or Legend(
            "test", tuple(LandCoverClass(i, f"class {i}", "#102030") for i in range(1, classes + 1))
        )
        folder.mkdir(parents=True, exist_ok=True)
        stacks, merged = [], None
        for i, split in enumerate(splits):
            masks = np.kron(rng.integers(1, len(legend) + 1, (-(-side // 12),) * 2), np.ones((12, 12), int))[
                :side, :side
            ].astype(np.uint8)
            centres = np.random.default_rng(1).uniform(300, 3000, (255, bands))
            image = (centres[masks - 1] + rng.normal(0, 150, (side, side, bands))).astype(np.float32)
            image[rng.random((side, side)) < 0.01] = np.nan
            masks[rng.random((side, side)) < 0.05] = 255
            if change:
                change(f"{split}_{i}", image, masks)
            paths = [folder / f"{split}_{kind}_{i}.npy" for kind in ("image", "masks")]
            for path, array in zip(paths, (image, masks), strict=True):
                with NpyWriter(path, array.dtype, array.shape) as writer:
                    writer.write(array)
            valid = ~np.isnan(image).any(-1)
            statistics = Statistics.of(image)
            counts = np.bincount(masks[valid], minlength=256)[1 : len(legend) + 1]
            transform = Affine(10, 0, 500000 + east + 10 * side * i, 0, -10, 6700000)
            stacks.append(StackFile(
                f"{split}_{i}", split, paths[0], paths[1], (side, side), tuple(int(n) for n in counts), i,
                GridSpec(CRS.from_epsg(3067), transform, side, side), Window(0, side * i, side, side),
                statistics, (sha256_of(paths[0]), sha256_of(paths[1])),
            ))  # fmt: skip
            if split == "train":
                merged = statistics if merged is None else merged.merge(statistics)
        channels: tuple[dict[str, Any], ...] = tuple(
            {"name": f"B{b + 2:02d}", "unit": "reflectance x 10000", "coding": "read"} for b in range(bands)
        )
        parameters = {} if gap is None else {"gap": gap}
        whole = merged or statistics
        Manifest(folder, channels, "test", legend, tuple(stacks), whole, parameters=parameters).write()
        return folder

    return write


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A port of this machine that nobody may have called when the test ends."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.fixture(scope="session")
def unread() -> Callable[[Path], contextlib.AbstractContextManager[None]]:
    """A context manager in which nobody may open a file; the kernel says so (inotify).

    Python's audit hooks don't see what GDAL and HDF5 open.
    """
    kernel = ctypes.CDLL(None, use_errno=True)
    opened, nonblocking = 0x20, 0x800

    @contextlib.contextmanager
    def watch(path: Path) -> Iterator[None]:
        descriptor = kernel.inotify_init1(nonblocking)
        if descriptor < 0:
            pytest.skip("needs inotify, which this machine does not give")
        try:
            assert kernel.inotify_add_watch(descriptor, os.fsencode(path), opened) >= 0
            yield
            with pytest.raises(BlockingIOError):
                os.read(descriptor, 4096)
        finally:
            os.close(descriptor)

    return watch


@pytest.fixture(scope="session")
def write_map() -> Callable[..., Path]:
    """A function that writes a map as make_classifications.py does: patches, a corner without data."""
    from concurrent.futures import ThreadPoolExecutor

    from affine import Affine
    from rasterio.crs import CRS

    from lulc.core.grid import GridSpec
    from lulc.core.schema import LandCoverClass, Legend
    from lulc.core.windows import Window
    from lulc.maps.geotiff import MapProfile, assemble, write_part

    def write(
        path: Path,
        *,
        shape: tuple[int, int] = (70, 90),
        names: tuple[str, ...] = ("Water & ice", "Forest", "Peltoja å"),
        activations: str = "float32",
        epsg: int = 3067,
        origin: tuple[float, float] = (500_000.0, 6_700_000.0),
        pixel: float = 10.0,
        unclassified: bool = False,
        tags: dict[str, str] | None = None,
        seed: int = 0,
        legend: Legend | None = None,
    ) -> Path:
        rng = np.random.default_rng(seed)
        legend = legend or Legend(
            "test", tuple(LandCoverClass(i, n, f"#{40 * i:02x}a0{i:02x}") for i, n in enumerate(names, 1))
        )
        names = legend.names
        grid = GridSpec(CRS.from_epsg(epsg), Affine(pixel, 0, origin[0], 0, -pixel, origin[1]), *shape)
        known = {"LULC_LEGEND": json.dumps(legend.to_json()), "LULC_VERSION": "0.1.0", **(tags or {})}
        profile = MapProfile(grid, legend, activations, 256, known)
        patches = rng.dirichlet([0.3] * max(2, len(names)), tuple(-(-n // 8) for n in shape))
        values = np.kron(patches, np.ones((8, 8, 1)))[: shape[0], : shape[1], : len(names)].astype("f4")
        classes = (values.argmax(-1) + 1) if len(names) > 1 else (values[..., 0] >= 0.5).astype(int)
        if unclassified:
            classes[values.max(-1) < 0.6] = 0
        valid = np.ones(shape, bool)
        valid[: shape[0] // 3, : shape[1] // 4] = False
        stored = profile.encoding.apply(classes, values, valid)
        with ThreadPoolExecutor(2) as pool:
            parts = []
            for row in range(0, shape[0], 256):
                for col in range(0, shape[1], 256):
                    extent = Window(row, col, min(256, shape[0] - row), min(256, shape[1] - col))
                    part = path.with_name(f"{path.name}-{row}-{col}.part")
                    with write_part(part, profile, extent, pool) as writer:
                        writer.write(extent, stored[(slice(None), *extent.slices)])
                    parts.append((extent, part))
            assemble(profile, parts, path, pool)
        for _, part in parts:
            part.unlink()
        return path

    return write


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a network of 3 classes for the nine bands, with their card."""
    from lulc.core.schema import BANDS, LandCoverClass, Legend
    from lulc.core.statistics import Statistics
    from lulc.models.card import Channel, ModelCard
    from lulc.models.config import NetworkConfig
    from lulc.models.unet import build_unet, geometry
    from lulc.models.weights import save_model

    network = NetworkConfig(classes=3, channels=9, filters=(2,))
    reach = geometry(network)
    card = ModelCard(
        name="tiny",
        channels=tuple(map(Channel, BANDS)),
        network=network,
        statistics=Statistics((1800.0,) * 9, (900.0,) * 9),
        legend=Legend("test", tuple(LandCoverClass(i, f"class {i}", "#102030") for i in (1, 2, 3))),
        stride=reach.stride,
        halo=reach.halo,
    )
    path = tmp_path_factory.mktemp("model") / "tiny.keras"
    save_model(build_unet(network, (np.full(9, 1800.0), np.full(9, 900.0))), card, path)
    return path


@pytest.fixture(scope="session")
def write_bands() -> Callable[..., Path]:
    """A function that writes digital numbers of the nine bands, 0 where there is none, or labels 1..6."""
    import rasterio
    from affine import Affine

    from lulc.core.schema import BANDS

    def write(path: Path, height: int, width: int, *, labels: bool = False, seed: int = 0) -> Path:
        rng = np.random.default_rng(seed)
        if labels:
            layers = (np.add.outer(np.arange(height) // 24, np.arange(width) // 28) % 6 + 1)[np.newaxis]
        else:
            layers = rng.integers(200, 3500, (9, height, width))
            layers[:, rng.random((height, width)) < 0.05] = 0
        profile = {"driver": "GTiff", "width": width, "height": height, "count": len(layers), "nodata": 0}
        profile |= {"tiled": True, "blockxsize": 64, "blockysize": 64, "crs": "EPSG:3067"}
        transform = Affine(10, 0, 566000, 0, -10, 6785000)
        dtype = "uint8" if labels else "uint16"
        with rasterio.open(path, "w", dtype=dtype, transform=transform, **profile) as target:
            target.write(layers.astype(dtype))
            target.descriptions = ("class",) if labels else BANDS
        return path

    return write


@pytest.fixture(scope="session")
def demonstration(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder of a short demonstration on a small scene, and what it printed."""
    from lulc.demo import demonstration

    out = tmp_path_factory.mktemp("demonstration") / "demo"
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(demonstration, "SHAPE", (256, 512))
        assert demonstration.main(["--out", str(out), "--epochs", "1", "--steps", "2"]) == 0
    return out, printed.getvalue()
