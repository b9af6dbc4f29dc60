"""Documents of dataclasses: what is written is read again, and nothing else is admitted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any

import pytest
from affine import Affine
from rasterio.crs import CRS

from lulc.core.codec import REQUIRED, Jsonable, limits, schema_of
from lulc.core.documents import check_document
from lulc.core.grid import GridSpec
from lulc.core.schema import InputError
from lulc.core.windows import Window


@dataclass(frozen=True)
class Inner(Jsonable):
    level: Annotated[int, limits(minimum=0, maximum=5)]
    weights: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class Outer(Jsonable):
    name: Annotated[str, limits(minLength=1)]
    inner: Inner | None = None
    several: tuple[Inner, ...] = ()
    temperature: float | tuple[float, ...] = 1.0
    exact: Fraction = Fraction(0)
    kind: Annotated[str, limits(enum=("a", "b")), REQUIRED] = "a"
    texts: dict[str, str] | None = None
    free: dict[str, Any] | None = None


FULL = Outer(
    name="é",
    inner=Inner(3, ((1.0, 2.5), ())),
    several=(Inner(0), Inner(5)),
    temperature=(1.0, 2.0),
    exact=Fraction(10**40, 3),
    kind="b",
    texts={"x": "y"},
    free={"x": [1, {"y": None}]},
)


@pytest.mark.parametrize("written", [FULL, Outer("short")])
def test_what_is_written_is_read_again_and_fits_the_schema(written: Outer) -> None:
    data = json.loads(json.dumps(written.to_json()))
    check_document(data, schema_of(Outer), "test", "here")
    assert Outer.from_json(data) == written


def test_whole_numbers_become_floats_and_missing_fields_their_defaults() -> None:
    read = Outer.from_json(
        {"name": "n", "kind": "a", "temperature": 2, "inner": {"level": 1, "weights": [[1]]}}
    )
    assert read == Outer("n", Inner(1, ((1.0,),)), temperature=2.0)
    assert isinstance(read.temperature, float)
    assert read.inner and isinstance(read.inner.weights[0][0], float)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": ""}, "name does not fit"),
        ({"name": None}, "name does not fit"),
        ({"other": 1}, "'other' was unexpected"),
        ({"inner": {"level": 6}}, "inner does not fit"),
        ({"inner": {}}, "inner does not fit"),
        ({"several": [{"level": 0}, {"level": "1"}]}, "several/1/level does not fit"),
        ({"several": [{"level": 0, "more": 1}]}, "several/0 does not fit"),
        ({"temperature": "1"}, "temperature does not fit"),
        ({"temperature": True}, "temperature does not fit"),
        ({"exact": "1/0"}, "exact does not fit"),
        ({"exact": "9" * 500}, "exact does not fit"),
        ({"kind": "c"}, r"kind does not fit: 'c' is not one of \['a', 'b'\]"),
        ({"texts": {"x": 1}}, "texts does not fit"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        check_document(FULL.to_json() | changes, schema_of(Outer), "test", "here")


def test_a_required_field_must_be_there_though_it_has_a_default() -> None:
    data = FULL.to_json()
    del data["kind"]
    with pytest.raises(InputError, match="'kind' is a required property"):
        check_document(data, schema_of(Outer), "test", "here")


@dataclass(frozen=True)
class Placed(Jsonable):
    window: Window
    grid: GridSpec | None = None
    windows: tuple[Window, ...] = ()


def test_classes_with_a_form_of_their_own_are_written_in_it() -> None:
    grid = GridSpec(CRS.from_epsg(3067), Affine(10, 0, 3e5, 0, -10, 7e6), 20, 30)
    placed = Placed(Window(-5, 2, 3, 4), grid, (Window(0, 0, 1, 1),))
    data = json.loads(json.dumps(placed.to_json()))
    assert data["window"] == [-5, 2, 3, 4] and data["grid"]["height"] == 20
    check_document(data, schema_of(Placed), "test", "here")
    assert Placed.from_json(data) == placed
    with pytest.raises(InputError, match="windows/0 does not fit"):
        check_document(data | {"windows": [[0, 0, 1]]}, schema_of(Placed), "test", "here")
