"""Whole classifications of any mosaic: every pixel once, invalid ones kept, activations that sum to one."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lulc.config import ClassifyConfig
from lulc.core.schema import BANDS, InputError
from lulc.engines.registry import Engine, EngineRequest
from lulc.inference import job
from lulc.inference.classify import classify
from lulc.maps.blocks import ENCODINGS
from lulc.models.card import load_card, write_card

HOLES = ("none", "scattered", "rows", "a corner", "one pixel left", "in one band", "everything")


class Case(NamedTuple):
    """A mosaic and how it is classified."""

    shape: tuple[int, int]
    dtype: str
    nodata: float
    holes: str
    stride: int
    halo: int
    window: int
    activations: str
    blend: str
    batch: int
    seed: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    stride = draw(st.sampled_from([1, 2, 8, 16]))
    halo = stride * draw(st.integers(0, 3))
    dtype, nodata = draw(
        st.sampled_from([("uint16", 0), ("uint16", 65535), ("int16", -9999), ("float32", float("nan")),
                         ("float32", -1.0), ("float64", -3.4e38)])
    )  # fmt: skip
    return Case(
        shape=(draw(st.integers(1, 300)), draw(st.integers(1, 300))),
        dtype=dtype,
        nodata=nodata,
        holes=draw(st.sampled_from(HOLES)),
        stride=stride,
        halo=halo,
        window=2 * halo + stride * draw(st.integers(-(-48 // stride), -(-200 // stride))),
        activations=draw(st.sampled_from(sorted(ENCODINGS))),
        blend=draw(st.sampled_from(["none", "none", "none", "gaussian"])),
        batch=draw(st.integers(1, 3)),
        seed=draw(st.integers(0, 9)),
    )


def mosaic_of(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Stored values (band, y, x), and which pixels are valid (y, x)."""
    rng = np.random.default_rng(case.seed)
    stored = rng.integers(200, 4000, (9, *case.shape)).astype(case.dtype)
    missing = np.zeros(stored.shape, bool)
    if case.holes == "scattered":
        missing[:] = rng.random(case.shape) < 0.3
    elif case.holes == "rows":
        missing[:, ::2] = True
    elif case.holes == "a corner":
        missing[:, : case.shape[0] // 2, : case.shape[1] // 2] = True
    elif case.holes == "one pixel left":
        missing[:, : case.shape[0] - 1] = True
        missing[:, :, : case.shape[1] - 1] = True
    elif case.holes == "in one band":
        missing[5] = rng.random(case.shape) < 0.2
    elif case.holes == "everything":
        missing[:] = True
    stored[missing] = np.array(case.nodata).astype(case.dtype)
    return stored, ~missing.any(axis=0)


def activations_of(x: np.ndarray) -> np.ndarray:
    powers = np.exp(np.clip(np.nan_to_num(x[..., :3]), 0, 5000) / 1000)
    return np.asarray(powers / powers.sum(-1, keepdims=True), np.float32)


def engine(name: str, request: EngineRequest) -> Engine:
    return Engine("keras", request.shape, {"precision": "float32"}, activations_of)


def run(case: Case, folder: Path, model: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, Any]:
    """Stored mosaic, its valid pixels, the map's bands, and what the run says of itself."""
    stored, valid = mosaic_of(case)
    shutil.copy(model, folder / "model.keras")
    card = dataclasses.replace(load_card(model), stride=case.stride, halo=case.halo)
    write_card(card, folder / "model.keras")
    with rasterio.open(
        folder / "mosaic.tif", "w", driver="GTiff", height=case.shape[0], width=case.shape[1], count=9,
        dtype=case.dtype, nodata=case.nodata, crs="EPSG:3067",
        transform=Affine(10, 0, 566000, 0, -10, 6785000),
    ) as target:  # fmt: skip
        target.write(stored)
        target.descriptions = BANDS
    config = ClassifyConfig(
        model=str(folder / "model.keras"), inputs=(str(folder / "mosaic.tif"),), out=str(folder / "map.tif"),
        scale=1e-4, offset=0.0, part=256, window=case.window, activations=case.activations,
        blend=case.blend, batch_size=case.batch,
    )  # fmt: skip
    result = classify(config)
    with rasterio.open(folder / "map.tif") as source:
        return stored, valid, source.read(), result


@settings(
    max_examples=50, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(case=cases())
def test_any_mosaic_becomes_a_map_pixel_for_pixel(
    case: Case, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "build_engine", engine)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not mosaic_of(case)[1].any():
            with pytest.raises(InputError, match="no pixel of the mosaic is valid"):
                run(case, folder, tiny_model)
            assert not list(folder.glob("map*"))
            return
        stored, valid, bands, result = run(case, folder, tiny_model)
    encoding = ENCODINGS[case.activations]
    expected = activations_of(np.moveaxis(stored.astype(np.float32), 0, -1))
    decided = expected.argmax(-1) + 1
    ties = np.sort(expected, axis=-1)
    clear = valid & (ties[..., 2] - ties[..., 1] > 1e-5)
    # Every pixel once: a missing or doubled window would leave another value somewhere.
    assert (bands[0][clear] == decided[clear]).all()
    assert (bands[:, ~valid] == encoding.nodata).all() and (bands[0][valid] != encoding.nodata).all()
    assert sum(result.counts.values()) == valid.sum()
    if not encoding.has_activations:
        return
    found = bands[1:, valid].astype(np.float64) * encoding.scale
    quantum = encoding.scale if encoding.dtype.kind == "u" else 0.0
    assert np.abs(found - expected[valid].T).max() <= quantum / 2 + 1e-5
    assert np.abs(found.sum(axis=0) - 1).max() <= len(found) * quantum / 2 + 1e-5
