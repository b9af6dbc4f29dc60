"""Blocks are encoded as GDAL reads them, reduced by the rules, and written once."""

from __future__ import annotations

import errno
import io
import itertools
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lulc.core.schema import InputError
from lulc.core.windows import Window
from lulc.maps.blocks import (
    BLOCK,
    ENCODINGS,
    BlockFile,
    BlockWriter,
    decode_block,
    encode_block,
    reduce_block,
)


@pytest.mark.parametrize("name", ["float32", "uint16", "uint8"])
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_decoding_undoes_encoding(name: str, data: st.DataObject) -> None:
    dtype = ENCODINGS[name].dtype
    values = data.draw(hnp.arrays(dtype, (16, 16)))
    again = decode_block(encode_block(values), dtype, side=16)
    assert again.tobytes() == values.tobytes()


ENCODE = """
import hashlib, numpy as np
values = np.random.default_rng(0).random(2**18, dtype=np.float32).round(2).tobytes()
from numcodecs.zstd import Zstd
print([hashlib.sha256(Zstd(level=level).encode(values)).hexdigest() for level in (-3, 1, 3, 19)])
"""


@pytest.mark.integration
def test_blocks_have_the_same_bytes_where_a_framework_is_loaded() -> None:
    programs = (ENCODE, f"import lulc.models.backend\n{ENCODE}")
    alone, beside = (subprocess.check_output([sys.executable, "-c", program]) for program in programs)
    assert alone == beside


def reduce_slowly(values: np.ndarray, nodata: float) -> np.ndarray:
    """The rules, one pixel after the other."""
    bands, rows, cols = values.shape
    reduced = np.empty((bands, rows // 2, cols // 2), values.dtype)
    for row, col in np.ndindex(rows // 2, cols // 2):
        four = values[:, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2].reshape(bands, 4)
        reduced[0, row, col] = four[0, 0]
        valid = four[1:, four[0] != nodata].astype(np.float64)
        if not valid.size:
            reduced[1:, row, col] = nodata
        elif values.dtype.kind == "f":
            reduced[1:, row, col] = valid.mean(axis=1)
        else:
            reduced[1:, row, col] = np.floor(valid.mean(axis=1) + 0.5)
    return reduced


@pytest.mark.parametrize("name", ["float32", "uint16", "uint8"])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_reducing_takes_the_nearest_class_and_the_mean_of_valid_activations(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    encoding = ENCODINGS[name]
    classes, valid = rng.integers(1, 4, (12, 10)), rng.random((12, 10)) < 0.6
    values = encoding.apply(classes, rng.dirichlet([1, 1, 1], (12, 10)).astype("f4"), valid)
    expected = reduce_slowly(values, encoding.nodata)
    np.testing.assert_allclose(reduce_block(values, encoding.nodata), expected, rtol=1e-6)


@pytest.mark.parametrize(("name", "quantum"), [("float32", 0.0), ("uint16", 1 / 65534), ("uint8", 1 / 254)])
def test_stored_activations_are_within_half_a_quantum_and_no_data_is_in_all_bands(
    name: str, quantum: float
) -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([0.3] * 13, (40, 50)).astype("f4")
    valid = rng.random((40, 50)) < 0.5
    encoding = ENCODINGS[name]
    values = encoding.apply(probabilities.argmax(-1) + 1, probabilities, valid)
    assert (values[:, ~valid] == encoding.nodata).all()
    assert (values[:, valid] != encoding.nodata).all()
    activations = values[1:].astype("f8") * encoding.scale
    np.testing.assert_allclose(activations[:, valid].T, probabilities[valid], atol=quantum / 2 + 1e-7)
    assert (np.abs(activations[:, valid].sum(0) - 1) <= 13 / 2 * quantum + 1e-6).all()


def write(values: np.ndarray, rectangles: list[Window], levels: int = 3, name: str = "float32") -> bytes:
    """The file that results when an array is placed by rectangles."""
    shape = values.shape[1:]
    extents = {k: Window(0, 0, *(-(-n // 2**k) for n in shape)) for k in range(levels)}
    file = io.BytesIO()
    with (
        ThreadPoolExecutor(2) as pool,
        BlockWriter(file, ENCODINGS[name], len(values), extents, pool) as writer,
    ):
        for rectangle in rectangles:
            writer.place(0, rectangle, values[(slice(None), *rectangle.slices)])
        writer.finish()
    return file.getvalue()


def cut(length: int, cuts: list[int]) -> list[tuple[int, int]]:
    edges = sorted({0, length, *(c % length for c in cuts)})
    return list(itertools.pairwise(edges))


@pytest.mark.integration
@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 700),
    st.integers(1, 700),
    st.lists(st.integers(0, 999), max_size=4),
    st.lists(st.integers(0, 999), max_size=4),
)
def test_any_rectangles_give_the_same_pixels_at_every_level(
    height: int, width: int, rows: list[int], cols: list[int]
) -> None:
    rng = np.random.default_rng(height * width)
    probabilities = rng.dirichlet([1, 1], (height, width)).astype("f4")
    valid = rng.random((height, width)) < 0.8
    values = ENCODINGS["float32"].apply(probabilities.argmax(-1) + 1, probabilities, valid)
    rectangles = [Window(a, c, b - a, d - c) for a, b in cut(height, rows) for c, d in cut(width, cols)]
    pieces, whole = write(values, rectangles), write(values, [Window(0, 0, height, width)])
    for first, second in zip(unpack(pieces, (height, width)), unpack(whole, (height, width)), strict=True):
        np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(unpack(whole, (height, width))[0], values)


def unpack(content: bytes, shape: tuple[int, int], bands: int = 3) -> list[np.ndarray]:
    """Pixels of every level of a file of `write`, decoded."""
    extents = {k: Window(0, 0, *(-(-n // 2**k) for n in shape)) for k in range(3)}
    levels = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part"
        path.write_bytes(content)
        with BlockFile(path, extents, bands) as file:
            for level, extent in extents.items():
                whole = np.empty((bands, *(-(-n // BLOCK) * BLOCK for n in extent.shape)), "f4")
                for row, col in itertools.product(file.rows(level), file.cols(level)):
                    place = Window(row * BLOCK, col * BLOCK, BLOCK, BLOCK).slices
                    payloads = file.read(level, row, col)
                    whole[(slice(None), *place)] = [decode_block(p, np.dtype("<f4")) for p in payloads]
                levels.append(whole[:, : extent.height, : extent.width])
    return levels


def test_rectangles_without_data_cost_next_to_nothing() -> None:
    file = io.BytesIO()
    with (
        ThreadPoolExecutor(1) as pool,
        BlockWriter(file, ENCODINGS["float32"], 14, {0: Window(0, 0, 4096, 4096)}, pool) as writer,
    ):
        writer.place(0, Window(0, 0, 4096, 4096), None)
        writer.finish()
    assert len(file.getvalue()) < 14 * 256 * 100


def test_a_file_with_missing_pixels_is_not_finished() -> None:
    with pytest.raises(ValueError, match="missing"):
        write(np.zeros((2, 300, 300), "f4"), [Window(0, 0, 300, 299)])


class _FullDisk(io.BytesIO):
    """Takes 100 kB."""

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > 100_000:
            raise OSError(errno.ENOSPC, "no space left")
        return super().write(data)


@pytest.mark.parametrize("rows", [300, 4096])
def test_a_full_disk_is_said_and_no_thread_is_left(rows: int) -> None:
    before = threading.active_count()
    values = np.random.default_rng(0).random((2, 256, 256)).astype("f4")
    extents = {0: Window(0, 0, rows, 256)}
    with (
        ThreadPoolExecutor(2) as pool,
        pytest.raises(OSError, match="no space left"),
        BlockWriter(_FullDisk(), ENCODINGS["float32"], 2, extents, pool) as writer,
    ):
        for top in range(0, rows, 256):
            place = Window(top, 0, min(256, rows - top), 256)
            writer.place(0, place, values[:, : place.height])
        writer.finish()
    assert threading.active_count() == before


@pytest.mark.parametrize("where", [0, 1000])
def test_a_flipped_byte_is_found_when_its_block_is_read(tmp_path: Path, where: int) -> None:
    values = np.random.default_rng(0).random((2, 300, 300)).astype("f4")
    content = bytearray(write(values, [Window(0, 0, 300, 300)], levels=1))
    content[where] ^= 1
    path = tmp_path / "part"
    path.write_bytes(content)
    with BlockFile(path, {0: Window(0, 0, 300, 300)}, 2) as file, pytest.raises(InputError, match="damaged"):
        file.read(0, 0, 0)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "part"
    path.write_bytes(b"short")
    with pytest.raises(InputError, match="damaged"):
        BlockFile(path, {0: Window(0, 0, 300, 300)}, 2)
