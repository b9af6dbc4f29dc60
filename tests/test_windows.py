"""Plans cover every pixel once with windows that the network can be run on."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lulc.core.windows import Plan, Window, choose_window, cover_axis


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any image, stride, halo, window and part that a plan admits."""
    stride = draw(st.sampled_from([1, 2, 4, 16, 32]))
    height, width = (draw(st.integers(1, 40 * stride)) for _ in range(2))
    halo = stride * draw(st.integers(0, 4))
    part = stride * draw(st.integers(1, 48))
    shape = []
    for length in (height, width):
        padded = -(-length // stride)
        smallest = min(padded, 2 * halo // stride + 1)
        shape.append(stride * draw(st.integers(smallest, padded)))
    return Plan(height, width, stride, halo, (shape[0], shape[1]), part)


@settings(max_examples=200, deadline=None)
@given(plans())
def test_every_pixel_is_written_exactly_once(plan: Plan) -> None:
    written = np.zeros((plan.height, plan.width), int)
    for part in plan.parts():
        inside = np.zeros_like(written)
        for window in plan.windows(part):
            inside[window.write.slices] += 1
            assert window.write.intersect(part.extent) == window.write
        assert (inside[part.extent.slices] == 1).all()
        written += inside
    assert (written == 1).all()


@settings(max_examples=200, deadline=None)
@given(plans())
def test_windows_are_aligned_inside_the_padded_image_and_a_halo_away_from_what_they_write(plan: Plan) -> None:
    rows, cols = plan.padded
    for part in plan.parts():
        for window in plan.windows(part):
            read, write = window.read, window.write
            assert read.shape == plan.window
            assert read.row % plan.stride == read.col % plan.stride == 0
            assert read.row >= 0 and read.col >= 0 and read.stop[0] <= rows and read.stop[1] <= cols
            for first, last, length, start, stop in (
                (read.row, read.stop[0], rows, write.row, write.stop[0]),
                (read.col, read.stop[1], cols, write.col, write.stop[1]),
            ):
                assert first == 0 or start - first >= plan.halo
                assert last == length or last - stop >= plan.halo


@settings(max_examples=100, deadline=None)
@given(plans())
def test_computed_pixels_are_those_of_all_windows(plan: Plan) -> None:
    count = sum(len(plan.windows(part)) for part in plan.parts())
    assert plan.computed_pixels == count * plan.window[0] * plan.window[1]


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.sampled_from([4, 16]),
    st.integers(0, 5),
    st.integers(1, 4_000_000),
)
def test_the_chosen_window_makes_a_plan_within_the_pixels_where_one_can(
    height: int, width: int, stride: int, halos: int, pixels: int
) -> None:
    halo = stride * halos
    shape = choose_window(height, width, stride=stride, halo=halo, part=1024, pixels=pixels)
    Plan(height, width, stride, halo, shape, 1024)
    smallest = math.prod(min(-(-n // stride) * stride, 2 * halo + stride) for n in (height, width))
    assert math.prod(shape) <= max(pixels, smallest)


def test_a_large_window_computes_little_more_than_it_writes() -> None:
    shape = choose_window(4096, 4096, stride=16, halo=64, part=4096, pixels=1_400_000)
    assert Plan(4096, 4096, 16, 64, shape, 4096).computed_pixels <= 1.25 * 4096**2


@pytest.mark.parametrize(
    ("window", "halo", "part"),
    [((100, 96), 16, 64), ((32, 96), 16, 64), ((128, 128), 16, 64), ((96, 96), 8, 64)],
)
def test_windows_that_cannot_be_exact_are_refused(window: tuple[int, int], halo: int, part: int) -> None:
    with pytest.raises(ValueError, match=r"expected|larger"):
        Plan(112, 112, 16, halo, window, part)


def test_the_last_window_is_shifted_inwards_and_needs_no_halo_beyond_the_image() -> None:
    assert cover_axis(0, 100, 112, 64, 16) == [(0, 0, 48), (32, 48, 80), (48, 80, 100)]


def test_rectangles_intersect_and_move() -> None:
    a, b = Window(0, 0, 10, 10), Window(5, 8, 10, 10)
    assert a.intersect(b) == Window(5, 8, 5, 2)
    assert a.intersect(Window(20, 0, 5, 5)).height == 0
    assert b.relative_to(Window(5, 5, 1, 1)) == Window(0, 3, 10, 10)
    assert b.stop == (15, 18)
