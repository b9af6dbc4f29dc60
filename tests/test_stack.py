"""The aligned stack: bands by name on one grid, patched, indexed, masked; checked pixel by pixel."""

from __future__ import annotations

import json
import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import rasterio.warp
import shapely
from affine import Affine
from rasterio.transform import from_origin

from lulc.config import InputConfig
from lulc.core.grid import GridSpec
from lulc.core.schema import BANDS, CHANNELS, INDICES, InputError
from lulc.core.windows import Window
from lulc.rasters.indices import compute_indices
from lulc.rasters.scenes import find_scenes
from lulc.rasters.stack import Coverage, Stack, open_stack, sort_inputs

NORTH_UP = from_origin(500003, 6700007, 10, 10)
LOW = np.array([300, 250, 150, 100, 60, 60, 50, 30, 20]) + 40


def scene(height: int = 61, width: int = 47, seed: int = 0) -> np.ndarray:
    """Plausible DN uint16 (9, y, x), without holes."""
    rng = np.random.default_rng(seed)
    return (LOW[:, None, None] + rng.integers(0, 3000, (9, height, width))).astype("uint16")


def write(path: Path, data: np.ndarray, names: Any = BANDS, **profile: Any) -> str:
    options = {"crs": "EPSG:3067", "transform": NORTH_UP, "tiled": True, "blockxsize": 16, "blockysize": 16}
    count, height, width = data.shape
    with rasterio.open(path, "w", driver="GTiff", count=count, height=height, width=width, dtype=data.dtype,
                       **options | profile) as file:  # fmt: skip
        file.write(data)
        for i, name in enumerate(names or (), 1):
            file.set_band_description(i, name)
    return str(path)


def read(
    bands: list[str], indices: list[str] | None = None, channels: Any = CHANNELS, **options: Any
) -> np.ndarray:
    with open_stack(bands, indices or [], InputConfig(**options), channels=channels) as stack:
        return stack.read(stack.grid.extent)


def refuse(words: str, bands: list[str], indices: list[str] | None = None, **options: Any) -> InputError:
    with pytest.raises(InputError, match=words) as error:
        read(bands, indices, **options)
    assert error.value.hint
    return error.value


def last(array: np.ndarray) -> np.ndarray:
    return array.transpose(1, 2, 0).astype("float32")


# Bands


def test_one_file_and_many_files_give_the_same_stack(tmp_path: Path) -> None:
    data = scene()
    image = read([write(tmp_path / "all.tif", data)])
    assert image.dtype == np.float32 and image.shape == (61, 47, 14)
    np.testing.assert_array_equal(image[..., :9], last(data))
    np.testing.assert_array_equal(image[..., 9:], compute_indices(last(data)))
    single = [write(tmp_path / f"T35_{n}.tif", data[i : i + 1], None) for i, n in enumerate(BANDS)]
    np.testing.assert_array_equal(read(single[::-1]), image)


def test_the_order_in_the_file_does_not_matter_and_extra_layers_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = scene()
    order = [3, 8, 0, 1, 7, 2, 4, 6, 5]
    extended = np.concatenate([data[order[:4]], data[:1] * 0 + 77, data[order[4:]]])
    names = [BANDS[i] for i in order[:4]] + ["B8A"] + [BANDS[i] for i in order[4:]]
    with caplog.at_level(logging.INFO, "lulc"):
        image = read([write(tmp_path / "a.tif", extended, names)])
    np.testing.assert_array_equal(image[..., :9], last(data))
    assert "left out" in caplog.text and "B8A" in caplog.text


def test_channels_may_be_chosen_and_only_what_they_need_is_read(tmp_path: Path) -> None:
    data = scene()
    path = write(tmp_path / "a.tif", data[[2, 6]], ["B04", "B08"])
    image = read([path], channels=("NDVI", "B08"))
    full = compute_indices(last(data))
    np.testing.assert_array_equal(image, np.stack([full[..., 0], last(data)[..., 6]], axis=-1))


def test_unnamed_layers_are_named_by_the_option_and_never_by_position(tmp_path: Path) -> None:
    data = scene()
    path = write(tmp_path / "a.tif", data, None)
    error = refuse("missing; found", [path])
    assert "(unnamed)" in error.problem and "--band-names B02 B03" in error.hint
    np.testing.assert_array_equal(read([path], band_names=BANDS)[..., :9], last(data))
    np.testing.assert_array_equal(read([path], band_names=BANDS[::-1])[..., :9], last(data)[..., ::-1])
    numbered = write(tmp_path / "b.tif", data, [f"Band {i}" for i in range(1, 10)])
    assert "--band-names B02 B03" in refuse("missing; found", [numbered]).hint
    np.testing.assert_array_equal(read([numbered], band_names=BANDS)[..., :9], last(data))
    refuse("8 names", [path], band_names=BANDS[:8])
    refuse("no such name", [path], band_names=(*BANDS[:8], "B99"))


def test_missing_and_doubled_bands_are_refused_with_both_lists(tmp_path: Path) -> None:
    data = scene()
    path = write(tmp_path / "a.tif", data[:8], BANDS[:8])
    error = refuse("B12 is missing", [path])
    assert "B02, B03" in error.problem and "expected B02" in error.problem
    refuse("B11, B12 are missing", [write(tmp_path / "c.tif", data[:7], BANDS[:7])])
    again = write(tmp_path / "b.tif", data, BANDS)
    error = refuse("there twice", [path, again])
    assert "--fill" in error.hint and "gdalbuildvrt" in error.hint and "--allow-vrt" in error.hint


def test_scale_and_offset_come_from_options_then_metadata(tmp_path: Path) -> None:
    data = scene() + 1000
    path = write(tmp_path / "a.tif", data)
    refuse("baseline 04.00", [path])
    np.testing.assert_array_equal(read([path], offset=-1000)[..., :9], last(data) - 1000)
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (0.0001,) * 9, (-0.1,) * 9
    with open_stack([path], [], InputConfig()) as stack:
        np.testing.assert_array_equal(stack.read(stack.grid.extent)[..., :9], last(data) - 1000)
        said = stack.provenance["channels"]["B02"]
        assert said["offset"] == -1000 and said["offset_from"] == "metadata" and said["scale"] == 0.0001


# Validity


def test_a_pixel_that_lacks_one_band_is_nan_in_all_channels_and_no_other_is(tmp_path: Path) -> None:
    data = scene()
    rng = np.random.default_rng(1)
    holes = rng.random(data.shape) < 0.02
    data[holes] = rng.choice([0, 9999, 60000], holes.sum())
    data[~holes & (data == 9999)] = 5
    image = read([write(tmp_path / "a.tif", data, nodata=9999)])
    expected = holes.any(axis=0)
    assert 0.05 < expected.mean() < 0.5
    np.testing.assert_array_equal(np.isnan(image).all(axis=-1), expected)
    np.testing.assert_array_equal(np.isnan(image).any(axis=-1), expected)


def test_windows_anywhere_equal_the_whole_and_are_nan_beyond_it(tmp_path: Path) -> None:
    data = scene(300, 90)
    data[:, 250:260, 10:20] = 0
    with open_stack([write(tmp_path / "a.tif", data)], [], InputConfig()) as stack:
        whole = np.pad(stack.read(stack.grid.extent), ((40, 40), (40, 40), (0, 0)), constant_values=np.nan)
        for window in (Window(0, 0, 1, 1), Window(250, 3, 40, 80), Window(-16, -16, 64, 64),
                       Window(280, 70, 40, 40), Window(300, 0, 8, 8), Window(0, 89, 300, 1)):  # fmt: skip
            expected = whole[window.row + 40 :, window.col + 40 :][: window.height, : window.width]
            np.testing.assert_array_equal(stack.read(window), expected)


# 20 m bands


def coarse(data: np.ndarray) -> np.ndarray:
    return data[:, ::2, ::2]


def mixed(folder: Path, fine: np.ndarray, rough: np.ndarray) -> list[str]:
    """Nine single-band files: 10 m where Sentinel-2 has 10 m, 20 m elsewhere."""
    paths = []
    for i, name in enumerate(BANDS):
        native = name in ("B02", "B03", "B04", "B08")
        paths.append(write(folder / f"{name}.tif", (fine if native else rough)[i : i + 1], None,
                           transform=NORTH_UP if native else NORTH_UP @ Affine.scale(2)))  # fmt: skip
    return paths


@pytest.mark.parametrize("shape", [(40, 36), (41, 37)])
def test_20_m_bands_are_interpolated_between_pixel_centres(tmp_path: Path, shape: tuple[int, int]) -> None:
    fine = scene(*shape)
    rows, cols = np.mgrid[0 : (shape[0] + 1) // 2, 0 : (shape[1] + 1) // 2]
    plane = 500 + 20 * rows + 40 * cols
    image = read(mixed(tmp_path, fine, np.repeat(plane[None], 9, axis=0).astype("uint16")))
    rows, cols = np.mgrid[0 : shape[0], 0 : shape[1]]
    ramp = 500 + 20 * ((rows + 0.5) / 2 - 0.5) + 40 * ((cols + 0.5) / 2 - 0.5)
    inner = (slice(1, shape[0] // 2 * 2 - 1), slice(1, shape[1] // 2 * 2 - 1))
    np.testing.assert_allclose(image[inner][..., BANDS.index("B11")], ramp[inner], rtol=1e-6)
    np.testing.assert_array_equal(image[..., 0], fine[0])
    assert image[0, 0, BANDS.index("B11")] == 500, "the outermost half pixel repeats its source"


def test_constant_20_m_bands_stay_constant_and_holes_neither_grow_nor_shrink(tmp_path: Path) -> None:
    fine = scene(40, 36)
    rough = np.full((9, 20, 18), 700, "uint16")
    holes = np.random.default_rng(0).random((20, 18)) < 0.3
    rough[BANDS.index("B06"), holes] = 0
    image = read(mixed(tmp_path, fine, rough))
    expected = np.kron(holes, np.ones((2, 2), bool))
    np.testing.assert_array_equal(np.isnan(image[..., 0]), expected)
    np.testing.assert_allclose(image[~expected][:, BANDS.index("B06")], 700, rtol=1e-6)


def test_interpolation_does_not_depend_on_the_window(tmp_path: Path) -> None:
    rough = coarse(scene(41, 37, seed=3)).copy()
    rough[:, np.random.default_rng(0).random(rough.shape[1:]) < 0.2] = 0
    with open_stack(mixed(tmp_path, scene(41, 37), rough), [], InputConfig()) as stack:
        whole = stack.read(stack.grid.extent)
        for window in (Window(7, 11, 9, 5), Window(40, 0, 1, 37), Window(1, 1, 1, 1), Window(20, 20, 21, 17)):
            np.testing.assert_array_equal(stack.read(window), whole[window.slices])


# Other grids


@pytest.mark.parametrize(
    ("transform", "crs"),
    [(NORTH_UP @ Affine.translation(0.5, 0), "EPSG:3067"), (NORTH_UP @ Affine.translation(1, 0), "EPSG:3067"),
     (NORTH_UP, "EPSG:32635"), (NORTH_UP @ Affine.scale(1.001), "EPSG:3067")],
)  # fmt: skip
def test_another_grid_is_refused_and_both_are_printed(tmp_path: Path, transform: Affine, crs: str) -> None:
    main = write(tmp_path / "a.tif", scene())
    fill = write(tmp_path / "fill.tif", scene(), transform=transform, crs=crs)
    error = refuse("its grid is", [main], fill=(fill,))
    assert error.problem.count("61 rows x 47 columns") == 2 and "--resample" in error.hint


def test_another_size_is_refused_and_resampled_on_request(tmp_path: Path) -> None:
    data = scene()
    data[:, 10:20, 10:20] = 0
    main = write(tmp_path / "a.tif", data)
    larger = scene(80, 70, seed=5)
    fill = write(tmp_path / "fill.tif", larger, transform=NORTH_UP @ Affine.translation(-7, -9))
    refuse("its grid is", [main], fill=(fill,))
    image = read([main], fill=(fill,), resample=True)
    expected = last(data)
    expected[10:20, 10:20] = last(larger[:, 19:29, 17:27])
    np.testing.assert_array_equal(image[..., :9], expected)


def test_like_decides_the_grid(tmp_path: Path) -> None:
    data = scene()
    main = write(tmp_path / "a.tif", data)
    shifted = NORTH_UP @ Affine.translation(5, 3)
    like = write(tmp_path / "like.tif", data[:1, :20, :30], None, transform=shifted)
    refuse("its grid is", [main], like=like)
    image = read([main], like=like, resample=True)
    np.testing.assert_array_equal(image[..., :9], last(data)[3:23, 5:35])


def test_warping_from_another_crs_follows_the_ground(tmp_path: Path) -> None:
    """A field that is linear in latitude stays so."""
    grid = GridSpec(rasterio.crs.CRS.from_epsg(3067), NORTH_UP, 61, 47)
    left, bottom, right, top = rasterio.warp.transform_bounds("EPSG:3067", "EPSG:4326", *grid.bounds)
    there = rasterio.transform.from_bounds(left - 0.001, bottom - 0.001, right + 0.001, top + 0.001, 200, 200)
    latitude = there.f + there.e * (np.arange(200) + 0.5)
    field = np.repeat((500 + 1e5 * (latitude - bottom))[:, None], 200, axis=1)
    bands = np.stack([field + 10 * i for i in range(9)]).astype("float32")
    data = scene()
    data[:] = 0
    fill = write(tmp_path / "f.tif", bands, transform=there, crs="EPSG:4326")
    with open_stack([write(tmp_path / "a.tif", data)], [], InputConfig(fill=(fill,), resample=True)) as stack:
        image = stack.read(stack.grid.extent)
        part = stack.read(Window(13, 17, 20, 11))
    rows, cols = np.mgrid[0:61, 0:47]
    _, expected = rasterio.warp.transform(
        "EPSG:3067", "EPSG:4326", *(NORTH_UP @ (cols.ravel() + 0.5, rows.ravel() + 0.5))
    )
    np.testing.assert_allclose(image[..., 0].ravel(), 500 + 1e5 * (np.array(expected) - bottom), atol=0.2)
    np.testing.assert_array_equal(part, image[13:33, 17:28])


# Fills


def test_fills_patch_band_by_band_in_order_and_the_shares_are_counted(tmp_path: Path) -> None:
    data, first, second = scene(), scene(seed=1), scene(seed=2)
    rng = np.random.default_rng(0)
    for array, share in ((data, 0.2), (first, 0.5), (second, 0.5)):
        array[rng.random(array.shape) < share] = 0
    expected = np.where(data, data, np.where(first, first, second))
    paths = [write(tmp_path / f"{i}.tif", d) for i, d in enumerate((data, first, second))]
    coverage = Coverage()
    with open_stack(paths[:1], [], InputConfig(fill=tuple(paths[1:]))) as stack:
        image = stack.read(stack.grid.extent, coverage)
    hole = (expected == 0).any(axis=0)
    np.testing.assert_array_equal(np.isnan(image[..., 0]), hole)
    np.testing.assert_array_equal(image[~hole][:, :9], last(expected)[~hole])
    np.testing.assert_array_equal(image[~hole][:, 9:], compute_indices(last(expected))[~hole])
    shares = coverage.to_json()
    assert shares["valid"] == pytest.approx(1 - hole.mean())
    for i, name in enumerate(BANDS):
        assert shares["patched"][name] == pytest.approx(((data[i] == 0) & (expected[i] != 0)).mean())
        assert shares["invalid"][name] == pytest.approx((expected[i] == 0).mean())


def test_a_fill_of_another_offset_is_never_answered_by_an_option_for_all(tmp_path: Path) -> None:
    data = scene()
    data[:, :20, :20] = 0
    main = write(tmp_path / "a.tif", data)
    fill = write(tmp_path / "fill.tif", scene(seed=4) + 1000)
    error = refuse("baseline 04.00", [main], fill=(fill,))
    assert "fill.tif" in error.problem and "Convert this fill first" in error.hint
    assert "--offset -" not in error.hint
    with rasterio.open(fill, "r+") as file:
        file.scales, file.offsets = (0.0001,) * 9, (-0.1,) * 9
    patched = read([main], fill=(fill,))
    np.testing.assert_array_equal(patched[:20, :20, :9], last(scene(seed=4))[:20, :20])


def test_coverage_of_parts_adds_up_to_that_of_the_whole(tmp_path: Path) -> None:
    data = scene()
    data[:, 30:, :9] = 0
    path = write(tmp_path / "a.tif", data)
    whole, upper, lower = Coverage(), Coverage(), Coverage()
    with open_stack([path], [], InputConfig(bounds=(500003, 6699800, 500200, 6700007))) as stack:
        stack.read(stack.grid.extent, whole)
        stack.read(Window(0, 0, 33, 47), upper)
        stack.read(Window(33, 0, 28, 47), lower)
    assert upper + lower == whole


# Indices


def coded(seed: int = 9) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 201, (5, 61, 47)).astype("uint8")


def test_index_planes_are_read_with_the_no_data_of_each_layer(tmp_path: Path) -> None:
    planes = coded()
    planes[0, 3, 4], planes[2, 5, 6], planes[2, 7, 7] = 0, 255, 0
    path = write(tmp_path / "i.tif", planes, INDICES)
    main = write(tmp_path / "a.tif", scene())
    assert "--index-nodata 0 0 255 0 0" in refuse("no-data value is not known", [main], [path]).hint
    image = read([main], [path], index_nodata=(0, 0, 255, 0, 0))
    hole = np.zeros((61, 47), bool)
    hole[3, 4] = hole[5, 6] = True
    np.testing.assert_array_equal(np.isnan(image[..., 0]), hole)
    np.testing.assert_array_equal(image[~hole][:, 9:], last(planes)[~hole])
    with rasterio.open(path, "r+") as file:
        for i in range(5):
            file.update_tags(i + 1, NODATA="255" if i == 2 else "0")
    np.testing.assert_array_equal(read([main], [path]), image)


def test_indices_that_no_file_has_are_computed_and_the_stack_says_which(tmp_path: Path) -> None:
    planes = coded()
    path = write(tmp_path / "i.tif", planes[:2], INDICES[:2], nodata=0)
    with open_stack([write(tmp_path / "a.tif", scene())], [path], InputConfig()) as stack:
        assert stack.coding == {"NDVI": "read", "NDTI": "read", "NDBI": "computed", "NDMI": "computed",
                                "NDSI": "computed"}  # fmt: skip
        image = stack.read(stack.grid.extent)
    np.testing.assert_array_equal(image[..., 9:11], last(planes[:2]))
    np.testing.assert_array_equal(image[..., 11:], compute_indices(last(scene()))[..., 2:])


def test_indices_that_are_no_syke_code_are_refused(tmp_path: Path) -> None:
    plain = (coded() / 100.0 - 1).astype("float32")
    refuse("expected SYKE code", [write(tmp_path / "a.tif", scene())],
           [write(tmp_path / "i.tif", plain, INDICES)])  # fmt: skip


def test_inputs_are_sorted_by_their_names(tmp_path: Path) -> None:
    bands, indices = write(tmp_path / "a.tif", scene()), write(tmp_path / "i.tif", coded(), INDICES)
    assert sort_inputs([indices, bands], InputConfig()) == ([bands], [indices])
    plain = [write(tmp_path / "p.tif", scene(), None), write(tmp_path / "q.tif", coded(), None)]
    with pytest.raises(InputError, match=r"p\.tif: \(unnamed\)") as error:
        sort_inputs(plain, InputConfig())
    assert "--band-names B02" in error.value.hint and "--index-names NDVI" in error.value.hint
    named = InputConfig(band_names=BANDS, index_names=INDICES)
    assert sort_inputs(plain, named) == (plain[:1], plain[1:])
    both = write(tmp_path / "both.tif", np.concatenate([scene(), coded()]), CHANNELS)
    assert sort_inputs([both], InputConfig()) == ([both], [both])


def test_a_file_of_another_name_beside_all_bands_is_not_used_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bands = write(tmp_path / "a.tif", scene())
    other = write(tmp_path / "aot.tif", scene()[:1], ["AOT"])
    assert sort_inputs([other, bands], InputConfig()) == ([bands, other], [])
    with open_stack([bands, other], [], InputConfig()) as stack:
        np.testing.assert_array_equal(stack.read(stack.grid.extent)[..., :9], last(scene()))
    assert any("'" + other + "' is not used" in r.message for r in caplog.records if r.levelname == "WARNING")
    some = write(tmp_path / "some.tif", scene()[:5], BANDS[:5])
    with pytest.raises(InputError, match=r"aot\.tif: AOT"):
        sort_inputs([other, some], InputConfig())


# Masks


def test_masks_of_any_pixel_size_leave_their_values_out(tmp_path: Path) -> None:
    main = write(tmp_path / "a.tif", scene())
    classes = np.random.default_rng(0).integers(0, 12, (1, 31, 24)).astype("uint8")
    path = write(tmp_path / "scl.tif", classes, None, transform=NORTH_UP @ Affine.scale(2))
    assert "--mask-values 0 1 3 8 9 10" in refuse("expected only 0 and 1", [main], mask=path).hint
    image = read([main], mask=path, mask_values=(3, 8, 9))
    expected = np.kron(np.isin(classes[0], (3, 8, 9)), np.ones((2, 2), bool))[:61, :47]
    np.testing.assert_array_equal(np.isnan(image[..., 0]), expected)


def test_bits_of_a_mask_leave_out_pixels_that_have_any_of_them(tmp_path: Path) -> None:
    main = write(tmp_path / "a.tif", scene())
    quality = np.random.default_rng(0).integers(0, 2**16, (1, 61, 47)).astype("uint16")
    quality[0, :3] = 1
    path = write(tmp_path / "qa.tif", quality, None, nodata=1)
    assert "--mask-values 1 2 3 4 --mask-bits" in refuse("expected only 0 and 1", [main], mask=path).hint
    image = read([main], mask=path, mask_values=(1, 3), mask_bits=True)
    expected = (quality[0] // 2 % 2 == 1) | (quality[0] // 8 % 2 == 1) | (quality[0] == 1)
    np.testing.assert_array_equal(np.isnan(image[..., 0]), expected)


@pytest.mark.parametrize(
    ("values", "mask"), [((), "qa.tif"), ((1, 31), "qa.tif"), ((-1,), "qa.tif"), ((1,), None)]
)
def test_bits_without_a_mask_or_of_none_that_it_can_have_are_refused(
    values: tuple[int, ...], mask: str | None, tmp_path: Path
) -> None:
    if mask:
        mask = write(tmp_path / mask, np.zeros((1, 61, 47), "uint16"), None)
    bands = [write(tmp_path / "a.tif", scene())]
    refuse("its bits from 0 to 30", bands, mask=mask or (), mask_values=values, mask_bits=True)


def test_a_mask_of_0_and_1_leaves_out_1_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clouds = (np.random.default_rng(0).random((1, 61, 47)) < 0.3).astype("uint8")
    with caplog.at_level(logging.INFO, "lulc"):
        image = read([write(tmp_path / "a.tif", scene())], mask=write(tmp_path / "m.tif", clouds, None))
    np.testing.assert_array_equal(np.isnan(image[..., 0]), clouds[0] == 1)
    assert "value 1" in caplog.text


def test_bounds_and_polygons_leave_out_what_lies_outside(tmp_path: Path) -> None:
    main = write(tmp_path / "a.tif", scene())
    image = read([main], bounds=(500003 + 50, 6700007 - 300, 500003 + 200, 6700007 - 100))
    inside = np.zeros((61, 47), bool)
    inside[10:30, 5:20] = True
    np.testing.assert_array_equal(~np.isnan(image[..., 0]), inside)
    refuse("no pixel lies inside", [main], bounds=(0, 0, 1, 1))
    box = shapely.box(500053, 6699707, 500203, 6699907)
    frame = geopandas.GeoDataFrame(geometry=[box], crs="EPSG:3067").to_crs("EPSG:4326")
    frame.to_file(tmp_path / "aoi.gpkg")
    image = read([main], aoi=str(tmp_path / "aoi.gpkg"))
    np.testing.assert_array_equal(~np.isnan(image[..., 0]), inside)


# What is recorded; threads


def test_provenance_and_identity_name_every_file_and_no_folder(tmp_path: Path) -> None:
    main, fill = write(tmp_path / "a.tif", scene()), write(tmp_path / "f.tif", scene(seed=1))
    index = write(tmp_path / "i.tif", coded(), INDICES, nodata=0)
    with open_stack([main], [index], InputConfig(fill=(fill,))) as stack:
        text = json.dumps([stack.provenance, stack.identity()], allow_nan=False)
        assert [item["name"] for item in stack.identity()] == ["a.tif", "f.tif", "i.tif"]
    assert str(tmp_path) not in text and '"coding": "read"' in text


def test_threads_with_stacks_of_their_own_read_the_same(tmp_path: Path) -> None:
    data = scene(200, 150)
    data[:, :50, :50] = 0
    main, fill = write(tmp_path / "a.tif", data), write(tmp_path / "f.tif", scene(200, 150, seed=1))
    with open_stack([main], [], InputConfig(fill=(fill,))) as stack:
        windows = [Window(r, c, 50, 50) for r in range(0, 200, 50) for c in range(0, 150, 50)]
        expected = [stack.read(w) for w in windows]

        def work(own: Stack) -> list[np.ndarray]:
            with own:
                return [own.read(w) for w in windows]

        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(work, [stack.reopen() for _ in range(4)]):
                np.testing.assert_array_equal(found, expected)


# Products


def make_product(product: Path, fine: np.ndarray, classes: np.ndarray) -> str:
    """A product of level 2A: DN (9, 128, 128) at 10 m, scene classification (1, 64, 64) at 20 m."""
    lossless = {"driver": "JP2OpenJPEG", "QUALITY": "100", "REVERSIBLE": "YES", "crs": "EPSG:3067"}
    layers = {n: fine[i : i + 1] for i, n in enumerate(BANDS)}
    layers["SCL"] = np.kron(classes, np.ones((1, 2, 2), "uint8"))
    for name, data in layers.items():
        meters = 10 if name in ("B02", "B03", "B04", "B08") else 20
        folder = product / "GRANULE" / "G" / "IMG_DATA" / f"R{meters}m"
        folder.mkdir(parents=True, exist_ok=True)
        stored = data if meters == 10 else coarse(data)
        transform = NORTH_UP @ Affine.scale(meters / 10)
        shape = {"count": 1, "dtype": stored.dtype, "height": stored.shape[1], "width": stored.shape[2]}
        with rasterio.open(
            folder / f"T_{name}_{meters}m.jp2", "w", transform=transform, **shape, **lossless
        ) as file:
            file.write(stored)
    offsets = "".join(f'<BOA_ADD_OFFSET band_id="{i}">-1000</BOA_ADD_OFFSET>' for i in range(13))
    (product / "MTD_MSIL2A.xml").write_text(
        f"<P><BOA_QUANTIFICATION_VALUE>10000</BOA_QUANTIFICATION_VALUE>{offsets}</P>")  # fmt: skip
    return str(product)


def clouded(*columns: slice) -> np.ndarray:
    """Scene classification (1, 64, 64): vegetation, and clouds (9) in ten rows of some columns."""
    classes = np.full((1, 64, 64), 4, "uint8")
    for part in columns:
        classes[0, :10, part] = 9
    return classes


@pytest.mark.integration
def test_clouds_of_a_product_are_patched_from_the_fill(tmp_path: Path) -> None:
    fine = scene(128, 128) + 1000
    product = make_product(tmp_path / "S2A_MSIL2A_20220301.SAFE", fine, clouded(slice(0, 10)))
    assert sort_inputs([product], InputConfig()) == ([product], [])
    image = read([product])
    cloud = np.zeros((128, 128), bool)
    cloud[:20, :20] = True
    np.testing.assert_array_equal(np.isnan(image[..., 0]), cloud)
    np.testing.assert_array_equal(image[~cloud][:, 0], fine[0][~cloud] - 1000.0)
    fill = write(tmp_path / "fill.tif", scene(128, 128, seed=4))
    patched = read([product], fill=(fill,))
    np.testing.assert_array_equal(patched[cloud][:, :9], last(scene(128, 128, seed=4))[cloud])
    np.testing.assert_array_equal(patched[~cloud], image[~cloud])


@pytest.mark.integration
def test_a_zipped_product_is_the_same_stack_alone_as_a_fill_and_as_a_scene(tmp_path: Path) -> None:
    product = make_product(
        tmp_path / "a" / "S2A_20220301.SAFE", scene(128, 128) + 1000, clouded(slice(0, 10))
    )
    zipped = shutil.make_archive(f"{product}", "zip", tmp_path / "a", Path(product).name)
    assert sort_inputs([zipped], InputConfig()) == ([zipped], [])
    expected = read([product])
    np.testing.assert_array_equal(read([zipped]), expected)
    bands = write(tmp_path / "own.tif", np.where(np.arange(128) < 40, 0, scene(128, 128)).astype("uint16"))
    np.testing.assert_array_equal(read([bands], fill=(zipped,)), read([bands], fill=(product,)))
    (tmp_path / "only").mkdir()
    Path(zipped).rename(tmp_path / "only" / "b.SAFE.zip")
    assert find_scenes([str(tmp_path / "only")]) == [(str(tmp_path / "only" / "b.SAFE.zip"),)]
    with open_stack([], [], InputConfig(), scenes=(str(tmp_path / "only"),)) as stack:
        np.testing.assert_array_equal(stack.read(stack.grid.extent), expected)


@pytest.mark.integration
def test_clouds_of_a_fill_are_never_patched_in_whatever_the_mask(tmp_path: Path) -> None:
    data = scene(128, 128)
    data[:, :20, :20] = 0
    main = write(tmp_path / "a.tif", data)
    fill = make_product(tmp_path / "S2A_20220401.SAFE", scene(128, 128, seed=4) + 1000, clouded(slice(5, 40)))
    mask = np.zeros((1, 128, 128), "uint8")
    mask[0, 100:] = 7
    options = {"mask": write(tmp_path / "mask.tif", mask, None), "mask_values": (7,)}
    missing = np.isnan(read([main], fill=(fill,), **options)[..., 0])
    expected = np.zeros((128, 128), bool)
    expected[:20, 10:20] = expected[100:] = True
    np.testing.assert_array_equal(missing, expected)
    own = make_product(tmp_path / "S2A_20220301.SAFE", scene(128, 128) + 1000, clouded(slice(0, 10)))
    missing = np.isnan(read([own], **options)[..., 0])
    np.testing.assert_array_equal(missing, mask[0] == 7)
    assert not np.isnan(read([own], mask_values=(8,))).any()


def test_mask_values_without_anything_that_holds_them_are_refused(tmp_path: Path) -> None:
    error = refuse("no --mask is given", [write(tmp_path / "a.tif", scene())], mask_values=(8, 9))
    assert "--mask RASTER --mask-values 8 9" in error.hint


# Real scenes


def test_thailand_is_stacked_from_its_native_files(shared: Path) -> None:
    folder = shared / "data/thailand-native"
    paths = [str(folder / f"{n}.tif") for n in BANDS]
    with open_stack(paths, [], InputConfig(mask=str(folder / "cloud_mask.tif"))) as stack:
        image = stack.read(Window(100, 200, 64, 64))
        assert stack.grid.shape == (1068, 1068) and np.isfinite(image).all()
    with rasterio.open(folder / "B08.tif") as file:
        np.testing.assert_array_equal(image[..., 6], file.read(1)[100:164, 200:264])
    with rasterio.open(folder / "B11.tif") as file:
        b11 = file.read(1)[49:83, 99:133].astype("float32")
    # An upper left quarter lies a quarter of a 20 m pixel from the centre: weights 3/4 and 1/4 each way.
    rows = 0.75 * b11[1:-1] + 0.25 * b11[:-2]
    expected = 0.75 * rows[:, 1:-1] + 0.25 * rows[:, :-2]
    np.testing.assert_allclose(image[::2, ::2, BANDS.index("B11")], expected, rtol=1e-5)


@pytest.mark.integration
def test_kaakonkulma_is_patched_and_its_indices_are_read(shared: Path) -> None:
    folder = shared / "data/kaakonkulma-sim"
    config = InputConfig(fill=(str(folder / "spring.tif"),))
    coverage = Coverage()
    with open_stack([str(folder / "summer.tif")], [str(folder / "indices.tif")], config) as stack:
        image = stack.read(stack.grid.extent, coverage)
    files = [rasterio.open(folder / f"{n}.tif") for n in ("summer", "spring", "indices")]
    summer, spring, indices = (file.read() for file in files)
    hole = (indices[[0, 1, 3, 4]] == 0).any(axis=0) | (indices[2] == 255)
    np.testing.assert_array_equal(np.isnan(image[..., 0]), hole)
    np.testing.assert_array_equal(image[~hole][:, :9], last(np.where(summer, summer, spring))[~hole])
    np.testing.assert_array_equal(image[~hole][:, 9:], last(indices)[~hole])
    assert coverage.to_json()["patched"]["B02"] == pytest.approx(0.0278, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "options"),
    [("terramesh/brazil_l2a", {}), ("terramesh/denmark_l2a", {}), ("terramesh/ontario-snow_l2a", {}),
     ("terramesh/tanzania_l2a", {}), ("terramesh/chile_l2a", {"offset": -1000}),
     ("wroclaw/sentinel2_l2a", {}),
     ("sundarbans/north_l2a", {"scale": 1.5259e-05}), ("sundarbans/south_l2a", {"scale": 1.5259e-05})],
)  # fmt: skip
def test_real_scenes_become_plausible_reflectance(shared: Path, name: str, options: dict[str, float]) -> None:
    image = read([str(shared / "data" / f"{name}.tif")], **options)
    valid = ~np.isnan(image[..., 0])
    assert valid.mean() > 0.85
    assert 50 < np.median(image[valid][:, :9]) < 7000
    assert image[valid][:, 9:].min() >= 0 and image[valid][:, 9:].max() <= 200


@pytest.mark.parametrize(
    ("name", "option"),
    [("terramesh/chile_l2a", "--offset -1000"), ("sundarbans/north_l2a", "--scale 1.5259e-05")],
)
def test_real_scenes_in_other_units_are_answered_by_the_option(shared: Path, name: str, option: str) -> None:
    assert option in refuse("cannot take", [str(shared / "data" / f"{name}.tif")]).hint
