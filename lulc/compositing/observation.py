"""Observations: the scenes of one day, read as one cloud-free image."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import logging
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import rasterio

from lulc.compositing.catalog import FoundScene
from lulc.compositing.scene_list import place_of
from lulc.config import InputConfig, MosaicConfig
from lulc.core.grid import GridSpec
from lulc.core.schema import InputError
from lulc.core.threads import in_order
from lulc.core.windows import Window
from lulc.rasters.items import asset_place
from lulc.rasters.scenes import Scene, Scenes, lay_scene

ATTEMPTS = 6
"""Attempts to read a remote scene; the wait between them doubles each time."""

FIRST_WAIT = 1.0
"""Seconds before the second attempt."""

OPEN = 48
"""Observations that are open at once: 500 files, if a tile has a file for each band."""

GDAL: dict[str, Any] = {
    # After temporary errors; GDAL doubles the delay each time.
    "GDAL_HTTP_MAX_RETRY": 3,
    "GDAL_HTTP_RETRY_DELAY": 0.5,
    "GDAL_HTTP_CONNECTTIMEOUT": 10,
    "GDAL_HTTP_TIMEOUT": 120,
    "GDAL_HTTP_MULTIRANGE": "YES",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "CPL_VSIL_CURL_NON_CACHED": "/vsicurl/:/vsis3/:/vsigs/:/vsiaz/",
    # In bytes, since rasterio hands it to GDALSetCacheMax.
    "GDAL_CACHEMAX": 256 * 2**20,
}
"""GDAL's settings for remote files."""

_REMOTE = re.compile(r"^cannot read .*(https?|s3|gs|az)://|/vsi(curl|s3|gs|az)[/?]")
"""Pattern of error messages about remote files, which may be temporary."""

Result = TypeVar("Result")

logger = logging.getLogger("lulc")


@dataclass(frozen=True)
class Observation:
    """The scenes of one day on the grid of the mosaic.

    Parameters
    ----------
    cloud
        Mean cloud cover of the scenes in percent; None where it is unknown.
    scenes
        Tiles; where they overlap, the first valid pixel is taken.
    """

    day: datetime.date
    cloud: float | None
    names: tuple[str, ...]
    scenes: tuple[Scene, ...]

    @property
    def offsets(self) -> dict[str, dict[str, float]]:
        """Offset of the digital numbers of each band, by scene."""
        named = zip(self.names, self.scenes, strict=True)
        return {name: {b: band["offset"] for b, band in s.described.items()} for name, s in named}

    def touches(self, window: Window) -> bool:
        """Return True if a scene has a pixel of the window."""
        return any(all(window.intersect(scene.place).shape) for scene in self.scenes)


class Reader:
    """Reader of observations for several threads, which keeps a few of them open; `names` are its bands."""

    def __init__(
        self, observations: Sequence[Observation], grid: GridSpec, names: Sequence[str], config: InputConfig
    ) -> None:
        self.observations = tuple(observations)
        self._grid = grid
        self._names = tuple(names)
        self._config = config
        self._idle: OrderedDict[int, Scenes] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, number: int, window: Window, out: np.ndarray) -> None:
        """Fill `out`, float32 (band, y, x), with an observation, NaN where it is missing."""
        valid = np.zeros(out.shape, bool)
        slots = {name: i for i, name in enumerate(self._names)}

        def attempt() -> None:
            with self._lend(number) as scenes:
                scenes.read(window, out, valid, slots)

        observation = self.observations[number]
        retrying(attempt, observation.scenes[0].paths[0])
        np.copyto(out, np.float32(np.nan), where=~valid)

    @contextlib.contextmanager
    def _lend(self, number: int) -> Iterator[Scenes]:
        """Lend the open scenes of an observation to one thread; after an error they are closed."""
        with self._lock:
            scenes = self._idle.pop(number, None)
        if scenes is None:
            scenes = Scenes(self.observations[number].scenes, self._grid, self._names, self._config)
        try:
            with rasterio.Env(**GDAL):
                yield scenes
        except BaseException:
            scenes.close()
            raise
        with self._lock:
            self._idle[number] = scenes
            oldest = self._idle.popitem(last=False)[1] if len(self._idle) > OPEN else None
        if oldest is not None:
            oldest.close()

    def close(self) -> None:
        while self._idle:
            self._idle.popitem()[1].close()


def retrying(function: Callable[[], Result], place: str) -> Result:
    """Call a function that reads a remote file; after temporary errors call it again, with growing waits."""
    for attempt in itertools.count(1):
        try:
            return function()
        except InputError as error:
            _refuse_gone(error)
            if _REMOTE.search(error.problem) is None:
                raise
            if attempt == ATTEMPTS:
                hint = "The server may be back later: the same command continues where this one stopped."
                raise InputError(f"{error.problem} (tried {ATTEMPTS} times)", hint) from error
            wait = FIRST_WAIT * 2 ** (attempt - 1)
            logger.warning("reading '%s' failed and is tried again in %.0f s: %s", place, wait, error.problem)
        time.sleep(wait)
    raise AssertionError


def _refuse_gone(error: InputError) -> None:
    """Raise an error with another hint for a server's answer that waiting doesn't change."""
    if re.search(r"response code: (400|401|403|404|410)\b", error.problem):
        raise InputError(
            error.problem,
            "The file is gone, or its server needs credentials (environment variables). To go on without the "
            "scene, remove it from the list beside OUT (OUT_scenes.json), and give that list with --scenes "
            "and --allow-remote.",
        ) from error


def input_config(config: MosaicConfig) -> InputConfig:
    """Return the options with which the scenes of a mosaic are read."""
    values = config.clouds
    if config.cloud_probability is not None:
        # Masks take these values for percent, and refuse other codings.
        values = tuple(range(config.cloud_threshold, 256))
    return InputConfig(
        resample=True, allow_remote=is_remote(config), mask_values=values, grow_mask=config.grow_clouds,
        scale=config.scale, offset=config.offset,
    )  # fmt: skip


def lay_out(
    found: Sequence[FoundScene], grid: GridSpec, config: MosaicConfig, listed: Path,
    progress: Callable[[], object],
) -> list[Observation]:  # fmt: skip
    """Open scenes, many at a time, and return the observations of those with a pixel of the grid.

    Both are in the order of time. `listed` is the list of scenes, with the items of remote scenes; `progress`
    is called after each scene.
    """
    days: dict[datetime.date, list[tuple[FoundScene, Scene]]] = {}

    def lay(scene: FoundScene) -> Scene | None:
        return retrying(lambda: _lay(scene, grid, config, listed), scene.id)

    with ThreadPoolExecutor(config.connections) as pool:
        laid_out = in_order(lay, found, pool, config.connections)
        for scene, laid in zip(found, laid_out, strict=True):
            progress()
            if laid is not None:
                days.setdefault(scene.when.date(), []).append((scene, laid))
    observations = []
    for day, parts in days.items():
        clouds = [scene.cloud for scene, _ in parts if scene.cloud is not None]
        mean = sum(clouds) / len(clouds) if clouds else None
        names = tuple(scene.id for scene, _ in parts)
        observations.append(Observation(day, mean, names, tuple(laid for _, laid in parts)))
    return observations


def _lay(found: FoundScene, grid: GridSpec, config: MosaicConfig, listed: Path) -> Scene | None:
    with rasterio.Env(**GDAL):
        path = place_of(found, listed)
        mask = _mask_of(found, path, config)
        return lay_scene([path], grid, input_config(config), config.band_names, mask)


def _mask_of(found: FoundScene, path: str, config: MosaicConfig) -> str | None:
    """Return the cloud mask that replaces the scene classification; None for the latter."""
    if config.masks is not None:
        return config.masks.replace("{id}", found.id).replace("{date}", found.when.date().isoformat())
    if config.cloud_probability is None:
        return None
    asset = None
    if found.item:
        asset = asset_place(path, config.cloud_probability, allow_remote=is_remote(config))
    if asset is None:
        raise InputError(
            f"cannot leave out clouds of '{found.id}', since it has no asset '{config.cloud_probability}'",
            "Name another asset with --cloud-probability, or leave it out to use the scene classification.",
        )
    return asset


def ranked(observations: Sequence[Observation], rule: str, near: datetime.date | None) -> list[Observation]:
    """Return the observations in the order that a rule prefers, by default that of time."""
    if rule != "best":
        return list(observations)
    if near is not None:
        return sorted(observations, key=lambda one: (abs(one.day - near), one.day))
    return sorted(observations, key=lambda one: (101.0 if one.cloud is None else one.cloud, one.day))


def is_remote(config: MosaicConfig) -> bool:
    """Return True if the user allows connections."""
    return config.catalog is not None or config.allow_remote
