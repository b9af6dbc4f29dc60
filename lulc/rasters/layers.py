"""Interface of raster sources of all formats: named layers on one north-up grid."""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import numpy as np

from lulc.core.grid import GridSpec
from lulc.core.schema import InputError
from lulc.core.storage import Resource
from lulc.core.windows import Window
from lulc.rasters.missing import NOTHING, Missing, declared_missing, odd_values

logger = logging.getLogger("lulc")

UNIT = 10_000.0
"""Whole numbers per reflectance in the products of Sentinel-2."""

OFFSET_APPLIED = ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied")
"""Properties that say that the archive has applied the offset to the DN, although the bands declare it."""

WHOLE_BYTES = 256 * 2**20
"""Files up to this size are hashed whole."""

OPACITY = "alpha|opacity|(data|valid)_?mask"
"""Names of opacity layers, which are 0 where a pixel is missing."""

_IMPOSSIBLE = 2.0
_SAMPLES, _SAMPLE_BYTES, _END_BYTES = 256, 64 * 2**10, 2**20


@dataclass(frozen=True)
class Layer:
    """One layer of a raster, as its file declares it.

    Parameters
    ----------
    name
        Band or index (``B8A``, ``NDVI``) where one is recognised, else the file's own description; None
        without one.
    scale, offset
        reflectance = (stored + offset) x scale by the file's metadata; None where these lack them.
    alpha
        True for an opacity layer, which holds no data of its own.
    packing
        (factor, addend) of any quantity: value = stored x factor + addend.
    plain
        True where the file says that the values have no unit, like fractions of 1.
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
        """First no-data value; None without one."""
        return next(iter(self.missing.values), None)

    def unpack(self, stored: np.ndarray) -> np.ndarray:
        """Unpack stored values to float64; return them as they are if they are not packed."""
        if self.packing == (1.0, 0.0):
            return stored
        factor, addend = self.packing
        return stored * np.float64(factor) + addend


class Source(Resource, abc.ABC):
    """A raster that was checked before it was opened; a context manager.

    A source belongs to one thread; `reopen` opens it for another thread.

    Attributes
    ----------
    block
        (rows, columns) that the file stores together.
    ordered
        False where the order of the layers has no meaning, as that of variables in a Zarr folder.
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
        """Read some layers, north up: array (band, y, x) of the stored dtype.

        `layers` are positions in `Source.layers`, counted from 0; the window is inside the grid. Raises
        InputError if the file is damaged there.
        """

    def read_mask(self, layers: Sequence[int], window: Window, step: int = 1) -> np.ndarray | None:
        """Read the masks and alpha of the file: bool (band or 1, y, x), False where a pixel is missing.

        None where the file masks nothing; `step` as in `read_every`.
        """
        return None

    def read_valid(
        self, layers: Sequence[int], window: Window, step: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """Read stored values and, bool, where they are not missing (see `lulc.rasters.missing`); both (band,
        y, x).

        Both have every `step`-th row and column, as `read_every` gives them.
        """
        values = self.read(layers, window) if step == 1 else self.read_every(step, layers, window)
        valid = np.stack([self.layers[i].missing.present(v) for i, v in zip(layers, values, strict=True)])
        mask = self.read_mask(layers, window, step)
        if mask is not None:
            valid &= mask
        return values, valid

    def read_every(self, step: int, layers: Sequence[int], window: Window) -> np.ndarray:
        """Read about every `step`-th row and column for pictures, quickly where there are overviews.

        Array (band, ceil(y / step), ceil(x / step)) of the stored dtype; the reader chooses the pixels
        nearby.
        """
        return self.read(layers, window)[:, ::step, ::step]

    def palette(self) -> Mapping[int, str]:
        """Value to ``#rrggbb`` in the colour table of the first layer; empty without one."""
        return {}

    def attributes(self) -> Mapping[str, Any]:
        """Metadata of the first layer, as the file declares them."""
        return {}

    def table(self) -> bytes:
        """Raster attribute table or category names inside the file, as GDAL's XML; empty without any."""
        return b""

    def use_alpha(self) -> None:
        """Treat opacity layers as data, since names were given to them."""
        self.layers = tuple(dataclasses.replace(layer, alpha=False) for layer in self.layers)

    @abc.abstractmethod
    def reopen(self) -> Self:
        """Open the same raster once more, for another thread."""

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

    Some metadata contradict themselves: an offset beyond 2 can't be reflectance and is DN, and whole numbers
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


def declared_layer(
    path: str, attributes: Mapping[str, Any], dtype: str, packing: tuple[float, float], units: str, *,
    nodata: float | None = None, odd: Sequence[str] = (), where: str = "",
) -> Layer:  # fmt: skip
    """Return a layer, without its name, as attributes declare it; ignore impossible values with a warning.

    Parameters
    ----------
    packing
        (factor, addend): value = stored x factor + addend.
    nodata
        No-data value of the file, which those of the layer replace.
    odd, where
        Further attributes that are ignored, and the position of all these in the file, for the warning.
    """
    factor, addend = packing
    odd_packing = [f"scale '{factor}'"] if factor == 0 or not np.isfinite(factor) else []
    odd_packing += [] if np.isfinite(addend) else [f"offset '{addend}'"]
    for attribute in dict.fromkeys((*odd_packing, *odd_values(attributes, dtype), *odd)):
        logger.warning(
            "'%s' says %s%s, which is not used, since it is no valid number; give it with --nodata, --scale "
            "or --offset", path, where, attribute,
        )  # fmt: skip
    if odd_packing:
        factor, addend = 1.0, 0.0
    scale, offset = declared_scaling(factor, addend, dtype, units=units)
    missing = declared_missing(attributes, nodata, dtype=dtype, scale=factor, offset=addend)
    # CF writes reflectance from 0 to 1 in these units.
    no_unit = units.strip().lower() in ("1", "unitless", "dimensionless", "fraction", "reflectance")
    plain = np.dtype(dtype).kind == "f" and no_unit
    return Layer(None, dtype, missing, scale, offset, packing=(factor, addend), plain=plain)


def baseline_offset(*properties: Mapping[str, Any], name: str = "") -> float | None:
    """Return the offset of DN by the processing baseline in properties of STAC items or a product's name.

    None without the baseline, for an earlier one, or where the archive has removed the offset.
    """
    stated = max(_baseline_of_name(name), *map(_baseline_of, properties), 0.0)
    return -1000.0 if stated >= 4 and not any(map(is_offset_applied, properties)) else None


def _baseline_of(properties: Mapping[str, Any]) -> float:
    """Return the processing baseline in the properties of a STAC item; 0 without one."""
    for key in ("s2:processing_baseline", "sentinel2:processing_baseline", "processing_baseline",
                "processing:baseline", "processing:version"):  # fmt: skip
        text = str(properties.get(key, ""))
        if re.fullmatch(r"\d?\d\.\d\d", text):
            return float(text)
    names = (str(properties.get(key, "")) for key in ("s2:product_uri", "sentinel:product_id", "title"))
    return next(filter(None, map(_baseline_of_name, names)), 0.0)


def _baseline_of_name(name: str) -> float:
    named = re.search(r"MSIL[12]\w_\d{8}T\d{6}_N(?!99)(\d\d)(\d\d)_", name)
    return float(".".join(named.groups())) if named else 0.0


def is_offset_applied(properties: Mapping[str, Any]) -> bool:
    """True where a STAC item says that the archive has removed the offset."""
    return any(properties.get(name) for name in OFFSET_APPLIED)


def attribute_scaling(attributes: Mapping[str, Any], path: str) -> tuple[float, float]:
    """(factor, addend) of CF packing: value = stored x factor + addend; raises InputError if one is no
    number.
    """

    def number(key: str, default: float) -> float:
        value = attributes.get(key, default)
        try:
            return float(np.ravel(value)[0])
        except (TypeError, ValueError, IndexError) as error:
            raise InputError(
                f"cannot use '{path}', since its attributes hold the {key} '{str(value)[:40]}', "
                "expected a number",
                "Correct the attribute, or remove it and give --scale and --offset.",
            ) from error

    return number("scale_factor", 1.0), number("add_offset", 0.0)


def check_grid(name: str, grid: GridSpec) -> None:
    """Refuse a raster that has no CRS, or is rotated, sheared or not north-up."""
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
    """Return ``name``, ``bytes`` and ``sha256`` of a file or folder, for journals and manifests.

    The hash covers a file up to 256 MiB whole; of a larger one, and of any where `sampled` is True, its size,
    its first and last MiB and 256 samples of 64 KiB at even distances. That of a folder covers the names,
    sizes and (likewise) contents of its files.
    """
    digest = hashlib.sha256()
    total = 0
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            size = file.stat().st_size
            total += size
            digest.update(f"{file.relative_to(path).as_posix()}\0{size}\0".encode())
            _hash_content(digest, file, size, sampled=total > WHOLE_BYTES)
    else:
        total = path.stat().st_size
        sampled = sampled or total > WHOLE_BYTES
        if sampled:
            digest.update(f"{total}\0".encode())
        _hash_content(digest, path, total, sampled=sampled)
    return {"name": path.name, "bytes": total, "sha256": digest.hexdigest()}


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
