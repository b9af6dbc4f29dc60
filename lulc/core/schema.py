"""Shared vocabulary: channels, legends, reserved values and the error that users see.

Importing it loads neither numpy nor a deep-learning framework.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from lulc.core.codec import REQUIRED, Jsonable, limits
from lulc.core.text import unbroken

BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B11", "B12")
"""Sentinel-2 bands in stack order; reflectance x 10000."""

SENTINEL_BANDS = (
    "B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12",
)  # fmt: skip
"""All bands of Sentinel-2 in the order of its products."""

INDICES = ("NDVI", "NDTI", "NDBI", "NDMI", "NDSI")  # spectral indices in stack order
CHANNELS = BANDS + INDICES  # the 14 channels of a stack, in the order of the original system

REFLECTANCE_UNIT = "reflectance x 10000"
INDEX_UNIT = "SYKE code, 100 x index + 100, 0..200"

IGNORE = 255  # label without weight in loss, metrics and statistics
SPARSE = 0.25  # labels on a smaller fraction of the pixels are sparse
NO_CODE = -(2**31)  # missing label (no data, NaN, outside the file) in arrays of codes
SIMULATED_TAG = "LULC_SIMULATED"  # tag of rasters with simulated imagery
UNCLASSIFIED = 0  # class number of a valid pixel with less than the minimum confidence

UNCLASSIFIED_NAME, UNCLASSIFIED_COLOR = "Unclassified", "#ffb3d9"

MAX_CLASSES = 254  # highest class number; 0 and 255 are reserved
NODATA = -1.0  # no-data value of float32 maps, in every band


Name = Annotated[str, limits(minLength=1, maxLength=200, pattern=r"\A[^\n]*\Z")]
"""A name in a document, on one line."""


class InputError(Exception):
    """Error in the user's input; line breaks in names and values are escaped (`lulc.core.text.unbroken`).

    Parameters
    ----------
    problem
        One sentence: what can't be done, since which file has which value, and what was expected.
    hint
        What to type or change next.
    """

    def __init__(self, problem: str, hint: str = "") -> None:
        self.problem, self.hint = unbroken(problem), unbroken(hint)
        super().__init__(self.problem, self.hint)

    def __str__(self) -> str:
        return f"{self.problem}\n\n{self.hint}" if self.hint else self.problem


Code = int | Annotated[str, limits(maxLength=200)]
"""A code of a label source: an integer, or a text such as the name of a class."""


@dataclass(frozen=True)
class LandCoverClass(Jsonable):
    """One class of a legend.

    Parameters
    ----------
    number
        Class number in masks and maps, 1..254.
    sources
        Codes of the source nomenclature in this class; empty where unknown.
    level1
        CORINE level-1 group, 1..5 (artificial, agricultural, forest and semi-natural, wetlands, water), or 0
        for none.
    """

    number: Annotated[int, limits(minimum=1, maximum=MAX_CLASSES)]
    name: Name
    color: Annotated[str, limits(pattern="^#[0-9a-fA-F]{6}$")]
    sources: Annotated[tuple[Code, ...], limits(maxItems=10_000)] = ()
    level1: Annotated[int, limits(minimum=0, maximum=5)] = 0


@dataclass(frozen=True)
class Legend(Jsonable):
    """An ordered set of classes, numbered 1..N.

    Raises InputError if the numbers are not 1..N in order, or N exceeds 254.
    """

    name: Name
    classes: Annotated[tuple[LandCoverClass, ...], limits(minItems=1, maxItems=MAX_CLASSES), REQUIRED] = ()

    def __post_init__(self) -> None:
        numbers = [c.number for c in self.classes]
        if numbers != list(range(1, len(numbers) + 1)) or len(numbers) > MAX_CLASSES:
            raise InputError(
                f"cannot use legend '{self.name}', since its class numbers are {numbers}, "
                f"expected 1..N without gaps, N at most {MAX_CLASSES}",
                "Number the classes 1, 2, 3, ... in the legend file.",
            )

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.classes)

    @property
    def colors(self) -> tuple[str, ...]:
        return tuple(c.color for c in self.classes)
