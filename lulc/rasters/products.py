"""Copernicus products, ``.SAFE`` folders or zipped: files of the bands, and the scaling in the metadata."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element

from lulc.core.schema import InputError
from lulc.rasters import guards, zipped
from lulc.rasters.names import SENTINEL_BANDS

_METADATA = ("MTD_MSIL2A.xml", "MTD_MSIL1C.xml")
_BAND_FILE = re.compile(r"_(B\d\d|B8A|SCL)(?:_(\d\d)m)?\.(?:jp2|tif)$", re.IGNORECASE)

SCL_VALUES = (0, 1, 3, 8, 9, 10)
"""Scene classification: no data, saturated, cloud shadow, cloud (medium, high), thin cirrus."""


@dataclass(frozen=True)
class Product:
    """Content of a ``.SAFE`` folder or archive.

    Parameters
    ----------
    level
        ``L2A`` or ``L1C``.
    files
        Band name to the path that GDAL opens, each at its finest resolution.
    scale
        Reflectance per DN: 1 / quantification value.
    offsets
        Band name to the offset added to DN before scaling (0 before processing baseline 04.00).
    mask
        Scene classification at 20 m, None at level 1C.
    cloud
        Cloud cover in percent; None where the metadata have none.
    """

    path: Path
    level: str
    files: dict[str, str]
    scale: float
    offsets: dict[str, float]
    mask: str | None
    metadata: Path
    cloud: float | None = None


def is_product(path: str | os.PathLike[str]) -> bool:
    """True for a folder named ``.SAFE`` or holding a product's metadata, for these, and for its archive."""
    path = Path(path)
    if zipped.is_zipped(path) or (path.name in _METADATA and path.is_file()):
        return True
    return path.is_dir() and (
        path.name.upper().endswith(".SAFE") or any((path / name).is_file() for name in _METADATA)
    )


def product_folder(path: Path) -> Path:
    """Return the folder or archive of a product, given itself or its metadata."""
    return path.parent if path.name in _METADATA else path


def read_product(path: Path) -> Product:
    """Find the files of a product and read its metadata.

    Raises InputError if metadata or bands are missing, or a file leads out of the folder.
    """
    path = product_folder(path)
    archived = path.is_file()
    root_folder, names = _members(path)
    metadata = next((root_folder / name for name in _METADATA if name in names), None)
    if metadata is None:
        raise InputError(
            f"cannot use '{path}', since it holds neither {' nor '.join(_METADATA)}, "
            "expected a Sentinel-2 product of level 2A or 1C",
            "Unpack the product whole, or give its band files themselves.",
        )
    level = metadata.stem[-3:]
    if archived:
        content = zipped.read_entry(path, metadata.relative_to(path).as_posix())
        root = guards.parse_xml(content, metadata, "the metadata")
    else:
        guards.check_inside(metadata, path, str(path))
        root = guards.read_xml(metadata, "the metadata")
    files = _choose_files(path, [root_folder / name for name in names])
    mask = files.pop("SCL", None)
    if not files:
        raise InputError(
            f"cannot use the product folder '{path}', since no band was found in GRANULE/*/IMG_DATA, "
            "expected files such as ..._B02_10m.jp2",
            "Unpack the product whole.",
        )
    scale, offsets = _calibration(metadata, root, level)
    opened = {name: _opened_as(path, file) for name, file in files.items()}
    percent = re.fullmatch(r"\d+(\.\d*)?", (root.findtext(".//Cloud_Coverage_Assessment") or "").strip())
    cloud = float(percent.group()) if percent else None
    classes = _opened_as(path, mask) if mask else None
    return Product(path, level, opened, scale, offsets, classes, metadata, cloud)


def scaling_above(file: Path) -> tuple[str, float, float] | None:
    """(band, reflectance per DN, offset in DN) of a band file inside an unpacked product, else None."""
    match = _BAND_FILE.search(file.name)
    image_data = next((p for p in list(file.parents)[:2] if p.name.upper() == "IMG_DATA"), None)
    if not match or image_data is None or image_data.parents[1].name != "GRANULE":
        return None
    folder = image_data.parents[2]
    metadata = next((folder / name for name in _METADATA if (folder / name).is_file()), None)
    band = match.group(1).upper()
    if metadata is None or band == "SCL":
        return None
    guards.check_inside(metadata, folder, str(file))
    scale, offsets = _calibration(metadata, guards.read_xml(metadata, "the metadata"), metadata.stem[-3:])
    return (band, scale, offsets[band]) if band in offsets else None


def _members(path: Path) -> tuple[Path, list[str]]:
    """(folder of a product, which may be inside its archive; files in it that may be bands or metadata)."""
    if path.is_file():
        # An archive holds the folder; its metadata say which.
        inside = list(zipped.entries(path))
        top = next(name.rpartition("/")[0] for name in inside if name.rpartition("/")[2] in _METADATA)
        prefix = f"{top}/" if top else ""
        return path / top, [n.removeprefix(prefix) for n in sorted(inside) if n.startswith(prefix)]
    files = [*(path / name for name in _METADATA), *sorted(path.glob("GRANULE/*/IMG_DATA/**/*"))]
    return path, [file.relative_to(path).as_posix() for file in files if file.is_file()]


def _opened_as(product: Path, file: Path) -> str:
    """Return the path by which GDAL opens a file of a product."""
    if product.is_file():
        return zipped.address_of(product, file.relative_to(product).as_posix())
    return str(file)


def _choose_files(path: Path, members: list[Path]) -> dict[str, Path]:
    """Band name (and SCL) to the file of the finest resolution."""
    best: dict[str, tuple[int, Path]] = {}
    for file in members:
        match = _BAND_FILE.search(file.name)
        if not match:
            continue
        if path.is_dir():
            guards.check_inside(file, path, str(path))
        name, meters = match.group(1).upper(), int(match.group(2) or 0)
        if name in best and best[name][0] == meters:
            raise InputError(
                f"cannot use '{path}', since it holds {name} twice: "
                f"'{best[name][1].name}' and '{file.name}', expected one granule",
                "Give the band files of one granule.",
            )
        if name not in best or meters < best[name][0]:
            best[name] = (meters, file)
    return {name: file for name, (_, file) in best.items()}


def _calibration(metadata: Path, root: Element, level: str) -> tuple[float, dict[str, float]]:
    """(reflectance per DN, offset in DN of each band)."""
    prefix, kind = ("BOA_", "BOA") if level == "L2A" else ("", "RADIO")
    quantification = [_number(metadata, e) for e in _elements(root, f"{prefix}QUANTIFICATION_VALUE")]
    if not quantification or quantification[0] <= 0:
        raise InputError(
            f"cannot read '{metadata}', since it states no {prefix}QUANTIFICATION_VALUE, expected 10000",
            "Give the band files themselves with --scale 0.0001 and --offset.",
        )
    offsets = dict.fromkeys(SENTINEL_BANDS, 0.0)
    for element in _elements(root, f"{kind}_ADD_OFFSET"):
        number = element.get("band_id", "")
        if not number.isdecimal() or int(number) >= len(SENTINEL_BANDS):
            raise InputError(
                f"cannot read '{metadata}', since {kind}_ADD_OFFSET names band '{number[:20]}', "
                "expected 0..12",
                "The metadata are damaged; get the product again.",
            )
        offsets[SENTINEL_BANDS[int(number)]] = _number(metadata, element)
    return 1.0 / quantification[0], offsets


def _elements(root: Element, name: str) -> list[Element]:
    """Elements of a local name, in any namespace."""
    return [e for e in root.iter() if e.tag.rsplit("}", 1)[-1] == name]


def _number(metadata: Path, element: Element) -> float:
    try:
        value = float(element.text or "")
    except ValueError:
        value = float("nan")
    if not abs(value) < 1e9:
        raise InputError(
            f"cannot read '{metadata}', since {element.tag.rsplit('}', 1)[-1]} is "
            f"'{(element.text or '')[:40]}', expected a number",
            "The metadata are damaged; get the product again.",
        )
    return value
