"""Observations: the scenes of one day, read as one image without clouds."""

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

from lulc.compositing.catalog import Found
from lulc.compositing.scene_list import place_of
from lulc.config import InputConfig, MosaicConfig
from lulc.core.grid import GridSpec
from lulc.core.schema import InputError
from lulc.core.threads import in_order
from lulc.core.windows import Window
from lulc.rasters.items import asset_place
from lulc.rasters.scenes import Scene, Scenes, lay_scene

ATTEMPTS = 6
"""Times that a scene at an address is read before the run gives up; the waits in between double."""

FIRST_WAIT = 1.0
"""Seconds before the second attempt."""

OPEN = 48
"""Observations that are open at once; with a file for each band of a tile these are 500 files."""

GDAL: dict[str, Any] = {
    # A server's answers of this kind pass; GDAL itself waits twice as long each time.
    "GDAL_HTTP_MAX_RETRY": 3,
    "GDAL_HTTP_RETRY_DELAY": 0.5,
    "GDAL_HTTP_CONNECTTIMEOUT": 10,
    "GDAL_HTTP_TIMEOUT": 120,
    "GDAL_HTTP_MULTIRANGE": "YES",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "CPL_VSIL_CURL_NON_CACHED": "/vsicurl/:/vsis3/:/vsigs/:/vsiaz/",
    # In bytes: rasterio hands it to GDALSetCacheMax, which takes no MB.
    "GDAL_CACHEMAX": 256 * 2**20,
}
"""GDAL's settings for reading at addresses."""

_REMOTE = re.compile(r"^cannot read .*(https?|s3|gs|az)://|/vsi(curl|s3|gs|az)[/?]")
"""Message of an error that may pass; a damaged file on this machine, and odd values, stay as they are."""

Result = TypeVar("Result")

logger = logging.getLogger("lulc")


@dataclass(frozen=True)
class Observation:
    """The scenes of one day on the grid of the mosaic.

    Parameters
    ----------
    cloud
        Mean cloud cover of the scenes in percent; None where it isn't said.
    scenes
        Tiles; where they overlap, the first that has a pixel gives it.
    """

    day: datetime.date
    cloud: float | None
    names: tuple[str, ...]
    scenes: tuple[Scene, ...]

    @property
    def offsets(self) -> dict[str, dict[str, float]]:
        """Scene to what is added to the digital numbers of each band."""
        named = zip(self.names, self.scenes, strict=True)
        return {name: {b: said["offset"] for b, said in s.described.items()} for name, s in named}

    def touches(self, window: Window) -> bool:
        """True where a scene has a pixel of the window."""
        return any(all(window.intersect(scene.place).shape) for scene in self.scenes)


class Reader:
    """Reads observations, from several threads; keeps a few open.

    Parameters
    ----------
    names
        Bands, in the order in which they are read.
    """

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
        """Fill `out`, float32 (band, y, x), with an observation; NaN where it is missing."""
        valid = np.zeros(out.shape, bool)
        slots = {name: i for i, name in enumerate(self._names)}

        def attempt() -> None:
            with self._taken(number) as scenes:
                scenes.read(window, out, valid, slots)

        observation = self.observations[number]
        retrying(attempt, observation.scenes[0].paths[0])
        np.copyto(out, np.float32(np.nan), where=~valid)

    @contextlib.contextmanager
    def _taken(self, number: int) -> Iterator[Scenes]:
        """Give the open scenes of an observation to one thread; what failed is closed."""
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
            late = self._idle.popitem(last=False)[1] if len(self._idle) > OPEN else None
        if late is not None:
            late.close()

    def close(self) -> None:
        while self._idle:
            self._idle.popitem()[1].close()


def retrying(function: Callable[[], Result], place: str) -> Result:
    """Call a function that reads at an address again where it fails, after growing waits."""
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
    """Raise an error of its own for an answer that no waiting changes."""
    if re.search(r"response code: (400|401|403|404|410)\b", error.problem):
        raise InputError(
            error.problem,
            "The file has gone, or its server wants credentials (from the environment). To go on without the "
            "scene, take it out of the list beside OUT (OUT_scenes.json), and give that with --scenes and "
            "--allow-remote.",
        ) from error


def input_config(config: MosaicConfig) -> InputConfig:
    """Return how the scenes of a mosaic are read."""
    values = config.clouds
    if config.cloud_probability is not None:
        # By these masks know percent, and refuse other codings.
        values = tuple(range(config.cloud_threshold, 256))
    return InputConfig(
        resample=True,
        allow_remote=is_remote(config),
        mask_values=values,
        grow_mask=config.grow_clouds,
        scale=config.scale,
        offset=config.offset,
    )


def lay_out(
    found: Sequence[Found], grid: GridSpec, config: MosaicConfig, listed: Path, note: Callable[[], object]
) -> list[Observation]:
    """Open the scenes, many at a time, and lay those on the grid that have a pixel of it.

    Parameters
    ----------
    found
        In the order of time.
    listed
        The list that holds the items of scenes at addresses.

    Returns
    -------
    list of Observation
        In the order of time.
    """
    days: dict[datetime.date, list[tuple[Found, Scene]]] = {}

    def lay(scene: Found) -> Scene | None:
        return retrying(lambda: _lay(scene, grid, config, listed), scene.id)

    with ThreadPoolExecutor(config.connections) as pool:
        laid_out = in_order(lay, found, pool, config.connections)
        for scene, laid in zip(found, laid_out, strict=True):
            note()
            if laid is not None:
                days.setdefault(scene.when.date(), []).append((scene, laid))
    observations = []
    for day, parts in days.items():
        clouds = [scene.cloud for scene, _ in parts if scene.cloud is not None]
        mean = sum(clouds) / len(clouds) if clouds else None
        names = tuple(scene.id for scene, _ in parts)
        observations.append(Observation(day, mean, names, tuple(laid for _, laid in parts)))
    return observations


def _lay(found: Found, grid: GridSpec, config: MosaicConfig, listed: Path) -> Scene | None:
    with rasterio.Env(**GDAL):
        place = place_of(found, listed)
        return lay_scene(
            [place], grid, input_config(config), config.band_names, _mask_of(found, place, config)
        )


def _mask_of(found: Found, place: str, config: MosaicConfig) -> str | None:
    """Return the raster that is read instead of the scene classification; None for the latter."""
    if config.masks is not None:
        return config.masks.replace("{id}", found.id).replace("{date}", found.when.date().isoformat())
    if config.cloud_probability is None:
        return None
    asset = (
        asset_place(place, config.cloud_probability, allow_remote=is_remote(config)) if found.item else None
    )
    if asset is None:
        raise InputError(
            f"cannot leave out clouds of '{found.id}', since it has no asset '{config.cloud_probability}'",
            "Name another asset with --cloud-probability, or leave it out to use the scene classification.",
        )
    return asset


def ranked(observations: Sequence[Observation], rule: str, near: datetime.date | None) -> list[Observation]:
    """Return the observations in the order that a rule prefers; in that of time where it has none."""
    if rule != "best":
        return list(observations)
    if near is not None:
        return sorted(observations, key=lambda one: (abs(one.day - near), one.day))
    return sorted(observations, key=lambda one: (101.0 if one.cloud is None else one.cloud, one.day))


def is_remote(config: MosaicConfig) -> bool:
    """True where the user asked for connections."""
    return config.catalog is not None or config.allow_remote
