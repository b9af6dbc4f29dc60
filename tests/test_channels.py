"""Channel sets: read strictly, cut into stacks, and found by name again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from lulc.cli import make_classifications, train_model
from lulc.cli.preprocess import main
from lulc.config import InputConfig, PreprocessConfig
from lulc.core.channels import CHANNEL_SETS, channels_text
from lulc.core.schema import BANDS, CHANNELS, INDEX_UNIT, REFLECTANCE_UNIT, InputError
from lulc.core.statistics import Statistics
from lulc.core.windows import Window
from lulc.inference.domain_shift import differences
from lulc.preprocessing.preprocess import make_stacks
from lulc.preprocessing.tiling import with_absolute_paths
from lulc.rasters.channels import load_channels
from lulc.rasters.stack import open_stack

pytestmark = pytest.mark.integration

SIDE = 96
NATIVE = {"B01": 60, "B09": 60, "B05": 20, "B06": 20, "B07": 20, "B8A": 20, "B11": 20, "B12": 20}


def write(path: Path, values: np.ndarray, meters: float, name: str) -> str:
    with rasterio.open(
        path, "w", driver="GTiff", height=values.shape[0], width=values.shape[1], count=1, nodata=0,
        dtype=values.dtype, crs="EPSG:32635", transform=Affine(meters, 0, 5e5, 0, -meters, 6.8e6),
    ) as data:  # fmt: skip
        data.write(values, 1)
        data.descriptions = (name,)
    return str(path)


@pytest.fixture
def bands(tmp_path: Path) -> dict[str, str]:
    """Files of the twelve bands of level 2A at their own pixels, values by band."""
    rng = np.random.default_rng(3)
    files = {}
    for number, name in enumerate(CHANNEL_SETS["sentinel2-12"].names):
        meters = NATIVE.get(name, 10)
        values = rng.integers(200 + 100 * number, 900 + 150 * number, (SIDE * 10 // meters,) * 2)
        files[name] = write(tmp_path / f"{name}.tif", values.astype(np.uint16), meters, name)
    return files


def config(bands: dict[str, str], folder: Path, channels: str, **options: object) -> PreprocessConfig:
    labels = (np.indices((SIDE, SIDE)).sum(0) // 16 % 4 + 1).astype(np.uint8)
    classes = write(folder / "labels.tif", labels, 10, "class")
    given = {
        "bands": tuple(bands.values()), "labels": classes, "scheme": "kaakonkulma-13", "size": 48, "gap": 0,
        "out": str(folder / "stacks"), "channels": channels,
    }  # fmt: skip
    return PreprocessConfig(**(given | options))


@pytest.mark.parametrize("name", sorted(CHANNEL_SETS))
def test_a_printed_set_reads_as_the_set(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--print-channels", name])
    assert end.value.code == 0
    file = tmp_path / "own.yaml"
    file.write_text(capsys.readouterr().out)
    assert load_channels(str(file)) == load_channels(name) == CHANNEL_SETS[name]


def test_the_default_set_is_that_of_the_original_system() -> None:
    assert load_channels(PreprocessConfig.channels).names == CHANNELS


def test_names_in_a_file_may_be_common_ones(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("format_version: 1\nchannels: [nir, b8a, red, ndvi]\n")
    assert load_channels(str(file)).names == ("B08", "B8A", "B04", "NDVI")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("format_version: 1\nchannels: [B04, XX]\n", "XX is no channel"),
        ("format_version: 1\nchannels: [B04, red]\n", "B04 stands twice"),
        ("format_version: 1\nchannels: []\n", "empty"),
        ("format_version: 1\nchannels: B04\n", "a list of channels"),
        ("format_version: 1\n", "a list of channels"),
        ("channels: [B04]\n", "format_version: 1"),
        ("format_version: 2\nchannels: [B04]\n", "upgrade"),
        ("format_version: one\nchannels: [B04]\n", "not of type 'integer'"),
        ("format_version: 1\nchannels: [B04]\nkind: any\n", "kind"),
        ("format_version: 1\nchannels: [[B04]]\n", "not of type 'string', 'object'"),
        ("channels: [B04]\nchannels: [B08]\n", "twice"),
        ("!!python/object/apply:os.system ['true']", "not of type 'object'"),
        ("format_version: 1\nchannels: [B04", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_channel_set_is_refused(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match="channel") as error:
        load_channels(str(file))
    assert said in str(error.value)


def test_an_unknown_set_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(InputError, match="sentinel2-10, sentinel2-12"):
        load_channels("sentinel2-11")


def test_all_bands_of_level_2a_are_cut_in_order_of_the_set(bands: dict[str, str], tmp_path: Path) -> None:
    manifest = make_stacks(config(bands, tmp_path, "sentinel2-12"))
    assert tuple(c["name"] for c in manifest.channels) == CHANNEL_SETS["sentinel2-12"].names
    assert {c["unit"] for c in manifest.channels} == {REFLECTANCE_UNIT}
    assert manifest.parameters["channels"] == list(CHANNEL_SETS["sentinel2-12"].names)
    assert len(manifest.statistics.mean) == 12
    for stack in manifest.stacks:
        assert stack.window
        image = np.load(stack.image)
        assert image.shape == (48, 48, 12)
        for number, name in enumerate(CHANNEL_SETS["sentinel2-12"].names):
            with rasterio.open(bands[name]) as data:
                there = data.read(1)
            if NATIVE.get(name, 10) == 10:
                assert np.array_equal(image[..., number], there[stack.window.slices])
            else:
                assert (
                    there.min()
                    <= np.nanmin(image[..., number])
                    <= np.nanmax(image[..., number])
                    <= there.max()
                )


def test_an_index_is_computed_from_bands_that_are_no_channels(bands: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(channels_text(["NDVI", "B8A"]))
    manifest = make_stacks(config(bands, tmp_path, str(file)))
    assert [(c["name"], c["unit"], c["coding"]) for c in manifest.channels] == [
        ("NDVI", INDEX_UNIT, "computed"), ("B8A", REFLECTANCE_UNIT, "read"),
    ]  # fmt: skip
    with rasterio.open(bands["B08"]) as first, rasterio.open(bands["B04"]) as second:
        nir, red = (data.read(1).astype(np.float64) for data in (first, second))
    stack = manifest.stacks[0]
    assert stack.window
    expected = (100 * (nir - red) / (nir + red) + 100)[stack.window.slices]
    assert np.allclose(np.load(stack.image)[..., 0], expected, atol=1e-3)


def test_the_default_set_says_nothing_new_in_parameters_or_key(bands: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "same.yaml"
    file.write_text(channels_text(CHANNELS))
    (tmp_path / "a").mkdir()
    first = make_stacks(config(bands, tmp_path / "a", "kaakonkulma-14"))
    assert "channels" not in first.parameters
    assert make_stacks(config(bands, tmp_path / "a", str(file))).key == first.key
    with pytest.raises(InputError, match="other inputs or parameters"):
        make_stacks(config(bands, tmp_path / "a", "sentinel2-10"))


def test_a_missing_band_is_refused_with_both_lists(bands: dict[str, str], tmp_path: Path) -> None:
    del bands["B8A"]
    with pytest.raises(InputError, match="B8A is missing; found") as error:
        make_stacks(config(bands, tmp_path, "sentinel2-10"))
    assert ", ".join(CHANNEL_SETS["sentinel2-10"].names) in str(error.value)


def test_a_pixel_that_lacks_a_further_band_is_invalid_in_all(bands: dict[str, str], tmp_path: Path) -> None:
    values = np.full((SIDE // 2, SIDE // 2), 2000, np.uint16)
    values[4:8, 4:8] = 0
    bands["B8A"] = write(tmp_path / "gap.tif", values, 20, "B8A")
    channels = CHANNEL_SETS["sentinel2-10"].names
    with open_stack(list(bands.values()), [], InputConfig(), channels=channels) as stack:
        image = stack.read(Window(0, 0, SIDE, SIDE))
    assert np.isnan(image[10:14, 10:14]).all()
    assert not np.isnan(image[30:]).any()


def test_a_forgotten_offset_is_told_of_bands_outside_the_default_set() -> None:
    training, found = Statistics((800.0,), (150.0,), 9), Statistics((1800.0,), (150.0,), 9)
    assert "--offset -1000" in differences(["B8A"], found, training)[1]


def test_workers_get_the_path_of_a_file_and_the_name_of_a_set(
    bands: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("own.yaml", "sentinel2-10"):
        Path(name).write_text(channels_text(BANDS))
    assert with_absolute_paths(config(bands, tmp_path, "own.yaml")).channels == str(tmp_path / "own.yaml")
    assert with_absolute_paths(config(bands, tmp_path, "sentinel2-10")).channels == "sentinel2-10"


def test_the_summary_of_stacks_without_an_index_names_none(
    bands: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = config(bands, tmp_path, "sentinel2-10")
    words = ["--bands", *given.bands, "--labels", str(given.labels), "--scheme", "kaakonkulma-13"]
    assert main([*words, "--channels", "sentinel2-10", "--size", "48", "--gap", "0", "--out", given.out]) == 0
    shown = capsys.readouterr().out
    assert "B8A" in shown and "indices:" not in shown
    assert json.loads((tmp_path / "stacks" / "manifest.json").read_text())["channels"][7]["name"] == "B8A"


def test_a_network_of_other_channels_finds_them_by_name(bands: dict[str, str], tmp_path: Path) -> None:
    given = config(bands, tmp_path, "sentinel2-10")
    make_stacks(given)
    run = str(tmp_path / "run")
    small = "--epochs 1 --steps 2 --validation-steps 1 --batch-size 2 --crop-sizes 32 --filters 4 -q"
    words = [*small.split(), "--validation-crop-sizes", "32", "--gain", "0.1"]
    assert train_model.main([given.out, "--out", run, *words]) == 0
    maps = [tmp_path / "map.tif", tmp_path / "turned.tif"]
    for out, files in zip(maps, (list(bands.values()), list(bands.values())[::-1]), strict=True):
        assert make_classifications.main([run, *files, str(out), "-q"]) == 0
    first, second = (rasterio.open(path) for path in maps)
    with first, second:
        assert np.array_equal(first.read(), second.read())
        assert set(json.loads(first.tags()["LULC_CHANNELS"])) == set(CHANNEL_SETS["sentinel2-10"].names)
        assert (first.read(1) > 0).all()
    del bands["B8A"]
    assert make_classifications.main([run, *bands.values(), str(tmp_path / "none.tif"), "-q"]) == 1
    assert not (tmp_path / "none.tif").exists()
