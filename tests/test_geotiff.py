"""Maps open in GDAL with the right pixels, tags and levels, and damaged ones are found."""

from __future__ import annotations

import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rio_cogeo.cogeo import cog_validate

from lulc.core.grid import GridSpec
from lulc.core.schema import InputError, LandCoverClass, Legend
from lulc.core.windows import Window
from lulc.maps import geotiff
from lulc.maps.blocks import ENCODINGS, reduce_block
from lulc.maps.geotiff import MapProfile, assemble, read_classes, verify, write_part

LEGEND = Legend("test", tuple(LandCoverClass(i, f"class {i} å", f"#0{i}a0ff") for i in range(1, 4)))
TRANSFORM = Affine(10.0000001, 0, 500000.123456789, 0, -10.0000001, 6700000.7)


def profile_of(
    shape: tuple[int, int], name: str = "float32", part: int = 256, cog: bool = False
) -> MapProfile:
    grid = GridSpec(CRS.from_epsg(3067), TRANSFORM, *shape)
    return MapProfile(grid, LEGEND, name, part, {"LULC_TEST": '<{"a": "&"}>'}, cog)


def values_of(profile: MapProfile, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shape = profile.grid.shape
    probabilities = rng.dirichlet([0.5] * 3, shape).astype("f4")
    valid = rng.random(shape) < 0.8
    valid[: shape[0] // 2, : shape[1] // 3] = False
    return profile.encoding.apply(probabilities.argmax(-1) + 1, probabilities, valid)


def write(path: Path, profile: MapProfile, values: np.ndarray) -> list[tuple[Window, Path]]:
    """Write a map by its parts, which are kept."""
    height, width = profile.grid.shape
    side = profile.part
    parts = []
    with ThreadPoolExecutor(2) as pool:
        for row in range(0, height, side):
            for col in range(0, width, side):
                extent = Window(row, col, min(side, height - row), min(side, width - col))
                file = path.with_name(f"{row}-{col}.part")
                with write_part(file, profile, extent, pool) as writer:
                    writer.write(extent, values[(slice(None), *extent.slices)])
                parts.append((extent, file))
        assemble(profile, parts, path, pool)
    return parts


@pytest.mark.parametrize("cog", [False, True])
@pytest.mark.parametrize("name", list(ENCODINGS))
@pytest.mark.parametrize(("shape", "part"), [((600, 701), 256), ((1100, 520), 512), ((90, 100), 4096)])
def test_gdal_reads_what_was_written(
    tmp_path: Path, name: str, shape: tuple[int, int], part: int, cog: bool
) -> None:
    profile = profile_of(shape, name, part, cog)
    values = values_of(profile)
    write(tmp_path / "map.tif", profile, values)
    with rasterio.open(tmp_path / "map.tif") as source:
        np.testing.assert_array_equal(source.read(), values)
        assert source.transform == TRANSFORM
        assert source.crs == CRS.from_epsg(3067)
        assert source.shape == shape
        assert set(source.nodatavals) == {ENCODINGS[name].nodata}
        assert source.descriptions == profile.band_names
        assert source.block_shapes == [(256, 256)] * source.count
        assert source.compression.name == "zstd"
        assert source.tags()["LULC_TEST"] == '<{"a": "&"}>'
        assert (source.tags(ns="IMAGE_STRUCTURE").get("LAYOUT") == "COG") == cog
        scale = 1.0 if name in ("float32", "none") else ENCODINGS[name].scale
        assert source.scales == (1.0, *[scale] * (source.count - 1))
        if name == "none":
            assert source.colormap(1)[2] == (0x02, 0xA0, 0xFF, 255)
    assert cog_validate(tmp_path / "map.tif") == (True, [], [])


@pytest.mark.parametrize("name", list(ENCODINGS))
def test_overviews_are_the_reduced_full_resolution(tmp_path: Path, name: str) -> None:
    profile = profile_of((1300, 901), name, 512)
    values = values_of(profile)
    write(tmp_path / "map.tif", profile, values)
    with rasterio.open(tmp_path / "map.tif") as source:
        assert source.overviews(1) == [2, 4, 8]
    for level in range(3):
        odd = [(0, 0), *((0, n % 2) for n in values.shape[1:])]
        even = np.pad(values, odd, constant_values=profile.encoding.nodata)
        values = reduce_block(even, profile.encoding.nodata)
        with rasterio.open(tmp_path / "map.tif", overview_level=level) as source:
            np.testing.assert_array_equal(source.read(), values)


def test_overviews_agree_with_those_of_gdal(tmp_path: Path) -> None:
    profile = profile_of((1024, 512))
    write(tmp_path / "map.tif", profile, values_of(profile))
    with rasterio.open(tmp_path / "map.tif") as source:
        keys = {k: source.profile[k] for k in ("driver", "width", "height", "count", "dtype", "nodata")}
        with rasterio.open(tmp_path / "gdal.tif", "w", **keys) as other:
            other.write(source.read())
    with rasterio.open(tmp_path / "gdal.tif", "r+") as other:
        other.build_overviews([2], rasterio.enums.Resampling.average)
    with (
        rasterio.open(tmp_path / "map.tif", overview_level=0) as ours,
        rasterio.open(tmp_path / "gdal.tif", overview_level=0) as theirs,
    ):
        np.testing.assert_allclose(ours.read([2, 3, 4]), theirs.read([2, 3, 4]), atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 600),
    st.integers(1, 600),
    st.sampled_from(list(ENCODINGS)),
    st.booleans(),
    st.integers(0, 99),
)
def test_any_map_is_whole(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, name: str, cog: bool, seed: int
) -> None:
    path = tmp_path_factory.mktemp("map") / "map.tif"
    profile = profile_of((height, width), name, 256, cog)
    values = values_of(profile, seed)
    write(path, profile, values)
    with rasterio.open(path) as source:
        np.testing.assert_array_equal(source.read(), values)


def test_parts_of_any_size_hold_the_same_pixels_and_levels(tmp_path: Path) -> None:
    read = []
    for part in (256, 512, 2048):
        profile = profile_of((1100, 700), part=part)
        write(tmp_path / "map.tif", profile, values_of(profile))
        levels = []
        for options in ({}, {"overview_level": 0}, {"overview_level": 2}):
            with rasterio.open(tmp_path / "map.tif", **options) as source:
                levels.append(source.read())
        read.append(levels)
    for other in read[1:]:
        for first, second in zip(read[0], other, strict=True):
            np.testing.assert_array_equal(first, second)


def test_equal_pixels_make_equal_files(tmp_path: Path) -> None:
    profile = profile_of((600, 500))
    for name in ("a.tif", "b.tif"):
        write(tmp_path / name, profile, values_of(profile))
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()


def test_a_map_without_crs_keeps_its_geotransform(tmp_path: Path) -> None:
    profile = profile_of((300, 200))
    profile = dataclasses.replace(profile, grid=dataclasses.replace(profile.grid, crs=CRS()))
    write(tmp_path / "map.tif", profile, values_of(profile))
    with rasterio.open(tmp_path / "map.tif") as source:
        assert source.crs is None
        assert source.transform == TRANSFORM


def test_beyond_four_gigabytes_the_header_is_that_of_bigtiff(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lulc.maps.geotiff.CLASSIC_LIMIT", 1000)
    profile = profile_of((600, 701), cog=True)
    values = values_of(profile)
    write(tmp_path / "map.tif", profile, values)
    assert (tmp_path / "map.tif").read_bytes()[2] == 43
    with rasterio.open(tmp_path / "map.tif") as source:
        np.testing.assert_array_equal(source.read(), values)
        assert source.overviews(1) == [2, 4]
    assert cog_validate(tmp_path / "map.tif") == (True, [], [])


def test_class_numbers_are_read_with_255_for_no_data(tmp_path: Path) -> None:
    profile = profile_of((300, 280))
    values = values_of(profile)
    write(tmp_path / "map.tif", profile, values)
    window = Window(20, 30, 200, 100)
    expected = np.where(values[0] < 0, 255, values[0])[window.slices]
    np.testing.assert_array_equal(read_classes(tmp_path / "map.tif", window), expected)


@pytest.mark.parametrize("share", [0.3, 0.9, 0.9999])
def test_a_truncated_map_is_found(tmp_path: Path, share: float) -> None:
    profile = profile_of((600, 701))
    write(tmp_path / "map.tif", profile, values_of(profile))
    content = (tmp_path / "map.tif").read_bytes()
    (tmp_path / "map.tif").write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match="not written whole"):
        verify(tmp_path / "map.tif", profile)


def test_a_damaged_part_leaves_no_map(tmp_path: Path) -> None:
    profile = profile_of((600, 701))
    parts = write(tmp_path / "map.tif", profile, values_of(profile))
    (tmp_path / "map.tif").unlink()
    content = bytearray(parts[3][1].read_bytes())
    content[500] ^= 1
    parts[3][1].write_bytes(content)
    with ThreadPoolExecutor(1) as pool, pytest.raises(InputError, match="damaged"):
        assemble(profile, parts, tmp_path / "map.tif", pool)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for _, p in parts)


def test_parts_that_are_no_multiple_of_a_block_are_refused() -> None:
    with pytest.raises(InputError, match="--part 512"):
        profile_of((600, 600), part=500)


@pytest.mark.parametrize("cut", [0, 1, 5, 9])
def test_pieces_that_a_call_leaves_over_are_written_by_the_next(tmp_path, monkeypatch, cut):
    pieces = [b"abc", memoryview(b"defg"), b"hij"]
    monkeypatch.setattr(os, "pwritev", lambda fd, given, at: os.pwrite(fd, b"".join(given)[:cut], at))
    with open(tmp_path / "file", "wb") as file:
        assert geotiff._write_at(file, pieces, 2) == 10
    assert (tmp_path / "file").read_bytes() == b"\0\0abcdefghij"
