"""Fixtures that several test modules use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="a skipped test fails the run, as in CI")


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

    from lulc.arrays import NpyWriter
    from lulc.grid import GridSpec
    from lulc.manifest import Manifest, StackFile
    from lulc.schema import LandCoverClass, Legend
    from lulc.statistics import Statistics
    from lulc.storage import sha256_of
    from lulc.windows import Window

    def write(
        folder: Path,
        splits: tuple[str, ...] = ("train", "train", "val"),
        *,
        side: int = 96,
        bands: int = 3,
        classes: int = 3,
        seed: int = 0,
        east: float = 0.0,
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
            masks = np.kron(
                rng.integers(1, len(legend) + 1, (-(-side // 12),) * 2), np.ones((12, 12), int)
            )[:side, :side].astype(np.uint8)
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
        Manifest(folder, channels, "test", legend, tuple(stacks), merged or statistics).write()
        return folder

    return write
