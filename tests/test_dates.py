"""Several dates and further rasters: masks of a date, reading rules of another place, workers elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import distributed
import numpy as np
import pytest
import rasterio

import lulc
from lulc.cli import make_classifications, preprocess, reproduce_map, train_model
from lulc.config import ClassifyConfig, EvaluateConfig
from lulc.core.channels import CHANNEL_SETS
from lulc.core.schema import InputError

from .test_channel_sets import SIDE, bands, channel_set, read, tif

pytestmark = pytest.mark.integration


@pytest.fixture
def dates(tmp_path: Path) -> list[str]:
    return [f"{date}={bands(tmp_path / f'{date}.tif', i)}" for i, date in enumerate(("spring", "summer"))]


def codes(folder: Path, name: str, rows: slice, value: int = 1, meters: float = 10) -> str:
    """A raster of 0 with some rows of a value."""
    side = int(SIDE * 10 / meters)
    data = np.zeros((1, side, side), np.uint8)
    data[:, rows] = value
    return tif(folder / name, data, meters=meters)


# Masks


def test_a_mask_of_a_date_leaves_out_pixels_of_that_date_and_may_be_patched(
    dates: list[str], tmp_path: Path
) -> None:
    channels = channel_set(tmp_path, "channels: [B04, NDVI]\ndates: [spring, summer]\n")
    plain = read(dates, channels)
    spring, summer = codes(tmp_path, "a.tif", slice(0, 8)), codes(tmp_path, "b.tif", slice(40, 48), 1, 20)
    filling = bands(tmp_path / "other.tif", 7)
    masks = (f"spring={spring}", f"summer={summer}")
    found = read(dates, channels, mask=masks)
    gone = np.zeros(SIDE, bool)
    gone[:8] = True
    assert all(np.isnan(plane[gone]).all() for plane in found.values())
    found = read(dates, channels, mask=masks, fill=(f"spring={filling}", f"summer={filling}"))
    patch = read([filling], CHANNEL_SETS["kaakonkulma-14"])
    for name, rows in (("spring/B04", slice(0, 8)), ("summer/NDVI", slice(80, 96))):
        assert np.array_equal(found[name][rows], patch[name.partition("/")[2]][rows])
    assert np.array_equal(found["summer/B04"][:40], plain["summer/B04"][:40])


def test_masks_without_a_date_leave_out_pixels_of_all_dates(dates: list[str], tmp_path: Path) -> None:
    channels = channel_set(tmp_path, "channels: [B04]\ndates: [spring, summer]\n")
    masks = [codes(tmp_path, f"{row}.tif", slice(row, row + 4), 9) for row in (0, 20)]
    found = read(dates, channels, mask=tuple(masks), mask_values=(9,))
    for plane in found.values():
        assert np.array_equal(np.flatnonzero(np.isnan(plane).all(1)), [0, 1, 2, 3, 20, 21, 22, 23])


def test_the_values_of_masks_are_those_of_a_mask_of_one_date(dates: list[str], tmp_path: Path) -> None:
    optional = "{name: B04, kind: reflectance, may_be_missing: true}"
    channels = channel_set(tmp_path, f"channels: [{optional}]\ndates: [spring, summer]\n")
    classes = codes(tmp_path, "classes.tif", slice(0, 8), 9)
    found = read(dates, channels, mask=(f"summer={classes}",), mask_values=(9,))
    assert np.isnan(found["summer/B04"][:8]).all() and not np.isnan(found["spring/B04"]).any()
    with pytest.raises(InputError, match="holds the values 0, 9") as error:
        read(dates, channels, mask=(f"summer={classes}",))
    assert "--mask-values" in error.value.hint


@pytest.mark.parametrize(
    ("masks", "said"),
    [
        (
            ("autumn=A",),
            "of the date autumn, expected one of the dates of the channels: spring, summer",
        ),
        (("spring=A", "spring=A"), "its date has another one"),
        (("winter=A", "spring=A"), "no raster with bands is given for the date winter"),
    ],
)
def test_a_mask_that_fits_no_date_is_refused(masks: tuple[str, ...], said: str, tmp_path: Path) -> None:
    mask = codes(tmp_path, "a.tif", slice(0, 8))
    names = ["spring", "summer", *(["winter"] if masks[0][:6] == "winter" else [])]
    given = [f"{date}={bands(tmp_path / f'{date}.tif', i)}" for i, date in enumerate(names[:2])]
    text = "{name: B04, kind: reflectance, may_be_missing: true}"
    channels = channel_set(tmp_path, f"channels: [{text}]\ndates: [{', '.join(names)}]\n")
    with pytest.raises(InputError, match=said):
        read(given, channels, mask=tuple(m.replace("=A", f"={mask}") for m in masks))


def test_dates_of_scenes_and_of_masks_without_dates_are_refused_with_the_reason(tmp_path: Path) -> None:
    path, mask = bands(tmp_path / "a.tif", 1), codes(tmp_path, "mask.tif", slice(0, 8))
    with pytest.raises(InputError, match="expected one of the dates of the channels: none"):
        read([path], CHANNEL_SETS["kaakonkulma-14"], mask=(f"spring={mask}",))
    labels = tif(tmp_path / "labels.tif", np.ones((1, SIDE, SIDE), np.uint8))
    with pytest.raises(InputError, match="--scenes for several dates") as error:
        lulc.make_stacks(
            scenes=[f"spring={tmp_path}"], labels=labels, scheme="kaakonkulma-13", out=str(tmp_path / "out")
        )
    assert "make_mosaic.py" in error.value.hint


# Reading rules of another place


def test_what_is_typed_wins_over_the_file_of_reading_rules(tmp_path: Path) -> None:
    rules = tmp_path / "reading.yaml"
    rules.write_text("format_version: 1\noffset: -200\nresample: true\nlayers: ['VV,VH=s1.tif', dem.tif]\n")
    given = {"model": "m", "inputs": ["a.tif"], "out": "map.tif", "reading": rules}
    found = ClassifyConfig(**given, layers=["b/s1.tif", "b/dem.tif"])
    assert found.layers == ("VV,VH=b/s1.tif", "b/dem.tif") and found.reading is None
    assert (found.offset, found.resample) == (-200.0, True)
    assert ClassifyConfig(**given, offset=-1000).offset == -1000
    # The rasters of one place are not those of another.
    assert ClassifyConfig(**given).layers == ()
    assert ClassifyConfig(**given, layers=["HH=b/s1.tif", "dem.tif"]).layers == ("HH=b/s1.tif", "dem.tif")
    rules.write_text("model: other\n")
    with pytest.raises(InputError, match="'model' is no option"):
        ClassifyConfig(**given)


# A network of two dates, radar and terrain, at two places and on a cluster


class Scene:
    """Rasters of a place: two dates, radar without names, elevation on pixels of 30 m, clouds, labels."""

    def __init__(self, folder: Path, seed: int) -> None:
        side = 96
        self.folder = folder
        folder.mkdir()
        rng = np.random.default_rng(seed)
        classes = (np.indices((side, side)).sum(0) // 16 % 2 + 1).astype(np.uint8)
        for date, factor in (("spring", 300), ("summer", 900)):
            data = np.uint16(factor) * classes + rng.integers(200, 400, (3, side, side)).astype(np.uint16)
            # Stored with an offset that no metadata tell, and without names.
            tif(folder / f"{date}.tif", (data + 200).astype(np.uint16))
        tif(folder / "s1.tif", rng.normal(-12, 2, (2, side // 2, side // 2)).astype(np.float32), meters=20)
        tif(folder / "dem.tif", rng.uniform(90, 110, (1, side // 3, side // 3)).astype(np.float32), meters=30)
        clouds = np.zeros((1, side, side), np.uint8)
        clouds[:, :10] = 1
        tif(folder / "clouds.tif", clouds)
        tif(folder / "labels.tif", classes[None])

    def words(self, at: str) -> list[str]:
        """Options for the rasters of the place, below a folder."""
        dated = [f"{date}={at}/{date}.tif" for date in ("spring", "summer")]
        return [*dated, "--layers", f"{at}/s1.tif", f"{at}/dem.tif", "--mask", f"spring={at}/clouds.tif"]


CHANNELS = """format_version: 1
channels:
  - {name: B04, may_be_missing: true}
  - {name: B08, may_be_missing: true}
  - {name: growth, formula: "fraction(summer/B08) - fraction(spring/B08)", may_be_missing: true}
  - VV
  - VH
  - elevation
  - slope
inputs: [B03]
dates: [spring, summer]
"""


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scene, list[str]]:
    """A place with a run folder, and the options of its stacks beside folder and output."""
    scene = Scene(tmp_path_factory.mktemp("dates") / "first", 1)
    (scene.folder / "channels.yaml").write_text(CHANNELS)
    at = str(scene.folder)
    words = ["--bands", *scene.words(at)]
    words[words.index(f"{at}/s1.tif")] = f"VV,VH={at}/s1.tif"
    words += ["--channels", f"{at}/channels.yaml", "--band-names", "B03", "B04", "B08", "--offset", "-200"]
    words += ["--labels", f"{at}/labels.tif", "--scheme", "kaakonkulma-13", "--size", "48", "--gap", "0"]
    assert preprocess.main([*words, "--out", f"{at}/stacks", "-q"]) == 0
    small = "--epochs 1 --steps 3 --validation-steps 1 --batch-size 2 --crop-sizes 32 --filters 4 -q"
    more = ["--validation-crop-sizes", "32", "--recipe", "default"]
    assert train_model.main([f"{at}/stacks", "--out", f"{at}/run", *small.split(), *more]) == 0
    return scene, words


@pytest.fixture
def second(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "second", 2)


def test_nothing_is_typed_twice_for_another_place(
    first: tuple[Scene, list[str]], second: Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home, away = str(first[0].folder), str(second.folder)
    out, by_hand = tmp_path / "map.tif", tmp_path / "by-hand.tif"
    words = second.words(away)
    command = [f"{home}/run", *words[:2], str(out), *words[2:], "--pick", "last"]
    assert make_classifications.main([*command, "--inputs", f"{home}/stacks/reading.yaml", "-q"]) == 0
    typed = [f"VV,VH={away}/s1.tif" if word == f"{away}/s1.tif" else word for word in command]
    typed[3] = str(by_hand)
    options = ["--band-names", "B03", "B04", "B08", "--offset", "-200"]
    assert make_classifications.main([*typed, *options, "-q"]) == 0
    with rasterio.open(out) as one, rasterio.open(by_hand) as other:
        assert np.array_equal(one.read(), other.read())
        assert one.tags()["LULC_PARAMETERS"] == other.tags()["LULC_PARAMETERS"]
        # A cloud in spring costs the map no pixel.
        assert (one.read(1)[2:-2, 2:-2] > 0).all()
    capsys.readouterr()
    assert reproduce_map.main([str(out), "--inputs", away, f"{home}/run", "-q"]) == 0
    assert make_classifications.main([*command[:3], str(tmp_path / "none.tif"), "-q"]) == 1
    assert "cannot tell bands from indices" in capsys.readouterr().err


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[distributed.LocalCluster]:
    """A scheduler and a worker process, started in a folder of their own."""
    folder, before = tmp_path_factory.mktemp("elsewhere"), os.getcwd()
    os.chdir(folder)
    try:
        with distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0", local_directory=str(folder),
            silence_logs=50,
        ) as started:  # fmt: skip
            os.chdir(before)
            yield started
    finally:
        os.chdir(before)


def test_workers_elsewhere_cut_and_classify_dates_and_further_rasters_to_the_same_bytes(
    first: tuple[Scene, list[str]], cluster: distributed.LocalCluster, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    scene, words = first
    home = str(scene.folder)
    monkeypatch.chdir(scene.folder.parent)
    relative = [word.replace(home, "first") for word in words]
    dask = ["--dask", cluster.scheduler_address, "-q"]
    assert preprocess.main([*relative, "--out", str(tmp_path / "stacks"), *dask]) == 0
    alone = {p.name: p.read_bytes() for p in Path(home, "stacks").iterdir() if not p.name.startswith(".")}
    made = {p.name: p.read_bytes() for p in (tmp_path / "stacks").iterdir() if not p.name.startswith(".")}
    assert made == alone and "reading.yaml" in made
    inputs = scene.words("first")
    rules = ["--inputs", "first/stacks/reading.yaml", "--pick", "last", "--engine", "keras"]
    for name, more in (("alone.tif", ["-q"]), ("cluster.tif", dask)):
        command = ["first/run", *inputs[:2], str(tmp_path / name), *inputs[2:], *rules, *more]
        assert make_classifications.main(command) == 0
    assert (tmp_path / "alone.tif").read_bytes() == (tmp_path / "cluster.tif").read_bytes()


def test_masks_are_a_list_in_reports_too(tmp_path: Path) -> None:
    found = EvaluateConfig(map="map.tif", reference="labels.tif", out=str(tmp_path / "r"), mask="clouds.tif")
    assert found.mask == ("clouds.tif",)
