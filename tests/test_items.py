"""STAC items of any version say scale, offset and no data wherever the standard lets them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from lulc.core.schema import InputError
from lulc.rasters.items import read_item
from lulc.rasters.sources import open_item

TRANSFORM = from_origin(500000, 6800000, 10, 10)


def write(
    folder: Path, asset: dict[str, Any], *, count: int = 1, version: str = "1.0.0", **said: Any
) -> Path:
    """An item with one asset of some layers."""
    with rasterio.open(
        folder / "a.tif", "w", driver="GTiff", height=8, width=8, count=count, dtype="uint16",
        crs="EPSG:32635", transform=TRANSFORM,
    ) as data:  # fmt: skip
        data.write(np.full((count, 8, 8), 1500, "uint16"))
    path = folder / "item.json"
    path.write_text(
        json.dumps({
            "type": "Feature", "stac_version": version, "id": "x", "properties": said,
            "assets": {"B02": {"href": "a.tif", **asset}},
        })
    )  # fmt: skip
    return path


OFF = {"scale": 0.0001, "offset": -0.1}
TAKEN, LEFT, UNSAID = (0.0001, -1000.0), (0.0001, 0.0), (None, None)


@pytest.mark.parametrize(
    ("asset", "said", "expected"),
    [
        ({"raster:bands": [OFF]}, {}, TAKEN),
        ({"eo:bands": [{"name": "B02"}], "raster:bands": [OFF]}, {}, TAKEN),
        ({"bands": [{"name": "B02", "raster:scale": 0.0001, "raster:offset": -0.1}]}, {}, TAKEN),
        ({"raster:scale": 0.0001, "raster:offset": -0.1}, {}, TAKEN),
        ({"raster:scale": 0.0001, "raster:offset": -0.1, "bands": [{"name": "B02"}]}, {}, TAKEN),
        ({"scale": 0.0001, "offset": -0.1}, {}, TAKEN),
        ({"raster:scale": 1, "raster:offset": -1000}, {}, (None, -1000.0)),
        # What a band says comes before what its asset says.
        ({"raster:offset": 0, "bands": [{"raster:scale": 0.0001, "raster:offset": -0.1}]}, {}, TAKEN),
        ({"raster:bands": [OFF]}, {"earthsearch:boa_offset_applied": True}, LEFT),
        ({"raster:bands": [OFF]}, {"earthsearch:boa_offset_applied": False}, TAKEN),
        ({"raster:scale": 0.0001, "raster:offset": 0}, {"s2:processing_baseline": "05.11"}, LEFT),
        ({}, {"s2:processing_baseline": "04.00"}, (None, -1000.0)),
        ({}, {"s2:processing_baseline": "5.11"}, (None, -1000.0)),
        ({}, {"processing:version": "05.10"}, (None, -1000.0)),
        (
            {},
            {"s2:product_uri": "S2A_MSIL2A_20240601T095031_N0510_R079_T35VNG_20240601T11.SAFE"},
            (None, -1000.0),
        ),
        ({}, {"s2:product_uri": "S2A_MSIL2A_20180701T095031_N0208_R079_T35VNG_20180701T12.SAFE"}, UNSAID),
        ({}, {"s2:processing_baseline": "03.01"}, UNSAID),
        ({}, {"s2:processing_baseline": "05.11", "earthsearch:boa_offset_applied": True}, UNSAID),
        ({}, {"processing:version": "1.2.3"}, UNSAID),
        ({}, {}, UNSAID),
    ],
)
@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
def test_scale_and_offset_are_read_wherever_an_item_keeps_them(
    tmp_path: Path, asset: dict[str, Any], said: dict[str, Any], expected: Any, version: str
) -> None:
    sources, _ = open_item(write(tmp_path, asset, version=version, **said), ["B02"])
    with sources[0] as source:
        assert (source.scales[0], source.offsets[0]) == expected


def test_each_layer_of_one_asset_has_its_own_scale_offset_and_no_data(tmp_path: Path) -> None:
    bands = [
        {"name": "B02", "raster:scale": 0.0001, "raster:offset": -0.1, "nodata": 0},
        {"name": "B03", "raster:scale": 0.0002, "nodata": 65535},
        {"name": "B04"},
    ]
    path = write(tmp_path, {"bands": bands, "nodata": 9}, count=3, version="1.1.0")
    (source,), _ = open_item(path, ["B02", "B03", "B04"])
    with source:
        assert source.names == ("B02", "B03", "B04")
        assert source.scales == (0.0001, 0.0002, None) and source.offsets[0] == -1000
        assert source.nodata == (0, 65535, 9)


@pytest.mark.parametrize("nodata", [0, "0", 0.0])
def test_no_data_of_an_item_counts_beside_that_of_the_file(tmp_path: Path, nodata: Any) -> None:
    (source,), _ = open_item(write(tmp_path, {"nodata": nodata}), ["B02"])
    with source:
        assert source.nodata == (0,)


def test_a_layer_that_is_not_wanted_keeps_no_name_and_another_number_of_layers_is_refused(
    tmp_path: Path,
) -> None:
    bands = [{"name": "B02"}, {"name": "B03"}]
    path = write(tmp_path, {"eo:bands": bands}, count=2)
    (source,), _ = open_item(path, ["B03"])
    with source:
        assert source.names == (None, "B03")
    with pytest.raises(InputError, match="has 3 layers, but its STAC item describes 2"):
        open_item(write(tmp_path, {"eo:bands": bands}, count=3), ["B02"])


@pytest.mark.parametrize(
    ("platform", "names"), [("sentinel-2c", {"B02"}), ("landsat-8", set()), ("", {"B02"})]
)
def test_numbers_of_other_satellites_are_no_bands_of_sentinel_2(
    tmp_path: Path, platform: str, names: set[str]
) -> None:
    path = write(tmp_path, {"eo:bands": [{"name": "B02"}]}, platform=platform)
    if names:
        assert set(read_item(path)[0]) == names
    else:
        with pytest.raises(InputError, match="none of its assets is a band"):
            read_item(path)
