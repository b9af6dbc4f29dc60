"""Open rasters: checked before a pixel is read, with named layers on a north-up grid.

rasterio reads GeoTIFF, ERDAS Imagine and JPEG 2000. Each is opened by the name of its driver, so that GDAL
never takes a file for another format because of its content. A reader process opens and checks every file
first, and reads all pixels but those of GeoTIFF and remote files.

GDAL opens no side-car files, since it would open whatever they name: `lulc.rasters.sidecars` reads
``.aux.xml`` and ``.msk``; world files and ``.ovr`` are not read. xarray reads NetCDF and Zarr
(`lulc.rasters.cubes`); `lulc.rasters.products` finds the files of Copernicus ``.SAFE`` folders, and
`lulc.rasters.items` those of STAC items.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shlex
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile
from rasterio.windows import Window as RasterWindow

from lulc.core.grid import GridSpec, settled_crs
from lulc.core.reader_process import SharedApart, read_apart
from lulc.core.schema import InputError
from lulc.core.windows import Window
from lulc.rasters import guards, zipped
from lulc.rasters.apart import ApartSource, Served, describe_on
from lulc.rasters.groups import NETCDF, is_cube_folder, is_grouped, store_of, stored_bytes
from lulc.rasters.items import Asset, is_item, item_files, read_item
from lulc.rasters.layers import (
    OPACITY,
    WHOLE_BYTES,
    Layer,
    Source,
    attribute_scaling,
    check_grid,
    declared_layer,
    identify,
)
from lulc.rasters.missing import as_stored, odd_values
from lulc.rasters.names import name_layers
from lulc.rasters.place import north_up, western
from lulc.rasters.products import Product, is_product, product_folder, read_product, scaling_above
from lulc.rasters.sidecars import LayerMetadata, Sidecar, mask_beside, read_sidecar

DRIVERS = ("GTiff", "HFA", "JP2OpenJPEG")
"""GDAL drivers that may open a file."""

REMOTE_DRIVERS = ("GTiff", "JP2OpenJPEG")

_ENVIRONMENT: dict[str, Any] = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_PAM_ENABLED": "NO", "CPL_LOG_ERRORS": "OFF",
}  # fmt: skip

_CHECKED_BLOCKS = 4096
_NAME_TAGS = ("bandname", "band_name", "long_name", "common_name", "eo:common_name", "standard_name")


def open_source(
    path: str | os.PathLike[str], *, allow_vrt: bool = False, allow_remote: bool = False,
    in_process: bool = False,
) -> Source:  # fmt: skip
    """Open one raster after a reader process has checked it.

    This process reads a GeoTIFF that passed; the reader process reads all else. Raises InputError if the file
    is missing, of another kind, damaged, without CRS, not north-up, declares sizes that no honest raster has,
    or names other files.

    Parameters
    ----------
    path
        GeoTIFF, ERDAS Imagine (.img), JPEG 2000, NetCDF (.nc), Zarr folder (.zarr); VRT and remote files
        where they are allowed.
    allow_vrt
        Allow plain VRT mosaics whose files lie below the VRT's folder.
    allow_remote
        Allow URLs and ``/vsi`` paths, which open connections.
    in_process
        Read JPEG 2000 and VRT in this process too, for a library that takes a dataset.
    """
    text = os.fspath(path)
    if guards.is_address(text) and allow_remote and not text.lstrip().startswith(("<", "{")):
        return RasterSource(text, _remote_address(text), REMOTE_DRIVERS)
    if is_cube_folder(text):
        return _open_cube(text)
    resolved = guards.check_regular_file(text, "the raster")
    suffix = resolved.suffix.lower()
    if suffix in NETCDF:
        return _open_cube(text)
    if suffix == ".zip":
        raise InputError(
            f"cannot read '{text}', since it is a zip archive but no product, expected its content",
            f"Unpack it, and give the folder or file in it: unzip {shlex.quote(text)}",
        )
    if suffix == ".vrt":
        if not allow_vrt:
            raise InputError(
                f"cannot open '{text}', since it is a VRT, which names other files, "
                f"expected one of {', '.join(DRIVERS)}",
                "If it is your own mosaic, add --allow-vrt (its files must lie below its folder).",
            )
        return _open_raster(text, str(resolved), ("VRT",), in_process=in_process)
    if suffix == ".img":
        return _open_raster(text, str(resolved), ("HFA", "GTiff"))
    source = _open_raster(text, str(resolved), DRIVERS, in_process=in_process)
    try:
        source.layers = _scaled_by_product(source, resolved)
    except BaseException:
        source.close()
        raise
    return source


def _open_raster(path: str, target: str, drivers: Sequence[str], *, in_process: bool = False) -> Source:
    archived = zipped.split_address(target)
    place = archived[0] if archived else Path(target)
    # HFA opens the files that an Imagine file names only later, when the reader process can't reach them.
    members = REMOTE_DRIVERS if in_process else DRIVERS
    stored = sum(os.path.getsize(file) for file in _files_of(place, set()))
    if not archived and (in_process or guards.begins_as_tiff(place)):
        checked = _CHECKING.call(path, place, stored, "check", path, target, drivers, members)
        if checked["driver"] in (("GTiff", "VRT", "JP2OpenJPEG") if in_process else ("GTiff",)):
            return RasterSource(path, target, (checked["driver"],), checked)
    return ApartSource(f"{__name__}.serve", (path, target, drivers, members), path, place, stored)


class Checks:
    """Checks rasters one after the other in a reader process."""

    def describe(self) -> None:
        """Return nothing: no raster is open yet."""

    def check(self, *arguments: Any) -> dict[str, Any]:
        """Open and check a raster; return its description by `Served.describe`."""
        served = serve(*arguments)
        with served.source:
            return served.describe()


_CHECKING = SharedApart(f"{__name__}.Checks")


def serve(path: str, target: str, drivers: Sequence[str], members: Sequence[str]) -> Served:
    """Open and check a raster; runs in a reader process."""
    if "VRT" in drivers:
        _check_vrt(Path(target), members)
    return Served(RasterSource(path, target, drivers))


def _scaled_by_product(source: Source, file: Path) -> tuple[Layer, ...]:
    """Layers of a band file; its product gives scale and offset where the file has neither."""
    if len(source.layers) != 1 or (source.scales[0], source.offsets[0]) != (None, None):
        return source.layers
    scaling = scaling_above(file)
    if scaling is None or source.names[0] not in (None, scaling[0]):
        return source.layers
    return (dataclasses.replace(source.layers[0], scale=scaling[1], offset=scaling[2]),)


def open_product(path: str | os.PathLike[str], bands: Sequence[str]) -> tuple[list[Source], Product]:
    """Open bands of a Copernicus ``.SAFE`` folder or archive, each at its finest resolution.

    Return a source for each band, with scale and offset of the product's metadata, and these metadata. Their
    `mask` is the scene classification, None at level 1C (see `open_classes`).
    """
    product = read_product(Path(os.fspath(path)))
    sources: list[Source] = []
    for name in bands:
        if name in product.files:
            source = _open_member(product.files[name])
            scaling: dict[str, Any] = {"scale": product.scale, "offset": product.offsets[name]}
            source.layers = tuple(
                dataclasses.replace(layer, name=name, missing=layer.missing.also(0.0), **scaling)
                for layer in source.layers
            )
            sources.append(source)
    return sources, product


def open_classes(product: Product) -> Source | None:
    """Open the scene classification of a product; None where it has none."""
    return _open_member(product.mask) if product.mask else None


def _open_member(file: str) -> Source:
    target = file if zipped.split_address(file) else os.path.realpath(file)
    return _open_raster(file, target, ("JP2OpenJPEG", "GTiff"))


def open_item(
    path: str | os.PathLike[str], bands: Sequence[str], *, allow_remote: bool = False
) -> tuple[list[Source], str | None]:
    """Open bands of a STAC item.

    Return a source for each file, its layers named and scaled as the item says, and the path or address of
    the scene classification, None where there is none.
    """
    assets, mask = read_item(Path(path), allow_remote=allow_remote)
    wanted = {assets[name].path: assets[name] for name in bands if name in assets}
    with contextlib.ExitStack() as opened:
        sources = []
        for asset in wanted.values():
            source = opened.enter_context(open_source(asset.path, allow_remote=allow_remote))
            source.layers = _described_layers(source, asset, [n for n in bands if assets.get(n) == asset])
            sources.append(source)
        opened.pop_all()
    return sources, mask


def _described_layers(source: Source, asset: Asset, wanted: Sequence[str]) -> tuple[Layer, ...]:
    """The layers of an asset as its item describes them; layers of unwanted bands have no name."""
    if len(source.layers) != len(asset.names):
        raise InputError(
            f"cannot use '{source.path}', since it has {len(source.layers)} layers, but its STAC item "
            f"describes {len(asset.names)}, expected as many",
            "Correct the bands in the item, or give the files themselves.",
        )
    described = zip(source.layers, asset.names, asset.scales, asset.offsets, asset.nodatas, strict=True)
    return tuple(
        dataclasses.replace(
            layer, name=name if name in wanted else None, scale=layer.scale if scale is None else scale,
            offset=layer.offset if offset is None else offset,
            missing=layer.missing.also(as_stored(nodata, layer.dtype)),
        )
        for layer, name, scale, offset, nodata in described
    )  # fmt: skip


def is_store(path: str) -> bool:
    """True for a NetCDF file or Zarr folder that holds its rasters in groups, as EOPF products do."""
    return not guards.is_address(path) and is_grouped(path)


def is_collection(path: str) -> bool:
    """True for a product, STAC item or store in groups: a path that stands for several rasters of a scene."""
    return is_product(path) or is_item(path) or is_store(path)


def open_store(path: str, bands: Sequence[str]) -> tuple[list[Source], Source | None]:
    """Open bands of a store in groups, each with its finest pixels, and its scene classification."""
    stored = stored_bytes(path)
    groups, scl = read_apart(f"{_CUBES}.choose_groups", path, list(bands), stored, path=path, stored=stored)
    sources = [_open_cube(path, group, only) for group, only in groups.items()]
    return sources, _open_cube(path, scl[0], scl[1:]) if scl else None


class Stamp(NamedTuple):
    """State of a file, which changes when the file is written to or replaced."""

    path: str
    bytes: int
    changed: int
    inode: int


def stamps_of(paths: Iterable[str], *, allow_vrt: bool = False) -> list[Stamp]:
    """Stamps of all local files of some inputs, with the files in folders and those that VRTs name.

    Equal lists from before the first and after the last reading mean that no file changed in between.
    """
    files = [f for path in paths for f in _files_of(Path(path), set() if allow_vrt else None)]
    return [Stamp(str(f), s.st_size, s.st_mtime_ns, s.st_ino) for f in files for s in [f.stat()]]


def moments_of(stamps: Sequence[Stamp]) -> list[tuple[str, int]]:
    """Name and modification time of each file if together they are too large to be hashed whole, else none.

    A key of such inputs adds them to the hash, which covers only samples then.
    """
    if sum(stamp.bytes for stamp in stamps) <= WHOLE_BYTES:
        return []
    return [(Path(stamp.path).name, stamp.changed) for stamp in stamps]


def _files_of(path: Path, named: set[Path] | None) -> list[Path]:
    """Files of an input; `named` are the VRTs above it, None where the files of VRTs are not listed."""
    if path.is_dir() or is_product(path):
        place = product_folder(path)
        return [place] if place.is_file() else sorted(file for file in place.rglob("*") if file.is_file())
    if not path.is_file():
        return []
    if is_item(path):
        return [path, *item_files(path)]
    if path.suffix.lower() != ".vrt":
        rest = [path.with_suffix(".ige")] if path.suffix.lower() == ".img" else []
        return [path, *(f for f in (*rest, path.with_name(path.name + ".msk")) if f.is_file())]
    if named is None or path in named:
        return [path]
    members = sorted(set(guards.vrt_sources(path)))
    return [path, *(file for member in members for file in _files_of(member, named | {path}))]


class RasterSource(Source):
    """A raster that GDAL reads; made by `open_source`.

    Parameters
    ----------
    target
        Path or address that GDAL opens: an absolute path that was checked, or a remote address.
    checked
        Description by the reader process that checked the file; None where none did.
    """

    def __init__(
        self, path: str, target: str, drivers: Sequence[str], checked: Mapping[str, Any] | None = None
    ) -> None:
        self.path = path
        self._target, self._checked = target, checked
        self._archived = zipped.split_address(target)
        self._dataset = _open(path, target, drivers)
        self.driver = self._dataset.driver
        self._mask: Any = None
        self._nodata = ""
        try:
            local = not guards.is_address(target) and self.driver != "VRT"
            self._sidecar = read_sidecar(Path(target)) if local else Sidecar()
            stored = Affine(*(self._sidecar.transform or self._dataset.transform)[:6])
            self._transform, self._flipped = stored, (False, False)
            # GDAL gives the identity to files without a geotransform.
            if stored != Affine.identity():
                self._transform, self._flipped = north_up(stored, *self._dataset.shape)
            if checked:
                describe_on(self, checked)
            else:
                self._check(path)
                self.tags = {**self._dataset.tags(), **self._sidecar.tags}
                self.layers = _layers(self._dataset, self._sidecar, path, self._nodata)
            self._mask = _open_mask(path, target, self._dataset.shape) if local else None
        except UnicodeDecodeError as error:
            self.close()
            raise InputError(
                f"cannot read '{path}', since its metadata are no UTF-8 text ({error})",
                "Write it again without them: gdal_translate -nomd IN OUT.tif",
            ) from error
        except BaseException:
            self.close()
            raise

    def _check(self, path: str) -> None:
        data = self._dataset
        local = not guards.is_address(self._target)
        types = [np.dtype(_real_dtype(name)) for name in data.dtypes]
        itemsize = max((dtype.itemsize for dtype in types), default=0)
        self.block = tuple(data.block_shapes[0]) if data.count else (1, 1)
        interleaved = data.count if str(data.interleaving).lower().endswith("pixel") else 1
        guards.check_size(
            path, layers=data.count, height=data.height, width=data.width, layer_bytes=itemsize,
            block_bytes=self.block[0] * self.block[1] * itemsize * interleaved,
            stored_bytes=self._stored_bytes() if local or self._archived else None,
        )  # fmt: skip
        if any(dtype.kind not in "iuf" for dtype in types):
            raise InputError(
                f"cannot read '{path}', since its type is {data.dtypes[0]}, expected real numbers",
                "Convert it: gdal_translate -ot Float32 IN OUT",
            )
        if data.gcps[0] and not data.crs:
            raise InputError(
                f"cannot use '{path}', since it has ground control points instead of a grid, "
                "expected a north-up grid",
                "Rectify it: gdalwarp IN OUT",
            )
        if self._archived and set(data.files) - {self._target}:
            raise InputError(f"cannot open '{path}', since it names other files, expected none")
        if local:
            self._check_names(path, data.files)
            if self.driver == "GTiff":
                self._nodata = guards.check_tiff(Path(self._target), path)
                _check_whole(path, self._target, data)
        guards.check_crs(data.crs.to_wkt() if data.crs else "", path)
        crs = self._sidecar.crs or (settled_crs(data.crs) if data.crs else data.crs)
        self.grid = GridSpec(crs, western(self._transform, crs), data.height, data.width)
        check_grid(path, self.grid)

    def _stored_bytes(self) -> int:
        if self._archived:
            return zipped.entries(self._archived[0])[self._archived[1]]
        files = {self._target, *self._dataset.files}
        return sum(os.path.getsize(f) for f in files if os.path.isfile(f))

    def _check_names(self, path: str, files: Sequence[str]) -> None:
        """Refuse files that a file names, but for those of a VRT and the ``.ige`` of an Imagine file."""
        target = Path(self._target)
        for file in map(Path, files):
            guards.check_inside(file, target.parent, path)
            if self.driver != "VRT" and file not in (target, target.with_suffix(".ige")):
                raise InputError(
                    f"cannot open '{path}', since it names the file '{file}', "
                    "expected a file that holds its own data",
                    "Turn it into a GeoTIFF: gdal_translate IN OUT.tif",
                )

    def read(self, layers: Sequence[int], window: Window) -> np.ndarray:
        return self._read(layers, window, window.shape)

    def read_every(self, step: int, layers: Sequence[int], window: Window) -> np.ndarray:
        return self._read(layers, *self._thinned(step, window))

    def _thinned(self, step: int, window: Window) -> tuple[Window, tuple[int, int]]:
        """Return the window for every `step`-th pixel, and the shape that GDAL reads it in."""
        rows, cols = (-(-side // step) for side in window.shape)
        # GDAL divides the window evenly: one of whole steps keeps every pixel in its place.
        even = Window(window.row, window.col, rows * step, cols * step)
        return even.intersect(self.grid.extent), (rows, cols)

    def palette(self) -> Mapping[int, str]:
        try:
            colors = self._dataset.colormap(1)
        except ValueError:  # there is none
            return {}
        return {value: "#" + bytes(color[:3]).hex() for value, color in colors.items()}

    def attributes(self) -> Mapping[str, Any]:
        return {**self._dataset.tags(1), **self._sidecar.layers.get(1, LayerMetadata()).tags}

    def table(self) -> bytes:
        if self.driver != "HFA":
            return b""
        # rasterio gives no access to tables, but a VRT holds them, up to a million cells.
        with rasterio.Env(**_ENVIRONMENT), MemoryFile(ext=".vrt") as memory:
            rasterio.shutil.copy(self._dataset, memory.name, driver="VRT")
            content: bytes = memory.read()
        return content

    def read_mask(self, layers: Sequence[int], window: Window, step: int = 1) -> np.ndarray | None:
        even, shape = self._thinned(step, window)
        area, parts = self._area(even), []
        with self._reading(window), rasterio.Env(**_ENVIRONMENT):
            # A mask of the whole dataset; alpha and no-data values are read layer by layer.
            for i, flags in enumerate(self._dataset.mask_flag_enums, start=1):
                if MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags:
                    parts.append(self._dataset.read_masks(i, window=area, out_shape=shape)[None])
                    break
            alpha = [i + 1 for i, layer in enumerate(self.layers) if layer.alpha]
            if alpha:
                parts.append(
                    self._dataset.read(alpha, window=area, out_shape=(len(alpha), *shape)).min(axis=0)[None]
                )
            if self._mask is not None:
                own = [1] if self._mask.count == 1 else [i + 1 for i in layers]
                parts.append(self._mask.read(own, window=area, out_shape=(len(own), *shape)))
        if not parts:
            return None
        valid = parts[0] != 0
        for part in parts[1:]:
            valid = valid & (part != 0)
        return self._turned(valid)

    def _read(self, layers: Sequence[int], window: Window, shape: tuple[int, int]) -> np.ndarray:
        types = [_real_dtype(self._dataset.dtypes[i]) for i in layers]
        with self._reading(window), rasterio.Env(**_ENVIRONMENT):
            if len(set(types)) == 1:
                return self._read_alike(layers, window, shape)
            # A VRT may hold layers of several types; the result has one that holds all their values.
            array = np.empty((len(layers), *shape), np.result_type(*types))
            for dtype in dict.fromkeys(types):
                alike = [i for i, layer_type in enumerate(types) if layer_type == dtype]
                array[alike] = self._read_alike([layers[i] for i in alike], window, shape)
        return array

    def _read_alike(self, layers: Sequence[int], window: Window, shape: tuple[int, int]) -> np.ndarray:
        """Read layers of one type."""
        values: np.ndarray = self._dataset.read(
            [i + 1 for i in layers], window=self._area(window), out_shape=(len(layers), *shape)
        )
        return self._turned(values)

    def _area(self, window: Window) -> RasterWindow:
        """Return a window of the north-up grid in the file's own rows and columns."""
        (rows, cols), (height, width) = window.slices, self.grid.shape
        row = height - rows.stop if self._flipped[0] else rows.start
        col = width - cols.stop if self._flipped[1] else cols.start
        return RasterWindow(col, row, window.width, window.height)

    def _turned(self, values: np.ndarray) -> np.ndarray:
        down, across = (-1 if flipped else 1 for flipped in self._flipped)
        return np.ascontiguousarray(values[..., ::down, ::across])

    @contextlib.contextmanager
    def _reading(self, window: Window) -> Iterator[None]:
        try:
            yield
        except RasterioError as error:
            raise InputError(
                f"cannot read rows {window.row} to {window.stop[0]} of '{self.path}', "
                f"since it is damaged or truncated there ({error.__cause__ or error})",
                "Copy or download the file again.",
            ) from error

    @contextlib.contextmanager
    def opened(self) -> Iterator[Any]:
        """Give the dataset to a library that takes one; GDAL reads no side-car file meanwhile."""
        with rasterio.Env(**_ENVIRONMENT):
            yield self._dataset

    def reopen(self) -> RasterSource:
        again = RasterSource(self.path, self._target, (self.driver,), self._checked)
        # A product's metadata may have replaced the layers of the file.
        again.layers = self.layers
        return again

    def close(self) -> None:
        self._dataset.close()
        if self._mask is not None:
            self._mask.close()

    def identity(self) -> dict[str, Any]:
        if self._archived:
            archive, entry = self._archived
            digest = hashlib.sha256(f"{identify(archive)['sha256']}\0{entry}".encode())
            size = zipped.entries(archive)[entry]
            return {"name": Path(entry).name, "bytes": size, "sha256": digest.hexdigest()}
        if not guards.is_address(self._target):
            files = [identify(file) for file in _files_of(Path(self._target), set())]
            # Viewers write statistics into a side-car at any time; only the metadata that are used count.
            metadata = [repr((self.grid.to_json(), self.layers))] if self._sidecar else []
            if len(files) == 1 and not metadata:
                return super().identity()
            digest = hashlib.sha256(json.dumps([*files, *metadata]).encode())
            size = sum(file["bytes"] for file in files)
            return {"name": Path(self.path).name, "bytes": size, "sha256": digest.hexdigest()}
        # The metadata and the corner blocks identify a remote file.
        digest = hashlib.sha256(repr((self.grid.to_json(), self.layers)).encode())
        rows, cols = (min(s, 256) for s in self.grid.shape)
        for row in {0, self.grid.height - rows}:
            for col in {0, self.grid.width - cols}:
                digest.update(self.read([0], Window(row, col, rows, cols)).tobytes())
        return {"name": self.path.rsplit("/", 1)[-1], "bytes": 0, "sha256": digest.hexdigest()}


_CUBES = "lulc.rasters.cubes"
"""Module that reads NetCDF and Zarr; only reader processes import it."""


def _open_cube(path: str, group: str | None = None, only: Sequence[str] | None = None) -> Source:
    """Open a NetCDF file or Zarr folder, or some variables of one group of it, in a reader process."""
    place = store_of(path)
    if group is not None and place.is_dir():
        path, group = str(Path(path, group)), None
    stored = stored_bytes(path)
    ahead = ("dask.array", "xarray.backends.zarr", "zarr") if place.is_dir() else ("dask.array", "h5py")
    return ApartSource(f"{_CUBES}.serve", (path, group, only, stored), path, place, stored, ahead)


def _open(path: str, target: str, drivers: Sequence[str]) -> Any:
    """Open a dataset by the first driver that can."""
    failures = []
    for driver in drivers:
        options = {"NUM_THREADS": "ALL_CPUS"} if driver == "GTiff" else {}
        with rasterio.Env(**_ENVIRONMENT), warnings.catch_warnings(), contextlib.suppress(TypeError):
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            try:
                return rasterio.open(target, driver=driver, **options)
            except RasterioError as error:
                failures.append(str(error))
    reasons = [f for f in failures if "not recognized" not in f]
    raise InputError(
        f"cannot read '{path}', since it is damaged or no raster of an admitted kind"
        f"{f' ({reasons[0][:300]})' if reasons else ''}, expected one of {', '.join(drivers)}",
        "Convert it with gdal_translate IN OUT.tif, or copy it again if it is truncated.",
    )


def _layers(data: Any, sidecar: Sidecar, path: str, nodata: str) -> tuple[Layer, ...]:
    """Return the layers of a dataset; `nodata` is the text of the file's no-data tag."""
    texts, alpha = [], []
    for i, interpretation in zip(data.indexes, data.colorinterp, strict=True):
        beside = sidecar.layers.get(i, LayerMetadata())
        tags = [{k.lower(): v for k, v in known.items()} for known in (beside.tags, data.tags(i))]
        description = beside.description or data.descriptions[i - 1] or ""
        # GDAL marks the last of four layers of 8 bits as alpha, whatever its name says.
        alpha.append(
            (data.count > 1 and re.fullmatch(OPACITY, description, re.I) is not None)
            or (
                interpretation == ColorInterp.alpha
                and re.search("^$|alpha|mask|opacity", description, re.I) is not None
            )
        )
        if not alpha[-1]:
            texts.append([
                beside.description, data.descriptions[i - 1], data.tags().get(f"Band_{i}"),
                *(known.get(key) for known in tags for key in _NAME_TAGS),
            ])  # fmt: skip
    names = iter(name_layers(texts, path))
    return tuple(
        dataclasses.replace(
            _layer(data, i, sidecar.layers.get(i, LayerMetadata()), path, nodata),
            name="alpha" if is_alpha else next(names), alpha=is_alpha,
        )
        for i, is_alpha in zip(data.indexes, alpha, strict=True)
    )  # fmt: skip


def _layer(data: Any, index: int, beside: LayerMetadata, path: str, nodata: str) -> Layer:
    """Return layer number `index` of a dataset, with the metadata that a side-car file has of it."""
    dtype = _real_dtype(data.dtypes[index - 1])
    tags = {**data.tags(index), **beside.tags}
    if beside.nodata is not None:
        tags["nodata"] = beside.nodata
    # GDAL converts any text of the tag to one number.
    odd = odd_values({"no-data tag": nodata}, dtype, keys=("no-data tag",), most=1) if nodata else []
    packing = (
        beside.scale if beside.scale is not None else data.scales[index - 1],
        beside.offset if beside.offset is not None else data.offsets[index - 1],
    )
    if packing == (1.0, 0.0):
        packing = attribute_scaling(tags, path)
    units = beside.units or data.units[index - 1] or tags.get("units", "")
    of_file = None if odd else data.nodatavals[index - 1]
    where = f"of band {index}: "
    return declared_layer(path, tags, dtype, packing, units, nodata=of_file, odd=odd, where=where)


def _open_mask(path: str, target: str, shape: tuple[int, int]) -> Any:
    """Open the external mask of a file, ``FILE.msk``; None where it has none."""
    beside = mask_beside(Path(target))
    if beside is None:
        return None
    mask = _open(str(beside), str(beside.resolve()), ("GTiff",))
    try:
        guards.check_tiff(beside, str(beside))
        rows, cols = mask.block_shapes[0] if mask.count else (1, 1)
        guards.check_size(
            str(beside), layers=mask.count, height=mask.height, width=mask.width, layer_bytes=1,
            block_bytes=rows * cols, stored_bytes=beside.stat().st_size,
        )  # fmt: skip
        if mask.shape != shape or set(mask.dtypes) != {"uint8"}:
            raise InputError(
                f"cannot read '{path}', since its mask '{beside.name}' has {mask.height} x {mask.width} "
                f"pixels of {mask.dtypes[0]}, expected {shape[0]} x {shape[1]} of uint8",
                "It belongs to another file: make it again, or remove it.",
            )
    except BaseException:
        mask.close()
        raise
    return mask


def _real_dtype(name: str) -> str:
    """Return numpy's name of a GDAL type: complex64 for complex integers, which numpy lacks."""
    return "complex64" if name.startswith("complex_") else name


def _check_whole(path: str, target: str, data: Any) -> None:
    """Refuse a GeoTIFF with blocks beyond its end; of many blocks, a sample and the last ones are checked."""
    size = os.path.getsize(target)
    rows, cols = (-(-n // b) for n, b in zip(data.shape, data.block_shapes[0], strict=True))
    count = rows * cols
    step = max(1, count // _CHECKED_BLOCKS)
    bands = data.indexes if str(data.interleaving).lower().endswith("band") else (1,)
    for band in (bands[0], bands[-1]) if step > 1 else bands:
        for i in {*range(0, count, step), *range(max(0, count - cols), count)}:
            name = f"{i % cols}_{i // cols}"
            start = data.get_tag_item(f"BLOCK_OFFSET_{name}", "TIFF", bidx=band)
            length = data.get_tag_item(f"BLOCK_SIZE_{name}", "TIFF", bidx=band)
            if start and length and int(start) + int(length) > size:
                raise InputError(
                    f"cannot read '{path}', since it is truncated: a block ends at byte "
                    f"{int(start) + int(length)}, but the file has {size} bytes",
                    "Copy or download the file again.",
                )


def _check_vrt(path: Path, drivers: Sequence[str], depth: int = 0) -> None:
    """Check a VRT and all files that it names, nested VRTs too; `drivers` may open these files."""
    if depth > 8:
        raise InputError(
            f"cannot open the VRT '{path}', since VRTs are nested more than 8 deep (or name themselves), "
            "expected a plain mosaic",
            "Build one VRT from the rasters themselves.",
        )
    for file in sorted(set(guards.vrt_sources(path))):
        if file.suffix.lower() == ".vrt":
            _check_vrt(file, drivers, depth + 1)
        elif guards.looks_like_vrt(file):
            raise InputError(
                f"cannot open the VRT '{path}', since '{file}' in it is a VRT under another name, "
                "expected rasters or .vrt files",
                "Name VRT files .vrt.",
            )
        else:
            RasterSource(str(file), str(file), drivers).close()
            if mask_beside(file):
                raise InputError(
                    f"cannot open the VRT '{path}', since '{file.name}' in it has an external mask (.msk), "
                    "which is not read through a VRT",
                    "Write it into the file: gdal_translate --config GDAL_TIFF_INTERNAL_MASK YES IN OUT.tif",
                )


def _remote_address(text: str) -> str:
    """Return the name by which GDAL opens a URL: its network file system, without listing the folder."""
    if text.startswith(("http://", "https://", "ftp://")):
        return f"/vsicurl/{text}"
    schemes = {"s3://": "/vsis3/", "gs://": "/vsigs/", "az://": "/vsiaz/"}
    for scheme, prefix in schemes.items():
        if text.startswith(scheme):
            return prefix + text.removeprefix(scheme)
    if text.startswith("/vsi"):
        return text
    raise InputError(
        f"cannot open '{text[:200]}', since its kind of address is not known, "
        f"expected https://, {', '.join(schemes)} or /vsi...",
        "Download the file and give its path.",
    )
