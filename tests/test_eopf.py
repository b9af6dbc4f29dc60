"""Products in groups, as ESA's EOPF Zarr, are read whatever version of Zarr and wherever they say what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from rasterio.crs import CRS

from lulc.core.schema import BANDS, InputError
from lulc.rasters.sources import is_store, open_source, open_store

FINE, COARSE = ("b02", "b03", "b04", "b08"), ("b05", "b06", "b07", "b8a", "b11", "b12")
PACKED = {"scale_factor": 0.0001, "add_offset": -0.1}


class Product:
    """A small product in groups that is written array by array."""

    def __init__(self, path: Path, version: int, root: dict[str, Any]) -> None:
        self.path, self._version = str(path), version
        self._root = zarr.open_group(self.path, mode="w", zarr_format=version)
        self._root.attrs.update(root)

    def group(
        self, name: str, pixel: int, count: int, variables: dict[str, Any], said: dict[str, Any]
    ) -> None:
        group = self._root.create_group(name)
        centres = pixel / 2 + pixel * np.arange(count)
        self._put(group, "y", (6800000 - centres).astype("int64"), ("y",), {})
        self._put(group, "x", (500000 + centres).astype("int64"), ("x",), {})
        for variable, value in variables.items():
            data = np.full((count, count), value, "uint8" if variable == "scl" else "uint16")
            data[0, 0] = 0
            self._put(group, variable, data, ("y", "x"), said)

    def _put(
        self, group: Any, name: str, data: np.ndarray, dims: tuple[str, ...], said: dict[str, Any]
    ) -> None:
        named = {"dimension_names": dims} if self._version == 3 else {}
        array = group.create_array(name, shape=data.shape, dtype=data.dtype, chunks=data.shape, **named)
        array[:] = data
        array.attrs.update(said | ({"_ARRAY_DIMENSIONS": list(dims)} if self._version == 2 else {}))


def make(path: Path, version: int = 2, said: Any = PACKED, code: Any = "array") -> str:
    """Bands at 10 and 20 m and a scene classification; `code` is where the CRS stands."""
    places = {
        "array": {},
        "root": {"other_metadata": {"horizontal_CRS_code": "EPSG:32635"}},
        "epsg": {"stac_discovery": {"properties": {"proj:epsg": 32635}}},
        "code": {"stac_discovery": {"properties": {"proj:code": "EPSG:32635"}}},
    }
    product = Product(path, version, places[code])
    own = {"proj:epsg": 32635} if code == "array" else {}
    fine = {name: 1500 + i for i, name in enumerate(FINE)}
    coarse = {name: 2500 + i for i, name in enumerate(COARSE)}
    product.group("measurements/reflectance/r10m", 10, 16, fine, said | own)
    product.group("measurements/reflectance/r20m", 20, 8, fine | coarse, said | own)
    product.group("conditions/mask/l2a_classification/r20m", 20, 8, {"scl": 4}, own)
    return product.path


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("code", ["array", "root", "epsg", "code"])
@pytest.mark.parametrize("said", [PACKED, {"_eopf_attrs": {**PACKED, "fill_value": 0}}])
def test_a_product_gives_its_finest_bands_with_scale_offset_place_and_clouds(
    tmp_path: Path, version: int, code: str, said: dict[str, Any]
) -> None:
    path = make(tmp_path / "S2A.zarr", version, said, code)
    assert is_store(path)
    sources, mask = open_store(path, BANDS)
    assert mask is not None and mask.read([0], mask.grid.extent).max() == 4
    found = {}
    for source in (*sources, mask):
        assert source.grid.crs == CRS.from_epsg(32635) and source.grid.transform.c == 500000
    for source in sources:
        assert set(source.scales) == {0.0001} and set(source.offsets) == {-1000}
        values, valid = source.read_valid(range(len(source.layers)), source.grid.extent)
        if "_eopf_attrs" in said:
            assert not valid[:, 0, 0].any() and valid[:, 1:].all()
        found |= {
            name: (int(v[1, 1]), source.grid.pixel_size[0])
            for name, v in zip(source.names, values, strict=True)
        }
        source.close()
    mask.close()
    assert {name: found[name] for name in ("B02", "B08", "B05", "B12")} == {
        "B02": (1500, 10), "B08": (1503, 10), "B05": (2500, 20), "B12": (2505, 20),
    }  # fmt: skip
    assert set(found) == set(BANDS)


def test_one_group_of_a_product_is_read_by_its_path(tmp_path: Path) -> None:
    path = make(tmp_path / "S2A.zarr", code="root")
    with open_source(f"{path}/measurements/reflectance/r20m") as source:
        assert source.grid.pixel_size == (20, 20) and {"B05", "B8A", "B02"} <= set(source.names)
        assert set(source.offsets) == {-1000}


@pytest.mark.parametrize("written", [
    {"url": "http://www.opengis.net/def/crs/EPSG/0/32635"}, {"wkt": CRS.from_epsg(32635).to_wkt()},
])  # fmt: skip
def test_the_crs_that_gdal_writes_into_zarr_is_read(tmp_path: Path, written: dict[str, str]) -> None:
    product = Product(tmp_path / "a.zarr", 2, {})
    product.group("g", 10, 8, {"B02": 1500}, {"_CRS": written})
    with open_source(f"{product.path}/g") as source:
        assert source.grid.crs == CRS.from_epsg(32635)


def test_a_cube_without_crs_is_answered_by_what_can_write_one(tmp_path: Path) -> None:
    product = Product(tmp_path / "a.zarr", 2, {})
    product.group("g", 10, 8, {"B02": 1500}, {})
    with pytest.raises(InputError, match="no coordinate reference system") as error:
        open_source(f"{product.path}/g")
    assert "rio.write_crs" in error.value.hint


@pytest.mark.parametrize(("name", "root", "offset"), [
    ("a.zarr", {"stac_discovery": {"properties": {"processing:version": "05.10"}}}, -1000),
    ("a.zarr", {"other_metadata": {"processing_baseline": "04.00"}}, -1000),
    ("S2A_MSIL2A_20240601T095031_N0510_R079_T35VNG_20240601T11.zarr", {}, -1000),
    ("a.zarr", {"stac_discovery": {"properties": {"processing:version": "02.14"}}}, None),
    ("a.zarr", {"stac_discovery": {"properties": {
        "s2:processing_baseline": "05.10", "earthsearch:boa_offset_applied": True}}}, None),
    ("a.zarr", {}, None),
])  # fmt: skip
def test_a_product_without_scale_keeps_the_offset_of_the_baseline_it_states(
    tmp_path: Path, name: str, root: dict[str, Any], offset: float | None
) -> None:
    product = Product(tmp_path / name, 2, root)
    product.group("measurements/reflectance/r10m", 10, 16, dict.fromkeys(FINE, 1500), {"proj:epsg": 32635})
    (source,), _ = open_store(product.path, BANDS)
    with source:
        assert set(source.offsets) == {offset} and set(source.scales) == {None}


def test_an_offset_that_no_attribute_states_stays_open_to_doubt(tmp_path: Path) -> None:
    (fine, _), _ = open_store(make(tmp_path / "a.zarr", said={"scale_factor": 0.0001}), BANDS)
    assert set(fine.scales) == {0.0001} and set(fine.offsets) == {None}
