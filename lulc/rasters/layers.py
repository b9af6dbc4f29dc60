"""What every raster source offers, whatever its format: named layers on one north-up grid."""

from __future__ import annotations

import abc
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import numpy as np

from lulc.core.grid import GridSpec
from lulc.core.schema import INDICES, InputError
from lulc.core.storage import Resource
from lulc.core.windows import Window

SENTINEL_BANDS = (
    "B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12",
)  # fmt: skip
"""All bands of Sentinel-2 in the order of its products."""

WHOLE_BYTES = 256 * 2**20
"""Files up to this size are hashed whole."""

_SAMPLES, _SAMPLE_BYTES, _END_BYTES = 256, 64 * 2**10, 2**20

_BAND = re.compile(r"(?:B|BAND[ _]?)0?(1[0-2]|[1-9]|8A)(?=$|[^0-9A-Z])")
_NUMBERED = re.compile(r"BAND[ _]?0?([1-9][0-9]{0,3}|8A)", re.IGNORECASE)


@dataclass(frozen=True)
class Layer:
    """One layer of a raster, as its file declares it.

    Parameters
    ----------
    name
        Canonical band or index name (``B8A``, ``NDVI``) where one is recognised, else the file's own
        description; None where there is none. What ``Band 8`` means only `Source.names` can tell.
    dtype
        numpy name of the stored type.
    nodata
        No-data value that the file declares, in stored values; None where it declares none.
    scale, offset
        reflectance = (stored + offset) x scale, as the file's metadata say; None where they don't.
    """

    name: str | None
    dtype: str
    nodata: float | None = None
    scale: float | None = None
    offset: float | None = None


class Source(Resource, abc.ABC):
    """A raster that was checked before it was opened; a context manager.

    One source belongs to one thread; `reopen` gives another thread its own.

    Attributes
    ----------
    path
        File or folder (or address, with ``--allow-remote``).
    grid
        North-up grid of all layers.
    layers
        What each layer is, in file order.
    block
        (rows, columns) that the file stores together.
    tags
        Metadata of the whole file, as it declares them.
    """

    path: str
    grid: GridSpec
    layers: tuple[Layer, ...]
    block: tuple[int, int]
    tags: Mapping[str, str] = MappingProxyType({})

    @abc.abstractmethod
    def read(self, layers: Sequence[int], window: Window) -> np.ndarray:
        """Stored values of some layers.

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

        Raises
        ------
        InputError
            If the file is damaged there.
        """

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

    @abc.abstractmethod
    def reopen(self) -> Self:
        """The same raster, opened once more (for another thread)."""

    @abc.abstractmethod
    def close(self) -> None:
        """Release the file."""

    @property
    def names(self) -> tuple[str | None, ...]:
        """Names of all layers: ``Band 8`` is B08, unless the layers are numbered by position."""
        names = tuple(layer.name for layer in self.layers)
        numbers = [m and m.group(1) for m in (_NUMBERED.fullmatch(n or "") for n in names)]
        # Converters write Band 1, Band 2, ... into files of unnamed layers, whatever these hold.
        if numbers == [str(i) for i in range(1, len(names) + 1)]:
            return names
        bands = [_padded(n.upper()) if n else "" for n in numbers]
        return tuple(b if b in SENTINEL_BANDS else n for b, n in zip(bands, names, strict=True))

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

    @property
    def is_label_like(self) -> bool:
        """True for one layer of whole numbers that is neither a band nor an index."""
        return (
            len(self.layers) == 1
            and np.issubdtype(self.layers[0].dtype, np.integer)
            and self.names[0] not in SENTINEL_BANDS + INDICES
        )

    def identity(self) -> dict[str, Any]:
        """``{"name", "bytes", "sha256"}`` of the file, see `identify`."""
        return identify(Path(self.path))


def canonical_name(text: str | None) -> str | None:
    """The band or index that a description names, None where it names none.

    A bare ``Band 8`` names none: it may be a position, which `Source.names` decides.

    Examples
    --------
    >>> canonical_name("B2, central wavelength 490 nm"), canonical_name("b8a"), canonical_name("Band 11 SWIR")
    ('B02', 'B8A', 'B11')
    >>> canonical_name("ndvi"), canonical_name("AOT"), canonical_name("Band 8")
    ('NDVI', None, None)
    """
    if not text or _NUMBERED.fullmatch(text.strip()):
        return None
    upper = text.strip().upper()
    if upper in INDICES:
        return upper
    match = _BAND.match(upper)
    return _padded(match.group(1)) if match else None


def name_from_file(path: str | os.PathLike[str]) -> str | None:
    """The band or index in a file name, None where there is none or more than one.

    Examples
    --------
    >>> name_from_file("T48QUE_20200223T033731_B02_10m.jp2"), name_from_file("x/summer_B8A.tif")
    ('B02', 'B8A')
    >>> name_from_file("S2ind_ndvi_201807.tif"), name_from_file("B02_B03.tif"), name_from_file("S2B_L2A.tif")
    ('NDVI', None, None)
    """
    tokens = re.split(r"[^0-9A-Z]+", Path(path).stem.upper())
    found = {t for t in tokens if t in INDICES}
    for token in tokens:
        match = re.fullmatch(r"B(1[0-2]|0[1-9]|8A|[1-9])", token)
        if match:
            found.add(_padded(match.group(1).lstrip("0")))
    return found.pop() if len(found) == 1 else None


def layer_name(description: str | None, path: str, *, alone: bool) -> str | None:
    """Name of a layer: from its description, else (where it is alone) from the file, else as described."""
    name = canonical_name(description)
    if name is None and alone:
        name = name_from_file(path)
    return name or (description.strip() if description and description.strip() else None)


def declared_nodata(tags: Mapping[str, Any], default: float | None) -> float | None:
    """No-data value of a layer: its own tag before that of the whole file."""
    for key, value in tags.items():
        if key.lower() in ("nodata", "_fillvalue", "missing_value", "no_data"):
            try:
                return float(np.ravel(value)[0])
            except (TypeError, ValueError, IndexError):
                continue
    return default


def declared_scaling(scale: float, offset: float) -> tuple[float | None, float | None]:
    """(scale, offset in DN) from metadata meaning value = stored x scale + offset; None where unset."""
    if (scale, offset) == (1.0, 0.0) or scale == 0 or not np.isfinite([scale, offset]).all():
        return None, None
    # Rounded, since -0.1 / 0.0001 is not exactly -1000.
    return scale, float(np.round(offset / scale, 6))


def check_grid(name: str, grid: GridSpec) -> None:
    """Refuse a raster without CRS, or that is rotated, sheared or not north-up."""
    if not grid.crs:
        raise InputError(
            f"cannot use '{name}', since it has no coordinate reference system, expected one (EPSG:3067)",
            "Write it into the file: rio edit-info --crs EPSG:3067 FILE "
            "(side-car files such as .aux.xml are not read).",
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
    """What journals and manifests record of a file or folder.

    Parameters
    ----------
    path
        What is there.
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


def _padded(number: str) -> str:
    return f"B{number}" if number == "8A" else f"B{int(number):02d}"
