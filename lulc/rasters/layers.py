"""Interface of every raster source, whatever its format: named layers on one north-up grid."""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import numpy as np

from lulc.core.grid import GridSpec
from lulc.core.schema import InputError
from lulc.core.storage import Resource
from lulc.core.windows import Window
from lulc.rasters.missing import NOTHING, Missing

logger = logging.getLogger("lulc")

UNIT = 10_000.0
"""Whole numbers per reflectance in the products of Sentinel-2."""

BASELINE_OFFSET, OFFSET_SINCE = -1000.0, 4.0
"""What processing baseline 04.00 and later add to DN, to be taken off."""

OFFSET_APPLIED = ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied")
"""Properties that say that the offset, though declared with the bands, was added to the DN already."""

WHOLE_BYTES = 256 * 2**20
"""Files up to this size are hashed whole."""

OPACITY = "alpha|opacity|(data|valid)_?mask"
"""Names of layers that leave a pixel out where they are 0."""

_IMPOSSIBLE = 2.0
_SAMPLES, _SAMPLE_BYTES, _END_BYTES = 256, 64 * 2**10, 2**20


@dataclass(frozen=True)
class Layer:
    """One layer of a raster, as its file declares it.

    Parameters
    ----------
    name
        Band or index name (``B8A``, ``NDVI``) where one is recognised, else the file's own description; None
        where there is none.
    scale, offset
        reflectance = (stored + offset) x scale, as the file's metadata say; None where they don't.
    alpha
        True for a layer of opacity, which is no data layer of its own.
    packing
        (factor, addend) of what the stored values stand for, whatever it is: stored x factor + addend.
    plain
        True where the file says that the values are plain numbers, as fractions of 1 are.
    """

    name: str | None
    dtype: str
    missing: Missing = NOTHING
    scale: float | None = None
    offset: float | None = None
    alpha: bool = False
    packing: tuple[float, float] = (1.0, 0.0)
    plain: bool = False

    @property
    def nodata(self) -> float | None:
        """First value of no data; None where there is none."""
        return next(iter(self.missing.values), None)

    def unpack(self, stored: np.ndarray) -> np.ndarray:
        """Unpack stored values to float64; values that are not packed stay as they are."""
        if self.packing == (1.0, 0.0):
            return stored
        factor, addend = self.packing
        return stored * np.float64(factor) + addend


class Source(Resource, abc.ABC):
    """A raster that was checked before it was opened; a context manager.

    One source belongs to one thread; `reopen` gives another thread its own.

    Attributes
    ----------
    block
        (rows, columns) that the file stores together.
    ordered
        False where the order of the layers says nothing, as that of variables in a Zarr folder.
    driver
        GDAL's name of the format, empty where GDAL doesn't read it.
    """

    path: str
    grid: GridSpec
    layers: tuple[Layer, ...]
    block: tuple[int, int]
    tags: Mapping[str, str] = MappingProxyType({})
    ordered: bool = True
    driver: str = ""

    @abc.abstractmethod
    def read(self, layers: Sequence[int], window: Window) -> np.ndarray:
        """Stored values of some layers.

        Raises InputError if the file is damaged there.

        Parameters
        ----------
        layers
            Positions in `Source.layers`, counted from 0.
        window
            Inside the grid.

        Returns
        -------
        array (band, y, x), the stored dtype
            North up.
        """

    def read_mask(self, layers: Sequence[int], window: Window, step: int = 1) -> np.ndarray | None:
        """Read the pixels that masks and alpha of the file leave in.

        Returns
        -------
        bool (band or 1, y, x)
            False where a pixel is missing; None where the file masks nothing; `step` as in `read_every`.
        """
        return None

    def read_valid(
        self, layers: Sequence[int], window: Window, step: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """Stored values, and where they are there by all that the file says (see `lulc.rasters.missing`).

        Returns
        -------
        values (band, y, x) in the stored dtype, valid bool (band, y, x)
            Of every `step`-th row and column, as `read_every` gives them.
        """
        values = self.read(layers, window) if step == 1 else self.read_every(step, layers, window)
        valid = np.stack([self.layers[i].missing.present(v) for i, v in zip(layers, values, strict=True)])
        mask = self.read_mask(layers, window, step)
        if mask is not None:
            valid &= mask
        return values, valid

    def read_every(self, step: int, layers: Sequence[int], window: Window) -> np.ndarray:
        """About every `step`-th row and column of a window, for pictures: quick where there are overviews.

        Returns
        -------
        array (band, ceil(y / step), ceil(x / step)), the stored dtype
            Pixels near those places; which ones is the reader's choice.
        """
        return self.read(layers, window)[:, ::step, ::step]

    def palette(self) -> Mapping[int, str]:
        """Value to ``#rrggbb`` in the first layer's colour table; empty where there is none."""
        return {}

    def attributes(self) -> Mapping[str, Any]:
        """Metadata of the first layer, as the file declares them."""
        return {}

    def table(self) -> bytes:
        """Raster attribute table or category names inside the file, as GDAL's XML; empty where none are."""
        return b""

    def use_alpha(self) -> None:
        """Take layers that are marked as alpha for data, as their names say they are."""
        self.layers = tuple(dataclasses.replace(layer, alpha=False) for layer in self.layers)

    @abc.abstractmethod
    def reopen(self) -> Self:
        """The same raster, opened once more (for another thread)."""

    @abc.abstractmethod
    def close(self) -> None:
        """Release the file."""

    @property
    def names(self) -> tuple[str | None, ...]:
        return tuple(layer.name for layer in self.layers)

    @property
    def dtypes(self) -> tuple[str, ...]:
        return tuple(layer.dtype for layer in self.layers)

    @property
    def nodata(self) -> tuple[float | None, ...]:
        return tuple(layer.nodata for layer in self.layers)

    @property
    def scales(self) -> tuple[float | None, ...]:
        return tuple(layer.scale for layer in self.layers)

    @property
    def offsets(self) -> tuple[float | None, ...]:
        return tuple(layer.offset for layer in self.layers)

    def identity(self) -> dict[str, Any]:
        """``{"name", "bytes", "sha256"}`` of the file, see `identify`."""
        return identify(Path(self.path))


def declared_scaling(
    scale: float | None, offset: float | None, dtype: str = "uint16", *, units: str = ""
) -> tuple[float | None, float | None]:
    """(scale, offset in DN) of reflectance, from metadata that mean value = stored x scale + offset.

    Metadata contradict themselves at times: an offset beyond 2 is no reflectance but DN, and whole numbers
    with an offset in reflectance and no scale are x 10000, as Sentinel-2 stores them.

    Examples
    --------
    >>> declared_scaling(0.0001, -0.1), declared_scaling(1.0, -1000), declared_scaling(None, -0.1)
    ((0.0001, -1000.0), (None, -1000.0), (None, -1000.0))
    >>> declared_scaling(1.0, 0.0), declared_scaling(0.01, 0.0, units="%")
    ((None, None), (0.0001, 0.0))
    """
    factor, addend = (1.0 if scale is None else float(scale)), (0.0 if offset is None else float(offset))
    if factor == 0 or not np.isfinite([factor, addend]).all():
        return None, None
    if units.strip().lower() in ("%", "percent", "percentage"):
        factor, addend = factor / 100, addend / 100
    if (factor, addend) == (1.0, 0.0):
        return None, None
    whole = np.issubdtype(dtype, np.integer)
    if factor == 1 and (whole or abs(addend) >= _IMPOSSIBLE):
        return None, addend if abs(addend) >= _IMPOSSIBLE else float(np.round(addend * UNIT, 6))
    # Rounded, since -0.1 / 0.0001 is not exactly -1000.
    return factor, addend if abs(addend) >= _IMPOSSIBLE else float(np.round(addend / factor, 6))


def is_plain(dtype: str, units: str) -> bool:
    """True for fractional numbers that have no unit by name, in which CF writes reflectance from 0 to 1."""
    return np.dtype(dtype).kind == "f" and units.strip().lower() in ("1", "unitless", "dimensionless",
                                                                     "fraction", "reflectance")  # fmt: skip


def warn_of_odd(path: str, odd: Iterable[str]) -> None:
    """Warn of attributes that are not used, since no value can mean them; each once."""
    for said in dict.fromkeys(odd):
        logger.warning(
            "'%s' says %s, which is not used, since it is no such number; give it by --nodata, "
            "--scale or --offset", path, said,
        )  # fmt: skip


def odd_scaling(scale: float | None, offset: float | None) -> list[str]:
    """Return the scale that is 0, and scale and offset that are not finite, as ``scale 'nan'``.

    Examples
    --------
    >>> odd_scaling(0.0, float("inf")), odd_scaling(0.0001, None)
    (["scale '0.0'", "offset 'inf'"], [])
    """
    found = []
    if scale is not None and (scale == 0 or not np.isfinite(scale)):
        found.append(f"scale '{scale}'")
    if offset is not None and not np.isfinite(offset):
        found.append(f"offset '{offset}'")
    return found


def baseline_of(properties: Mapping[str, Any]) -> float:
    """Processing baseline that properties of a STAC item state; 0 where they state none."""
    for key in ("s2:processing_baseline", "sentinel2:processing_baseline", "processing_baseline",
                "processing:baseline", "processing:version"):  # fmt: skip
        text = str(properties.get(key, ""))
        if re.fullmatch(r"\d?\d\.\d\d", text):
            return float(text)
    for key in ("s2:product_uri", "sentinel:product_id", "title"):
        if named := baseline_of_name(str(properties.get(key, ""))):
            return named
    return 0.0


def baseline_of_name(name: str) -> float:
    """Processing baseline that the name of a product states; 0 where it states none."""
    named = re.search(r"MSIL[12]\w_\d{8}T\d{6}_N(?!99)(\d\d)(\d\d)_", name)
    return float(".".join(named.groups())) if named else 0.0


def is_offset_applied(properties: Mapping[str, Any]) -> bool:
    """True where properties of a STAC item say that the archive has taken the offset off."""
    return any(properties.get(name) for name in OFFSET_APPLIED)


def attribute_scaling(attributes: Mapping[str, Any], path: str) -> tuple[float, float]:
    """(factor, addend) of CF packing by attributes: value = stored x factor + addend.

    Raises InputError if an attribute is no number.
    """

    def number(key: str, default: float) -> float:
        value = attributes.get(key, default)
        try:
            return float(np.ravel(value)[0])
        except (TypeError, ValueError, IndexError) as error:
            raise InputError(
                f"cannot use '{path}', since its attributes hold the {key} '{str(value)[:40]}', "
                "expected a number",
                "Correct the attribute, or take it out and give --scale and --offset.",
            ) from error

    return number("scale_factor", 1.0), number("add_offset", 0.0)


def check_grid(name: str, grid: GridSpec) -> None:
    """Refuse a raster without CRS, or that is rotated, sheared or not north-up."""
    if not grid.crs:
        raise InputError(
            f"cannot use '{name}', since it has no coordinate reference system, expected one (EPSG:3067)",
            "Assign one to it, before to_netcdf or to_zarr of a file: dataset.rio.write_crs('EPSG:3067')"
            if re.search(r"\.(nc4?|cdf|zarr)\b|^<array>$", name, re.IGNORECASE)
            else "Write it into the file: rio edit-info --crs EPSG:3067 FILE",
        )
    t = grid.transform
    if not np.isfinite(list(t)[:6]).all() or (t.a * t.e == 0 and t.b * t.d == 0):
        what = "its geotransform is degenerate"
    elif t.b != 0 or t.d != 0:
        what = "it is rotated or sheared"
    elif t.a < 0:
        what = "its columns run west"
    elif t.e > 0:
        what = "it is south-up (or has no geotransform)"
    else:
        return
    raise InputError(
        f"cannot use '{name}', since {what} (geotransform {tuple(round(v, 6) for v in t[:6])}), "
        "expected a north-up grid: (pixel width, 0, left, 0, -pixel height, top)",
        "Turn it north-up: gdalwarp IN OUT",
    )


def identify(path: Path, *, sampled: bool = False) -> dict[str, Any]:
    """Return the identity of a file or folder for journals and manifests.

    Parameters
    ----------
    sampled
        Hash a file of any size by samples, as one of many that are large together.

    Returns
    -------
    dict
        ``name`` without folders; ``bytes``; ``sha256`` of the whole content up to 256 MiB. A larger
        file is hashed by its size, its first and last MiB and 256 samples of 64 KiB at even distances;
        a folder by the names, sizes and (likewise) contents of its files.
    """
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        digest = hashlib.sha256()
        total = 0
        for file in files:
            size = file.stat().st_size
            total += size
            digest.update(f"{file.relative_to(path).as_posix()}\0{size}\0".encode())
            _hash_content(digest, file, size, sampled=total > WHOLE_BYTES)
        return {"name": path.name, "bytes": total, "sha256": digest.hexdigest()}
    size = path.stat().st_size
    sampled = sampled or size > WHOLE_BYTES
    digest = hashlib.sha256()
    if sampled:
        digest.update(f"{size}\0".encode())
    _hash_content(digest, path, size, sampled=sampled)
    return {"name": path.name, "bytes": size, "sha256": digest.hexdigest()}


def _hash_content(digest: Any, path: Path, size: int, *, sampled: bool) -> None:
    with open(path, "rb") as file:
        if not sampled or size <= 4 * _END_BYTES:
            while chunk := file.read(_END_BYTES):
                digest.update(chunk)
            return
        digest.update(file.read(_END_BYTES))
        for i in range(1, _SAMPLES):
            file.seek(i * size // _SAMPLES)
            digest.update(file.read(_SAMPLE_BYTES))
        file.seek(size - _END_BYTES)
        digest.update(file.read(_END_BYTES))
