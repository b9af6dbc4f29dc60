"""What a label raster says of its values makes its classes, and nothing else is assumed."""

from __future__ import annotations

import json
from pathlib import Path

import netCDF4
import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from rasterio.crs import CRS

from lulc.core.grid import GridSpec
from lulc.core.schema import InputError
from lulc.labels.labels import open_labels
from lulc.labels.schemes import PRODUCTS, load_scheme, read_scheme
from lulc.labels.value_tables import _read_flags

GRID = GridSpec(CRS.from_epsg(32635), Affine(10, 0, 500000, 0, -10, 6800000), 20, 30)


def write(path: Path, codes: list[int], colors: dict[int, str] | None = None, **tags: str) -> str:
    values = np.resize(np.array(codes, np.uint8), GRID.shape)
    with rasterio.open(
        path, "w", driver="GTiff", height=20, width=30, count=1, dtype="uint8", crs=GRID.crs,
        transform=GRID.transform,
    ) as data:  # fmt: skip
        if colors:
            data.write_colormap(1, {v: tuple(bytes.fromhex(c[1:])) for v, c in colors.items()})
        data.write(values, 1)
        data.update_tags(**tags)
    return str(path)


def attribute_table(path: str, rows: list[tuple[object, ...]], fields: list[tuple[str, int]]) -> None:
    definitions = "".join(
        f'<FieldDefn index="{i}"><Name>{name}</Name><Type>2</Type><Usage>{usage}</Usage></FieldDefn>'
        for i, (name, usage) in enumerate(fields)
    )
    listed = "".join("<Row>" + "".join(f"<F>{cell}</F>" for cell in row) + "</Row>" for row in rows)
    Path(path + ".aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><GDALRasterAttributeTable>'
        f"{definitions}{listed}</GDALRasterAttributeTable></PAMRasterBand></PAMDataset>"
    )


def colors_of(name: str, codes: str = "auto") -> dict[int, str]:
    scheme = load_scheme(name, codes)
    return {code: scheme.legend.colors[k - 1] for code, k in scheme.classes.items() if k != 255}  # type: ignore[misc]


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_is_recognised_by_its_colours(tmp_path: Path, name: str) -> None:
    colors = colors_of(name)
    codes = [code for code in colors if code][:4]
    with open_labels(write(tmp_path / "l.tif", codes, colors), GRID) as labels:
        assert labels.scheme.name == name and labels.origin == "recognised by its colour table"
        assert labels.read(GRID.extent)[0, 0] == load_scheme(name).classes[codes[0]]
    colors[codes[0]] = "#123456"
    with pytest.raises(InputError, match="cannot tell which classes"):
        open_labels(write(tmp_path / "m.tif", codes, colors), GRID)


def test_corine_is_recognised_by_its_colours_as_grid_codes(tmp_path: Path) -> None:
    with open_labels(write(tmp_path / "l.tif", [1, 2, 44], colors_of("clc-level3", "grid")), GRID) as labels:
        assert labels.scheme.name == "clc-level3"
        labels.check(labels.count(GRID.extent))
        assert labels.legend.names[labels.read(GRID.extent)[0, 2] - 1] == "Sea and ocean"


def test_the_official_table_beside_a_corine_raster_is_recognised(shared: Path, tmp_path: Path) -> None:
    from lulc.rasters.sources import open_source

    path = str(shared / "data/clc2018-sao-miguel/clc2018_v2020_20u1.tif")
    with open_source(path) as source:
        grid = source.grid
    with open_labels(path, grid) as labels:
        assert labels.scheme.name == "clc-level3"
        assert labels.origin == "recognised by the value table 'clc2018_v2020_20u1.tif.vat.dbf'"


def test_an_attribute_table_makes_a_legend_with_its_colours(tmp_path: Path) -> None:
    path = write(tmp_path / "l.tif", [3, 7, 9])
    fields = [("Value", 5), ("Count", 1), ("Class_name", 2), ("Red", 6), ("Green", 7), ("Blue", 8)]
    rows = [
        (3, 9, "Vines", 128, 0, 32),
        (7, 9, "Olives", 0, 255, 0),
        (9, 9, "No data", 0, 0, 0),
        (11, 0, "", 1, 1, 1),
    ]
    attribute_table(path, rows, fields)
    with open_labels(path, GRID) as labels:
        assert labels.legend.names == ("Vines", "Olives")
        assert labels.legend.colors == ("#800020", "#00ff00")
        assert labels.read(GRID.extent)[0, :3].tolist() == [1, 2, 255]
        assert labels.legend.classes[1].sources == (7,)


def test_columns_without_usage_are_found_by_what_they_hold(tmp_path: Path) -> None:
    path = write(tmp_path / "l.tif", [3, 7])
    attribute_table(
        path,
        [(1, 3, "311", "Vines"), (2, 7, "312", "Olives")],
        [("OID", 0), ("Value", 0), ("C", 0), ("N", 0)],
    )
    with open_labels(path, GRID) as labels:
        assert labels.legend.names == ("Vines", "Olives")


def test_category_names_make_a_legend(tmp_path: Path) -> None:
    path = write(tmp_path / "l.tif", [1, 2])
    Path(path + ".aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><CategoryNames><Category></Category><Category>Vines</Category>'
        "<Category>Olives</Category></CategoryNames></PAMRasterBand></PAMDataset>"
    )
    with open_labels(path, GRID) as labels:
        assert labels.legend.names == ("Vines", "Olives")


def test_a_map_as_labels_brings_its_legend(tmp_path: Path) -> None:
    legend = load_scheme("kaakonkulma-13").legend
    path = write(tmp_path / "l.tif", [0, 5, 13], LULC_LEGEND=json.dumps(legend.to_json()))
    with open_labels(path, GRID) as labels:
        assert labels.legend == legend and labels.read(GRID.extent)[0, :3].tolist() == [255, 5, 13]


def test_texts_of_a_table_stand_for_the_codes_of_a_raster_with_names(tmp_path: Path) -> None:
    path = write(tmp_path / "l.tif", [3, 7])
    attribute_table(path, [(3, "Vines"), (7, "Olives")], [("Value", 5), ("Name", 2)])
    (tmp_path / "mine.csv").write_text("code,class,name,color\nolives,1,Trees,\nvines,2,Shrubs,\n")
    with open_labels(path, GRID, read_scheme(str(tmp_path / "mine.csv"))) as labels:
        assert labels.read(GRID.extent)[0, :2].tolist() == [2, 1]


def test_values_that_the_table_lacks_are_unknown_codes(tmp_path: Path) -> None:
    path = write(tmp_path / "l.tif", [3, 7, 8])
    attribute_table(path, [(3, "Vines"), (7, "Olives")], [("Value", 5), ("Name", 2)])
    with open_labels(path, GRID) as labels, pytest.raises(InputError, match=r"unknown codes 8 \(200 px\)"):
        labels.check(labels.count(GRID.extent))


@pytest.mark.parametrize("suffix", [".aux.xml", ".vat.dbf"])
@pytest.mark.parametrize(
    "content",
    [b"", b"<OGRVRTDataSource/>", b"\x03" + bytes(40), b"<PAMDataset/>", b"\x03\xff" * 5000, b"<PAMDataset>"],
)
def test_a_damaged_or_foreign_table_ends_in_a_message(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = write(tmp_path / "l.tif", [3, 7])
    Path(path + suffix).write_bytes(content)
    with pytest.raises(InputError):
        open_labels(path, GRID)


def test_a_table_that_leads_out_of_the_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    path = write(tmp_path / "inside/l.tif", [3, 7])
    attribute_table(str(tmp_path / "l.tif"), [(3, "Vines"), (7, "Olives")], [("Value", 5), ("Name", 2)])
    Path(path + ".aux.xml").symlink_to(tmp_path / "l.tif.aux.xml")
    with pytest.raises(InputError, match=r"since it points to .*\.aux\.xml"):
        open_labels(path, GRID)


def imagine(folder: Path, body: str, codes: list[int]) -> str:
    """An Imagine file whose table or names are inside, as GDAL writes them from a VRT."""
    write(folder / "codes.tif", codes)
    wkt = GRID.crs.to_wkt().replace("&", "&amp;").replace('"', "&quot;")
    (folder / "t.vrt").write_text(
        f'<VRTDataset rasterXSize="30" rasterYSize="20"><SRS>{wkt}</SRS>'
        "<GeoTransform>500000, 10, 0, 6800000, 0, -10</GeoTransform>"
        f'<VRTRasterBand dataType="Byte" band="1">{body}<SimpleSource>'
        '<SourceFilename relativeToVRT="1">codes.tif</SourceFilename><SourceBand>1</SourceBand>'
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    )
    with rasterio.Env(GDAL_PAM_ENABLED="NO"):
        rasterio.shutil.copy(folder / "t.vrt", folder / "t.img", driver="HFA")
    return str(folder / "t.img")


def test_the_table_inside_an_imagine_file_names_the_classes(tmp_path: Path) -> None:
    fields = (("Class_Names", 2, 2), ("Red", 0, 6), ("Green", 0, 7), ("Blue", 0, 8))
    rows = (("Unclassified", 0, 0, 0), ("Open water", 10, 20, 250), ("", 0, 0, 0), ("Forest", 10, 200, 20))
    table = "".join(
        f'<FieldDefn index="{i}"><Name>{name}</Name><Type>{kind}</Type><Usage>{usage}</Usage></FieldDefn>'
        for i, (name, kind, usage) in enumerate(fields)
    ) + "".join(
        f'<Row index="{i}">' + "".join(f"<F>{cell}</F>" for cell in row) + "</Row>"
        for i, row in enumerate(rows)
    )
    body = f"<GDALRasterAttributeTable>{table}</GDALRasterAttributeTable>"
    path = imagine(tmp_path, body, [0, 1, 3])
    assert not Path(path + ".aux.xml").exists()
    with open_labels(path, GRID) as labels:
        assert labels.legend.names == ("Open water", "Forest")
        assert labels.legend.colors == ("#0a14fa", "#0ac814")
        assert labels.read(GRID.extent)[0, :3].tolist() == [255, 1, 2]
        assert labels.origin == "names in the value table in 't.img'"


def cube(path: Path, codes: list[int], dtype: str = "u1", **attributes: object) -> str:
    with netCDF4.Dataset(path, "w") as data:
        for name, size, start, step in (("y", 20, 6799995, -10), ("x", 30, 500005, 10)):
            data.createDimension(name, size)
            axis = data.createVariable(name, "f8", (name,))
            axis[:] = start + step * np.arange(size)
            axis.units = "m"
        codes_of = data.createVariable("lccs_class", dtype, ("y", "x"))
        codes_of.set_auto_maskandscale(False)
        codes_of[:] = np.resize(np.array(codes, np.uint8).view(dtype), GRID.shape)
        codes_of.setncatts(attributes)
        codes_of.grid_mapping = "crs"
        data.createVariable("crs", "i4").crs_wkt = GRID.crs.to_wkt()
    return str(path)


def test_flag_meanings_of_netcdf_name_the_classes(tmp_path: Path) -> None:
    flags = {
        "flag_values": np.array([10, 50, 210], "u1"),
        "flag_meanings": "cropland tree_cover water_bodies",
    }
    with open_labels(cube(tmp_path / "l.nc", [10, 210, 50], **flags), GRID) as labels:
        assert labels.legend.names == ("cropland", "tree cover", "water bodies")
        assert labels.read(GRID.extent)[0, :3].tolist() == [1, 3, 2]
        assert labels.origin == "names in its flag_meanings"


def test_flag_values_of_signed_bytes_that_mean_unsigned_ones_are_read_so(tmp_path: Path) -> None:
    flags = {"flag_values": np.array([10, -46], "i1"), "flag_meanings": "cropland water", "_Unsigned": "true"}
    with open_labels(cube(tmp_path / "l.nc", [10, 210], "i1", **flags), GRID) as labels:
        assert labels.legend.names == ("cropland", "water")
        assert labels.read(GRID.extent)[0, :2].tolist() == [1, 2]


def test_flags_written_as_text_are_read_and_bit_masks_and_unequal_lists_are_not(tmp_path: Path) -> None:
    tags = {"flag_values": "{1, 2}", "flag_meanings": "bare_soil snow"}
    path = write(tmp_path / "a.tif", [1, 2])
    with rasterio.open(path, "r+") as data:
        data.update_tags(1, **tags)
    with open_labels(path, GRID) as labels:
        assert labels.legend.names == ("bare soil", "snow")
    for more in ({"flag_masks": "1, 2"}, {"flag_values": "1, 2, 3"}):
        path = write(tmp_path / f"{next(iter(more))}.tif", [1, 2])
        with rasterio.open(path, "r+") as data:
            data.update_tags(1, **tags | more)
        with pytest.raises(InputError, match="cannot tell which classes"), open_labels(path, GRID):
            pass


@pytest.mark.parametrize(("values", "expected"), [
    ("1 2", {1: "a", 2: "b"}), ("1.0, 2.", {1: "a", 2: "b"}), (f"1 {'9' * 400}", {}), ("9" * 36, {}),
])  # fmt: skip
def test_flags_are_whole_numbers_of_a_raster(values: str, expected: dict[int, str]) -> None:
    assert _read_flags({"flag_values": values, "flag_meanings": "a b"}, "int32") == expected
