"""Files that use what their formats allow: each is read or refused in bounded time, and leads nowhere."""

from __future__ import annotations

import json
import re
import resource
import shutil
import sqlite3
import struct
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from lulc.core.schema import InputError
from lulc.maps.reader import open_map

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parent))

from fuzz import (
    read_item,
    read_labels,
    read_product,
    read_raster,
    write_item,
    write_netcdf,
    write_product,
    write_raster,
    write_vector,
    write_zarr,
)
from test_hostile_rasters import Bait, bait, mosaic_of, vrt, write

__all__ = ["bait"]

pytestmark = pytest.mark.integration

Trick = tuple[Callable[[Bait], Path], Callable[[Path], object], str]


def tiff(
    entries: list[tuple[int, int, int, bytes]], *, following: int = 0, count: int | None = None
) -> bytes:
    """A TIFF of one directory: (tag, type, count, content or value of four bytes) of each entry."""
    head = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries) if count is None else count)
    place = 8 + 2 + 12 * len(entries) + 4
    rows, behind = b"", b""
    for tag, kind, number, content in sorted(entries):
        if len(content) > 4:
            value = struct.pack("<I", place + len(behind))
            behind += content
        else:
            value = content.ljust(4, b"\0")
        rows += struct.pack("<HHI", tag, kind, number) + value
    return head + rows + struct.pack("<I", following) + behind


PIXELS = np.arange(64 * 64, dtype="uint8").tobytes()


def plain(side: int = 64) -> list[tuple[int, int, int, bytes]]:
    short = lambda tag, value: (tag, 3, 1, struct.pack("<H", value))  # noqa: E731
    keys = struct.pack("<16H", 1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32635)
    return [
        short(256, side), short(257, side), short(258, 8), short(259, 1), short(262, 1),
        (273, 4, 1, b""), short(277, 1), short(278, side), (279, 4, 1, struct.pack("<I", side * side)),
        (33550, 12, 3, struct.pack("<3d", 10, 10, 0)),
        (33922, 12, 6, struct.pack("<6d", 0, 0, 0, 500000, 6800000, 0)),
        (34735, 3, 16, keys), (65000, 1, len(PIXELS), PIXELS),
    ]  # fmt: skip


def write_tiff(b: Bait, *more: tuple[int, int, int, bytes], **options: Any) -> Path:
    path = b.folder / "a.tif"
    content = tiff([*plain(), *more], **options)
    offset = struct.pack("<HHI", 273, 4, 1)
    path.write_bytes(content.replace(offset + bytes(4), offset + struct.pack("<I", content.index(PIXELS))))
    return path


def gdal_metadata(text: str) -> tuple[int, int, int, bytes]:
    content = text.encode() + b"\0"
    return (42112, 2, len(content), content)


def many_directories(b: Bait) -> Path:
    path = write_tiff(b)
    content = bytearray(path.read_bytes())
    start = len(content)
    for i in range(30_000):
        content += struct.pack("<H", 0) + struct.pack("<I", start + 6 * (i + 1))
    content += struct.pack("<HI", 0, 0)
    number = struct.unpack_from("<H", content, 8)[0]
    struct.pack_into("<I", content, 10 + 12 * number, start)
    path.write_bytes(content)
    return path


def circle(b: Bait) -> Path:
    return write_tiff(b, following=8)


def item_with(b: Bait, href: str) -> Path:
    path = write_item(b.folder / "item.json")
    item = json.loads(path.read_text())
    next(iter(item["assets"].values()))["href"] = href.format(canary=b.canary, port=b.port)
    path.write_text(json.dumps(item))
    return path


def sql(b: Bait, *statements: str) -> Path:
    path = write_vector(b.folder / "a.gpkg")
    with sqlite3.connect(path) as database:
        for statement in statements:
            database.execute(statement.format(canary=b.canary))
    database.close()
    return path


def late_view(b: Bait) -> Path:
    """A view that lies in the write-ahead log alone."""
    path = write_vector(b.folder / "b.gpkg")
    database = sqlite3.connect(path)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA wal_autocheckpoint=0")
    database.execute("ALTER TABLE b RENAME TO c")
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT * FROM c, n"
    database.execute(f"CREATE VIEW b AS {endless}")
    database.commit()
    for ending in ("", "-wal"):
        shutil.copy(f"{path}{ending}", f"{b.folder}/a.gpkg{ending}")
    database.close()
    return b.folder / "a.gpkg"


def hdf5(b: Bait, change: Callable[[h5py.File], object]) -> Path:
    path = write_netcdf(b.folder / "a.nc")
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def external(b: Bait) -> Path:
    def change(file: h5py.File) -> None:
        del file["B02"]
        file["B02"] = h5py.ExternalLink(str(b.canary), "/B02")

    return hdf5(b, change)


def virtual(b: Bait) -> Path:
    def change(file: h5py.File) -> None:
        layout = h5py.VirtualLayout(file["B02"].shape, "u2")
        layout[:] = h5py.VirtualSource(str(b.canary), "B02", file["B02"].shape)
        del file["B02"]
        file.create_virtual_dataset("B02", layout)

    return hdf5(b, change)


def around(file: h5py.File) -> None:
    file["round"] = file["/"]


def many_attributes(file: h5py.File) -> None:
    for i in range(20_000):
        file["B02"].attrs[f"a{i}"] = 1


def zarr_with(b: Bait, version: int, name: str, change: Callable[[dict[str, Any]], object]) -> Path:
    folder = write_zarr(b.folder / "a.zarr", version)
    path = folder / name
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return folder


def consolidated(document: dict[str, Any]) -> None:
    document["metadata"]["x/.zarray"] |= {"shape": [200_000_000], "chunks": [200_000_000]}


def consolidated_3(document: dict[str, Any]) -> None:
    document["consolidated_metadata"]["metadata"]["x"]["shape"] = [200_000_000]


def members(b: Bait, *names: str, content: bytes = b"x") -> Path:
    path = write_product(b.folder / "S2A.SAFE.zip")
    with zipfile.ZipFile(path, "a") as archive:
        for name in names:
            archive.writestr(name, content)
    return path


def sidecar(b: Bait, ending: str, content: str) -> Path:
    path = write_raster(b.folder / "a.tif")
    Path(f"{path}{ending}").write_text(content.format(canary=b.canary, port=b.port))
    return path


def vrt_of(b: Bait, text: str) -> Path:
    write(b.folder / "honest.tif")
    path = b.folder / "a.vrt"
    path.write_text(text)
    return path


def inner() -> str:
    source = '<SourceFilename relativeToVRT="1">honest.tif</SourceFilename><SourceBand>1</SourceBand>'
    return (
        f'<VRTRasterBand dataType="UInt16" band="1"><SimpleSource>{source}</SimpleSource>%s</VRTRasterBand>'
    )


def beside(b: Bait, ending: str, content: bytes) -> Path:
    path = write_vector(b.folder / "a.shp")
    path.with_suffix(ending).write_bytes(content)
    return path


def geojson(b: Bait, change: Callable[[dict[str, Any]], object]) -> Path:
    path = write_vector(b.folder / "a.geojson")
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return path


def deep(document: dict[str, Any]) -> None:
    nested: Any = 1
    for _ in range(900):
        nested = [nested]
    document["features"][0]["properties"]["note"] = nested


def deep_geometry(document: dict[str, Any]) -> None:
    geometry = document["features"][0]["geometry"]
    for _ in range(300):
        geometry = {"type": "GeometryCollection", "geometries": [geometry]}
    document["features"][0]["geometry"] = geometry


def named(b: Bait, ending: str, content: str) -> Path:
    path = b.folder / f"a{ending}"
    path.write_text(content.format(canary=b.canary, port=b.port))
    return path


LAUGHS = '<!DOCTYPE k [<!ENTITY a SYSTEM "file://{canary}"><!ENTITY b "&a;&a;">]>'
HREFS = (
    "/vsicurl/http://127.0.0.1:{port}/a.tif", "s3://bucket/a.tif", "file://{canary}", "FILE:{canary}",
    "data:text/plain,x", "//127.0.0.1:{port}/a.tif", "\\\\127.0.0.1\\a.tif", "./%2e%2e/elsewhere/canary.tif",
    "./../elsewhere/canary.tif", "zip+file://{canary}!a.tif", "vrt://{canary}", "GTIFF_DIR:1:{canary}",
    "/vsizip/{canary}/a.tif",
    "HTTP://127.0.0.1:{port}/a.tif", "./B02.tif?x=1#y", "ftp://127.0.0.1:{port}/a.tif",
    'NETCDF:"{canary}":x', "javascript:alert(1)", "\x00{canary}", "{canary}",
)  # fmt: skip

TRICKS: dict[str, Trick] = {
    "TIFF of 65,000 tags": (
        lambda b: write_tiff(b, *((300 + i, 1, 1, b"x") for i in range(33_000) if not 338 <= 300 + i <= 340)),
        read_raster,
        "",
    ),
    "TIFF of 30,000 directories": (many_directories, read_raster, ""),
    "TIFF whose directories go round": (circle, read_raster, ""),
    "TIFF of more tags than bytes": (lambda b: write_tiff(b, count=65_535), read_raster, ""),
    "TIFF with a colour profile of 100 MB": (
        lambda b: write_tiff(b, (34675, 7, 100_000_000, bytes(100_000_000))),
        read_raster,
        "",
    ),
    "TIFF with a colour profile beyond its end": (
        lambda b: write_tiff(b, (34675, 7, 2**32 - 1, bytes(8))),
        read_raster,
        "",
    ),
    "TIFF with metadata of 40 MB": (
        lambda b: write_tiff(
            b, gdal_metadata("<GDALMetadata>" + '<Item name="a">b</Item>' * 1_500_000 + "</GDALMetadata>")
        ),
        read_raster,
        "",
    ),
    "TIFF with nested metadata": (
        lambda b: write_tiff(b, gdal_metadata("<GDALMetadata>" + "<Item>" * 200_000)),
        read_raster,
        "",
    ),
    "TIFF with a VRT in its metadata": (
        lambda b: write_tiff(
            b,
            gdal_metadata(
                f'<GDALMetadata><Item name="x" domain="xml:VRT">{mosaic_of(str(b.canary))}'
                "</Item></GDALMetadata>"
            ),
        ),
        read_raster,
        "",
    ),
    "TIFF with a subsidiary directory that is itself": (
        lambda b: write_tiff(b, (330, 4, 1, struct.pack("<I", 8))),
        read_raster,
        "",
    ),
    "a map whose legend is a bomb": (
        lambda b: write_tiff(
            b,
            gdal_metadata(
                '<GDALMetadata><Item name="LULC_LEGEND">' + "[" * 400_000 + "</Item></GDALMetadata>"
            ),
        ),
        lambda path: open_map(path).close(),
        "",
    ),
    "side-car with entities": (
        lambda b: sidecar(b, ".aux.xml", LAUGHS + "<PAMDataset>&b;</PAMDataset>"),
        read_raster,
        "document type",
    ),
    "side-car with another encoding": (
        lambda b: sidecar(b, ".aux.xml", '<?xml version="1.0" encoding="UTF-7"?><PAMDataset/>'),
        read_raster,
        "",
    ),
    "side-car of three million elements": (
        lambda b: sidecar(b, ".aux.xml", "<PAMDataset>" + "<a/>" * 3_000_000 + "</PAMDataset>"),
        read_raster,
        "elements",
    ),
    "side-car that names an overview": (
        lambda b: sidecar(
            b,
            ".aux.xml",
            '<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">'
            "/vsicurl/http://127.0.0.1:{port}/a.ovr</MDI></Metadata></PAMDataset>",
        ),
        read_raster,
        "",
    ),
    "VRT of an overview elsewhere": (
        lambda b: vrt_of(
            b,
            vrt(
                inner()
                % (
                    f"<Overview><SourceFilename>{b.canary}</SourceFilename><SourceBand>1</SourceBand>"
                    "</Overview>"
                )
            ),
        ),
        read_raster,
        "cannot",
    ),
    "VRT of a mask elsewhere": (
        lambda b: vrt_of(
            b,
            vrt(
                inner()
                % ""
                + f'<MaskBand><VRTRasterBand dataType="Byte"><SimpleSource><SourceFilename>{b.canary}'
                "</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></MaskBand>"
            ),
        ),
        read_raster,
        "cannot",
    ),
    "VRT that opens with options": (
        lambda b: vrt_of(
            b,
            vrt(
                (inner() % "").replace(
                    "<SourceBand>",
                    '<OpenOptions><OOI key="GEOREF_SOURCES">PAM</OOI></OpenOptions><SourceBand>',
                )
            ),
        ),
        read_raster,
        "",
    ),
    "VRT of itself": (lambda b: vrt_of(b, mosaic_of("a.vrt", 1)), read_raster, "cannot"),
    "VRT of a subdataset": (
        lambda b: vrt_of(b, mosaic_of(f"GTIFF_DIR:1:{b.canary}", 1)),
        read_raster,
        "cannot",
    ),
    "VRT of an address with a blank": (
        lambda b: vrt_of(b, mosaic_of(f" /vsicurl/http://127.0.0.1:{b.port}/a.tif", 0)),
        read_raster,
        "cannot",
    ),
    "GeoPackage with a trigger": (
        lambda b: sql(b, "CREATE TRIGGER t AFTER INSERT ON a BEGIN SELECT load_extension('{canary}'); END"),
        read_labels,
        "",
    ),
    "GeoPackage with a check that computes": (
        lambda b: sql(b, "ALTER TABLE a ADD COLUMN x TEXT CHECK (x IS NULL OR length(x) < 1 OR x GLOB '*')"),
        read_labels,
        "",
    ),
    "GeoPackage with an index that computes": (
        lambda b: sql(b, "CREATE INDEX i ON a (hex(zeroblob(code * 1000000)))"),
        read_labels,
        "",
    ),
    "GeoPackage with a view in its log": (late_view, read_labels, ""),
    "GeoPackage that says it has a billion rows": (
        lambda b: sql(b, "UPDATE gpkg_ogr_contents SET feature_count = 1000000000"),
        read_labels,
        "",
    ),
    "NetCDF with an external link": (external, read_raster, "cannot"),
    "NetCDF with virtual data": (virtual, read_raster, "cannot"),
    "NetCDF whose groups go round": (lambda b: hdf5(b, around), read_raster, ""),
    "NetCDF with 20,000 attributes": (lambda b: hdf5(b, many_attributes), read_raster, ""),
    "Zarr with other consolidated shapes": (
        lambda b: zarr_with(b, 2, ".zmetadata", consolidated),
        read_raster,
        "",
    ),
    "Zarr 3 with other consolidated shapes": (
        lambda b: zarr_with(b, 3, "zarr.json", consolidated_3),
        read_raster,
        "",
    ),
    "Zarr 3 with a storage transformer": (
        lambda b: zarr_with(b, 3, "B02/zarr.json", lambda d: d.update(storage_transformers=[{"name": "x"}])),
        read_raster,
        "cannot",
    ),
    "Zarr 3 whose chunks lie above": (
        lambda b: zarr_with(
            b,
            3,
            "B02/zarr.json",
            lambda d: d["chunk_key_encoding"].update(configuration={"separator": "/../../"}),
        ),
        read_raster,
        "cannot",
    ),
    "Zarr 3 with a fill value of 10 MB": (
        lambda b: zarr_with(b, 3, "B02/zarr.json", lambda d: d.update(fill_value="9" * 10_000_000)),
        read_raster,
        "cannot",
    ),
    "archive with members above": (
        lambda b: members(b, "../../elsewhere/canary.tif", "/etc/x"),
        read_product,
        "",
    ),
    "archive with 70,000 members": (
        lambda b: members(b, *(f"x/{i}" for i in range(70_000))),
        read_product,
        "",
    ),
    "shapefile with a giant index": (
        lambda b: beside(b, ".qix", b"SQT\1\1" + b"\xff" * 100_000),
        read_labels,
        "",
    ),
    "shapefile with an odd encoding": (lambda b: beside(b, ".cpg", b"../../x" * 1000), read_labels, ""),
    "shapefile with a CRS of 20 MB": (
        lambda b: beside(b, ".prj", b"GEOGCS[" * 3_000_000),
        read_labels,
        "cannot",
    ),
    "GeoJSON with deep properties": (lambda b: geojson(b, deep), read_labels, ""),
    "GeoJSON with deep geometries": (lambda b: geojson(b, deep_geometry), read_labels, ""),
    "GeoJSON with a linked CRS": (
        lambda b: geojson(
            b,
            lambda d: d.update(
                crs={
                    "type": "link",
                    "properties": {"href": f"http://127.0.0.1:{b.port}/crs", "type": "proj4"},
                }
            ),
        ),
        read_labels,
        "",
    ),
    "KML with entities": (lambda b: named(b, ".kml", LAUGHS + "<kml>&b;</kml>"), read_labels, "cannot"),
    "GML with a schema elsewhere": (
        lambda b: named(
            b,
            ".gml",
            '<a xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
            'xsi:schemaLocation="a http://127.0.0.1:{port}/a.xsd"/>',
        ),
        read_labels,
        "cannot",
    ),
    "GPX named GeoJSON": (lambda b: named(b, ".geojson", LAUGHS + "<gpx>&b;</gpx>"), read_labels, "cannot"),
    "SVG named TIFF": (
        lambda b: named(b, ".tif", '<svg><image href="{canary}"/></svg>'),
        read_raster,
        "cannot",
    ),
    **{f"STAC asset {href!r}": (lambda b, href=href: item_with(b, href), read_item, "") for href in HREFS},
}


@pytest.mark.parametrize("name", list(TRICKS))
def test_a_trick_is_read_or_refused_and_leads_nowhere(
    name: str, bait: Bait, unread: Callable[..., Any]
) -> None:
    make, read, reason = TRICKS[name]
    path = make(bait)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    message = ""
    with unread(bait.canary):
        try:
            read(path)
        except InputError as error:
            message = str(error)
    assert time.process_time() - start < 10
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 2**30
    assert reason in message
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f]", message)
