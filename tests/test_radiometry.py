"""DN to reflectance, and the signs of a wrong scale or offset."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import rasterio

from lulc.core.schema import BANDS, InputError
from lulc.rasters.layers import Layer
from lulc.rasters.missing import Missing
from lulc.rasters.radiometry import Scaling, check_radiometry, choose_scaling, reflectance


def convert(dn: list[float], dtype: str, scaling: Scaling | None = None, nodata: float | None = None):
    stored = np.array([dn], dtype=dtype)
    out, valid = np.empty(stored.shape, "float32"), np.empty(stored.shape, bool)
    reflectance(stored, scaling or Scaling(), Missing().also(nodata), out, valid)
    return out[0], valid[0].tolist()


def scene(
    offset: int = 0, factor: float = 1.0, dtype: str = "uint16", seed: int = 0
) -> dict[str, np.ndarray]:
    """Water, forest and fields: reflectance x 10000 of every band, then stored in another way."""
    rng = np.random.default_rng(seed)
    spectra = np.array([[300, 250, 150, 100, 60, 60, 50, 30, 20],
                        [250, 450, 280, 800, 2200, 2800, 3000, 1400, 600],
                        [700, 1000, 1300, 1700, 2100, 2300, 2500, 3000, 2300]])  # fmt: skip
    kinds = rng.integers(0, 3, 6000)
    values = spectra[kinds] * rng.uniform(0.7, 1.4, (6000, 1)) + rng.normal(0, 10, (6000, 9))
    stored = np.round(np.maximum(values, 1)) + offset
    stored = stored * factor
    stored = np.round(stored) if np.dtype(dtype).kind == "u" else stored
    return {band: stored[:, i].astype(dtype) for i, band in enumerate(BANDS)}


def check(samples: dict[str, np.ndarray], scaling: Scaling | None = None) -> None:
    check_radiometry(samples, dict.fromkeys(samples, scaling or Scaling()), "mosaic.tif")


def test_reflectance_is_offset_then_scaled_and_stored_times_10000() -> None:
    out, valid = convert([1000, 1500, 3000], "uint16", Scaling(0.0001, -1000))
    assert out.tolist() == [0, 500, 2000] and valid == [True, True, True]
    out, _ = convert([65535], "uint16", Scaling(1 / 65535))
    assert out[0] == pytest.approx(10000)


@pytest.mark.parametrize(
    ("dn", "dtype", "scaling", "nodata", "valid"),
    [
        ([0, 1, 20000, 20001, 65535], "uint16", None, None, [False, True, True, False, False]),
        ([0, -5, -999, -1000, 7], "int16", None, None, [False, True, True, False, True]),
        ([7, 8, 9], "uint16", None, 8.0, [True, False, True]),
        ([7, 8], "uint8", None, -9999.0, [True, True]),
        ([0, 1, 900], "uint16", Scaling(0.0001, -1000), None, [False, True, True]),
        ([0.0, 0.5, 2.5, np.nan, np.inf, -np.inf, -0.2], "float32", Scaling(1.0), None,
         [False, True, False, False, False, False, False]),
        ([0.0, 1e-9, 900.0], "float64", Scaling(0.0001, -100), None, [False, True, True]),
        ([0.0, 0.5], "float32", Scaling(1.0), 0.0, [False, True]),
        ([0.1, 0.5], "float32", Scaling(1.0), 0.1, [False, True]),
    ],
)  # fmt: skip
def test_invalid_is_zero_no_data_not_finite_or_impossible(dn, dtype, scaling, nodata, valid) -> None:
    assert convert(dn, dtype, scaling, nodata)[1] == valid


def test_options_come_before_metadata_before_defaults() -> None:
    layer = Layer("B02", "uint16", None, 0.0002, -500.0)
    chosen = choose_scaling(layer, None, -1000)
    assert (chosen.scale, chosen.offset, chosen.scale_from, chosen.offset_from) == (
        0.0002, -1000, "metadata", "option")  # fmt: skip
    assert choose_scaling(Layer("B02", "uint16"), None, None) == Scaling()
    with pytest.raises(InputError, match=r"--scale 0\.0001"):
        choose_scaling(layer, 0.0, None)


@pytest.mark.parametrize(
    ("stored", "option"),
    [
        ({"offset": 1000}, "--offset -1000"),
        ({"factor": 6.5535}, "--scale 1.5259e-05"),
        ({"factor": 0.0001, "dtype": "float32"}, "--scale 1 "),
        ({"factor": 0.01, "dtype": "float32"}, "--scale 0.01"),
        ({"factor": 0.05, "dtype": "uint8"}, "--scale 0.0039216"),
        ({"factor": 0.05, "dtype": "uint16"}, "--scale 0.0039216"),
    ],
)
def test_a_wrong_scale_or_offset_is_answered_by_the_option_to_type(stored: dict, option: str) -> None:
    with pytest.raises(InputError) as error:
        check(scene(**stored))
    assert option in error.value.hint and "mosaic.tif" in error.value.problem


@pytest.mark.parametrize(
    "scaling", [Scaling(1.0, 0, "option"), Scaling(1.0, 0, "metadata")], ids=lambda s: s.scale_from
)
def test_fractions_are_fine_where_someone_says_so(scaling: Scaling) -> None:
    check(scene(factor=0.0001, dtype="float32"), scaling)


def test_an_offset_that_was_given_is_not_doubted() -> None:
    check(scene(offset=1000), Scaling(0.0001, 0, "default", "option"))


def test_a_given_scale_that_makes_everything_impossible_is_refused() -> None:
    with pytest.raises(InputError, match=r"--scale 0\.0001"):
        check(scene(), Scaling(1.0, 0, "option", "default"))


def test_an_offset_taken_off_twice_is_called_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "lulc"):
        check(scene(), Scaling(0.0001, -1000, "default", "metadata"))
    assert "--offset 0" in caplog.text


def test_a_bright_desert_is_warned_about_and_not_refused(caplog: pytest.LogCaptureFixture) -> None:
    sand = [1600, 2200, 3000, 3200, 3400, 3500, 3600, 4500, 4000]
    desert = np.random.default_rng(0).normal(1, 0.05, (4000, 1)) * sand
    with caplog.at_level(logging.WARNING, "lulc"):
        check({b: desert[:, i].astype("uint16") for i, b in enumerate(BANDS)})
    assert "--offset -1000" in caplog.text


def test_honest_scenes_pass_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    for seed in range(5):
        check(scene(seed=seed))
        check(scene(seed=seed, dtype="float32"))
    assert not caplog.records


def samples_of(path: Path, add: int = 0) -> dict[str, np.ndarray]:
    with rasterio.open(path) as data:
        found = {n: data.read(i + 1).ravel() for i, n in enumerate(data.descriptions) if n in BANDS}
    present = np.logical_and.reduce([v != 0 for v in found.values()])
    return {n: v[present] + np.array(add, v.dtype) for n, v in found.items()}


@pytest.mark.integration
def test_real_scenes_are_told_apart(shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = shared / "data"
    honest = [data / f"terramesh/{n}_l2a.tif" for n in ("brazil", "denmark", "ontario-snow", "tanzania")]
    honest += [data / "wroclaw/sentinel2_l2a.tif", data / "kaakonkulma-sim/summer.tif"]
    for path in honest:
        check(samples_of(path))
    assert not caplog.records
    shifted = [samples_of(path, 1000) for path in honest] + [samples_of(data / "terramesh/chile_l2a.tif")]
    for samples in shifted:
        with pytest.raises(InputError, match="--offset -1000"):
            check(samples)
    for part in ("north", "south"):
        with pytest.raises(InputError, match=r"--scale 1\.5259e-05"):
            check(samples_of(data / f"sundarbans/{part}_l2a.tif"))


REFLECTANCE = np.array([400, 600, 500, 900, 1800, 2200, 2500, 1600, 900])


def spectra(**changes: object) -> dict[str, np.ndarray]:
    """Correlated reflectance x 10000 of land, by band; changed bands are given as functions."""
    rng = np.random.default_rng(0)
    land = rng.lognormal(0, 0.12, (9000, 1)) * rng.lognormal(0, 0.1, (9000, 9)) * REFLECTANCE
    land[:60] *= 0.3
    found = dict(zip(BANDS, np.round(land).astype("uint16").T, strict=True))
    return {band: changes[band](v) if band in changes else v for band, v in found.items()}  # type: ignore[operator]


@pytest.mark.parametrize("odd", [1, 5, 300, 65535])
def test_a_few_odd_pixels_do_not_hide_a_forgotten_offset(odd: int) -> None:
    samples = {band: v + np.uint16(1000) for band, v in spectra().items()}
    for v in samples.values():
        v[-300:] = odd
    with pytest.raises(InputError, match="--offset -1000"):
        check(samples)


def test_saturated_pixels_do_not_hide_a_scale() -> None:
    fractions = {band: (v / 10000).astype("float32") for band, v in spectra().items()}
    for v in fractions.values():
        v[-300:] = 65535
    with pytest.raises(InputError, match="--scale 1 "):
        check(fractions)


@pytest.mark.parametrize(("bands", "change", "words"), [
    (("B11", "B12"), lambda v: (v / 10000).astype("float32"), "fractions"),
    (("B12",), lambda v: (v / 100).astype("float32"), "percent"),
    (("B05", "B06", "B07"), lambda v: (v / 100).astype("float32"), "percent"),
    (("B02", "B03", "B04"), lambda v: np.clip(v / 14, 1, 255).astype("uint8"), "8 bits"),
    (("B08",), lambda v: np.round(v * 6.5535).astype("uint16"), "x 65535"),
])  # fmt: skip
def test_bands_of_another_unit_are_named(bands: tuple[str, ...], change: object, words: str) -> None:
    with pytest.raises(InputError, match="different units") as error:
        check(spectra(**dict.fromkeys(bands, change)))
    assert f"{', '.join(bands)} look like" in error.value.problem and words in error.value.problem


@pytest.mark.parametrize(
    "bands", [("B05", "B06", "B07", "B11", "B12"), ("B11", "B12"), ("B02", "B03", "B04", "B08")]
)
def test_an_offset_in_some_bands_is_warned_about(
    bands: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "lulc"):
        check(spectra())
        assert not caplog.records
        check(spectra(**dict.fromkeys(bands, lambda v: v + np.uint16(1000))))
    assert "--offset" in caplog.text


def test_dark_water_in_short_wave_infrared_is_no_other_unit(caplog: pytest.LogCaptureFixture) -> None:
    sea = {band: (v * dark).astype("float32") for (band, v), dark in
           zip(spectra().items(), (1, 1, 0.8, 0.3, 0.1, 0.06, 0.05, 0.04, 0.04), strict=True)}  # fmt: skip
    with caplog.at_level(logging.WARNING, "lulc"):
        check(sea)
    assert not caplog.records
