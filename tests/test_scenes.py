"""Many scenes on one grid: what is read of them, and how they are named."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS

from lulc.config import InputConfig
from lulc.core.schema import BANDS, InputError
from lulc.core.windows import Window
from lulc.rasters import scenes as scenes_module
from lulc.rasters.items import read_item
from lulc.rasters.scenes import find_scenes, open_scenes, read_scenes
from lulc.rasters.stack import Coverage, open_stack

UTM = CRS.from_epsg(32635)
ORIGIN = Affine(10, 0, 500000, 0, -10, 6800000)
NAMES = tuple(BANDS)


def write(
    path: Path, layers: np.ndarray, row: float = 0, col: float = 0, *,
    names: Sequence[str] = NAMES, size: int = 10,
) -> str:  # fmt: skip
    transform = ORIGIN @ Affine.translation(col, row) @ Affine.scale(size / 10)
    with rasterio.open(
        path, "w", driver="GTiff", height=layers.shape[1], width=layers.shape[2], count=len(layers),
        dtype=layers.dtype, crs=UTM, transform=transform, nodata=0,
    ) as data:  # fmt: skip
        data.write(layers)
        data.descriptions = tuple(names)
    return str(path)


def pixels(seed: int, shape: tuple[int, int] = (40, 50), holes: float = 0.2) -> np.ndarray:
    rng = np.random.default_rng(seed)
    found = rng.integers(200, 4000, (len(NAMES), *shape)).astype(np.uint16)
    found[rng.random(found.shape) < holes] = 0
    return found


def first_wins(placed: Sequence[tuple[np.ndarray, int, int]]) -> np.ndarray:
    """float32 (band, y, x) of the union: of each band of a pixel the first that is not 0; NaN for none."""
    tops, lefts = [row for _, row, _ in placed], [col for _, _, col in placed]
    bottom = max(row + a.shape[1] for a, row, _ in placed)
    right = max(col + a.shape[2] for a, _, col in placed)
    whole = np.zeros((len(NAMES), bottom - min(tops), right - min(lefts)), np.float32)
    for array, row, col in reversed(placed):
        place = (slice(None), slice(row - min(tops), row - min(tops) + array.shape[1]),
                 slice(col - min(lefts), col - min(lefts) + array.shape[2]))  # fmt: skip
        whole[place] = np.where(array > 0, array, whole[place])
    return np.where(whole == 0, np.nan, whole)


def read_whole(paths: Sequence[str], **options: Any) -> np.ndarray:
    """(band, y, x) of the bands, invalid bands and pixels alike NaN."""
    with open_stack((), (), InputConfig(**options), scenes=paths, channels=NAMES) as stack:
        return np.moveaxis(stack.read(stack.grid.extent), -1, 0)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-60, 60), st.integers(-60, 60)), min_size=1, max_size=4),
    st.integers(0, 2**16),
)
def test_of_each_band_of_a_pixel_the_first_scene_that_has_it_wins(
    tmp_path_factory: pytest.TempPathFactory, places: list[tuple[int, int]], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("scenes")
    placed = [(pixels(seed + i), row, col) for i, (row, col) in enumerate(places)]
    paths = [write(folder / f"s{i}.tif", *scene) for i, scene in enumerate(placed)]
    expected = first_wins(placed)
    expected[:, np.isnan(expected).any(axis=0)] = np.nan
    assert np.array_equal(read_whole(paths), expected, equal_nan=True)


def test_windows_of_scenes_are_those_of_the_whole_and_few_files_are_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenes_module, "OPEN", 2)
    placed = [(pixels(i, (30, 30)), 20 * (i // 3), 20 * (i % 3)) for i in range(9)]
    paths = [write(tmp_path / f"s{i}.tif", *scene) for i, scene in enumerate(placed)]
    read_whole(paths)  # the server of reader processes keeps its own files open
    before = len(os.listdir("/proc/self/fd"))
    with open_stack((), (), InputConfig(), scenes=paths, channels=NAMES) as stack:
        coverage = Coverage()
        whole = stack.read(stack.grid.extent, coverage)
        assert len(os.listdir("/proc/self/fd")) - before <= 2
        for row in range(-5, 70, 17):
            for col in range(-5, 70, 23):
                window = Window(row, col, 17, 23)
                common = window.intersect(stack.grid.extent)
                part = stack.read(window)[common.relative_to(window).slices]
                assert np.array_equal(part, whole[common.slices], equal_nan=True)
        assert stack.provenance["channels"]["B02"]["file"] == "9 scenes"
        assert [s["files"] for s in stack.provenance["scenes"]] == [[f"s{i}.tif"] for i in range(9)]
        assert [i["name"] for i in stack.identity()] == [f"s{i}.tif" for i in range(9)]
    assert coverage.patched == dict.fromkeys(NAMES, 0) and coverage.pixels == 70 * 70
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_fill_patches_what_no_scene_has(tmp_path: Path) -> None:
    placed = [(pixels(0), 0, 0), (pixels(1), 10, 20)]
    paths = [write(tmp_path / f"s{i}.tif", *scene) for i, scene in enumerate(placed)]
    fill = pixels(2, (50, 70), holes=0)
    found = read_whole(paths, fill=(write(tmp_path / "fill.tif", fill),))
    expected = first_wins(placed)
    assert np.array_equal(found, np.where(np.isnan(expected), fill, expected))


def test_bands_of_20_m_are_interpolated_as_in_their_scene_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    paths = []
    for i in range(2):
        fine = rng.integers(200, 4000, (4, 40, 40)).astype(np.uint16)
        coarse = rng.integers(200, 4000, (5, 20, 20)).astype(np.uint16)
        (tmp_path / str(i)).mkdir()
        for name, layer in zip(("B02", "B03", "B04", "B08"), fine, strict=True):
            write(tmp_path / str(i) / f"{name}.tif", layer[None], 26 * i, 26 * i, names=[name])
        for name, layer in zip(("B05", "B06", "B07", "B11", "B12"), coarse, strict=True):
            write(tmp_path / str(i) / f"{name}.tif", layer[None], 26 * i, 26 * i, names=[name], size=20)
        paths.append(str(tmp_path / str(i)))
    assert [len(scene) for scene in find_scenes(paths)] == [9, 9]
    both = read_whole(paths)
    alone = [read_whole([path]) for path in paths]
    assert np.array_equal(both[:, :40, :40], alone[0])
    assert np.array_equal(both[:, 40:, 40:], alone[1][:, 14:, 14:])
    assert np.isnan(both[:, :26, 40:]).all()


def test_like_chooses_the_grid_and_resample_admits_others(tmp_path: Path) -> None:
    scene = pixels(0, holes=0)
    paths = [write(tmp_path / "a.tif", scene, 5, 5), write(tmp_path / "far.tif", scene, 900, 900)]
    like = write(tmp_path / "like.tif", pixels(1, (20, 30)), 10, 10)
    assert np.array_equal(read_whole(paths, like=like), scene[:, 5:25, 5:35])
    assert np.array_equal(read_whole(paths, like=like, resample=True), scene[:, 5:25, 5:35])
    with pytest.raises(InputError, match="none lies on the grid"):
        read_whole(paths[1:], like=like)
    shifted = write(tmp_path / "shifted.tif", scene, 0.5, 0.25)
    with pytest.raises(InputError, match="beside the other scenes") as refused:
        read_whole([paths[0], shifted])
    assert "--resample" in refused.value.hint
    moved = read_whole([paths[0], shifted], resample=True)
    assert np.array_equal(moved[:, 5:45, 5:55], scene)
    mean = (scene[:, :-1].astype(float) + scene[:, 1:]) / 2
    along = 0.25 * mean[:, :4, :-1] + 0.75 * mean[:, :4, 1:]
    assert moved[:, 1:5, 1:50] == pytest.approx(along, rel=1e-5)


def test_what_was_found_is_handed_to_another_process_whole(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"s{i}.tif", pixels(i), 7 * i, 9 * i) for i in range(3)]
    config = InputConfig()
    found = open_scenes(find_scenes(paths), config, NAMES)
    found.write(tmp_path / "scenes.json")
    again = read_scenes(tmp_path / "scenes.json", config)
    assert (again.scenes, again.grid, again.names) == (found.scenes, found.grid, found.names)
    found.close()
    (tmp_path / "scenes.json").write_text('{"grid": {}, "names": [], "scenes": []}')
    with pytest.raises(InputError, match="list of scenes"):
        read_scenes(tmp_path / "scenes.json", config)


def test_a_scene_without_a_band_is_named(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / "a.tif", pixels(0)),
        write(tmp_path / "b.tif", pixels(1)[:-1], names=NAMES[:-1]),
    ]
    with pytest.raises(InputError, match=r"b\.tif") as refused:
        read_whole(paths)
    assert NAMES[-1] in refused.value.problem


def test_files_of_one_scene_differ_in_the_band_and_folders_are_searched_by_name(tmp_path: Path) -> None:
    for name in (
        "T35_B02_10m.tif",
        "T35_B03_10m.tif",
        "T36_B02_10m.tif",
        "mosaic.tif",
        "notes.txt",
        ".hidden.tif",
    ):
        (tmp_path / name).touch()
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "B02.jp2").touch()
    (tmp_path / "S2A.SAFE").mkdir()
    (tmp_path / "own.vrt").write_text("<VRTDataset/>")
    found = find_scenes([str(tmp_path)])
    assert [[str(Path(p).relative_to(tmp_path)) for p in scene] for scene in found] == [
        ["S2A.SAFE"], ["T35_B02_10m.tif", "T35_B03_10m.tif"], ["T36_B02_10m.tif"], ["deeper/B02.jp2"],
        ["mosaic.tif"],
    ]  # fmt: skip
    assert (str(tmp_path / "own.vrt"),) in find_scenes([str(tmp_path)], allow_vrt=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no scene"):
        find_scenes([str(tmp_path / "empty")])


def item(assets: dict[str, Any], **properties: Any) -> dict[str, Any]:
    return {"type": "Feature", "stac_version": "1.0.0", "id": "x", "assets": assets, "properties": properties}


def write_item(folder: Path, seed: int = 0, **properties: Any) -> tuple[str, np.ndarray]:
    """A STAC item in the manner of public catalogues: a file for each band, and the scene classification."""
    folder.mkdir()
    found = pixels(seed, holes=0)
    keys = ("blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", "swir16", "swir22")
    scaling = [{"scale": 0.0001, "offset": -0.1, "nodata": 0}]
    assets: dict[str, Any] = {"thumbnail": {"href": "https://example.com/x.jpg", "roles": ["thumbnail"]}}
    for key, name, layer in zip(keys, NAMES, found, strict=True):
        write(folder / f"{key}.tif", layer[None], names=[""])
        assets[f"{key}-jp2"] = {"href": f"s3://elsewhere/{name}.jp2", "eo:bands": [{"name": key}]}
        assets[key] = {"href": f"./{key}.tif", "eo:bands": [{"name": key}], "raster:bands": scaling}
    classes = np.full((1, *found.shape[1:]), 4, np.uint8)
    classes[0, :5] = 9
    write(folder / "SCL.tif", classes, names=["SCL"])
    assets["scl"] = {"href": "SCL.tif"}
    (folder / "item.json").write_text(json.dumps(item(assets, **properties)))
    return str(folder / "item.json"), found


def test_a_stac_item_names_bands_scale_offset_and_clouds(tmp_path: Path) -> None:
    path, stored = write_item(tmp_path / "a")
    clear = read_whole([path])
    assert np.isnan(clear[:, :5]).all()
    expected = stored[:, 5:] - 1000.0
    valid = (expected >= -1000).all(axis=0)
    assert np.allclose(clear[:, 5:][:, valid], expected[:, valid], atol=0.01)
    assert find_scenes([str(tmp_path)]) == [(path,)]
    applied, stored = write_item(tmp_path / "b", 1, **{"earthsearch:boa_offset_applied": True})
    assert np.allclose(read_whole([applied])[:, 5:], stored[:, 5:], atol=0.01)
    # Clouds of the first are filled from the second.
    both = read_whole([path, write(tmp_path / "c.tif", stored)])
    assert np.allclose(both[:, :5], stored[:, :5])


def test_an_item_is_taken_as_bands_too(tmp_path: Path) -> None:
    path, stored = write_item(tmp_path / "a", **{"earthsearch:boa_offset_applied": True})
    with open_stack((path,), (), InputConfig(), channels=NAMES) as stack:
        found = np.moveaxis(stack.read(stack.grid.extent), -1, 0)
    assert np.allclose(found[:, 5:], stored[:, 5:], atol=0.01) and np.isnan(found[:, :5]).all()


def test_the_finest_file_of_a_band_is_taken(tmp_path: Path) -> None:
    for name in ("B02_10m", "B02_20m", "TCI_10m"):
        (tmp_path / f"{name}.jp2").touch()
    assets = {
        "B02_20m": {"href": "B02_20m.jp2", "gsd": 10},
        "TCI_10m": {"href": "TCI_10m.jp2", "bands": [{"name": n} for n in ("B04", "B03", "B02")]},
        "B02_10m": {"href": "B02_10m.jp2", "gsd": 10},
    }
    (tmp_path / "item.json").write_text(json.dumps(item(assets)))
    found, mask = read_item(tmp_path / "item.json")
    assert Path(found["B02"].path).name == "B02_10m.jp2" and mask is None


@pytest.mark.parametrize(
    ("document", "what"),
    [
        (item({"B02": {"href": "../outside.tif"}}), "outside its folder"),
        (item({"B02": {"href": "/etc/passwd"}}), "outside its folder"),
        (item({"B02": {"href": "link.tif"}}), "outside its folder"),
        (item({"B02": {"href": "https://example.com/B02.tif"}}), "address"),
        (item({"B02": {"href": "/vsicurl/https://example.com/B02.tif"}}), "address"),
        (item({"B02": {"href": "<VRTDataset/>"}}), "address"),
        (item({"B02": {"href": "missing.tif"}}), "no such file"),
        (item({"data": {"href": "B02.tif"}}), "none of its assets"),
        (item({"B02": {"href": 7}}), "assets/B02/href"),
        ({"type": "FeatureCollection", "features": []}, "stac_version"),
        ({"type": "Collection", "stac_version": "1.0.0"}, "does not fit|assets"),
    ],
)  # fmt: skip
def test_an_item_that_leads_elsewhere_or_is_none_is_refused(tmp_path: Path, document: Any, what: str) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    write(tmp_path / "outside.tif", pixels(0)[:1], names=["B02"])
    (folder / "link.tif").symlink_to(tmp_path / "outside.tif")
    (folder / "B02.tif").touch()
    (folder / "item.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=what):
        read_item(folder / "item.json")


@pytest.mark.parametrize(
    "href", ["/vsizip//home/a.zip/B02.tif", "/vsimem/a", "file:///B02.tif", "NETCDF:a:b"]
)
def test_an_item_leads_over_the_network_but_never_elsewhere_on_this_machine(
    tmp_path: Path, href: str
) -> None:
    (tmp_path / "item.json").write_text(json.dumps(item({"B02": {"href": href}})))
    with pytest.raises(InputError, match="address"):
        read_item(tmp_path / "item.json", allow_remote=True)
    (tmp_path / "item.json").write_text(json.dumps(item({"B02": {"href": "https://example.com/B02.tif"}})))
    assert (
        read_item(tmp_path / "item.json", allow_remote=True)[0]["B02"].path == "https://example.com/B02.tif"
    )
