"""CORINE levels: classes aggregated to groups in maps, activations and confusion matrices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lulc.core.schema import IGNORE, UNCLASSIFIED, Legend
from lulc.labels.schemes import level1_of, level2_of, load_scheme


@dataclass(frozen=True)
class Level:
    """One CORINE level of a legend: the legend of its groups 1..M, and the group of each class.

    `groups` are uint8 (N,), 0 where a class belongs to none.
    """

    number: int
    legend: Legend
    groups: NDArray[np.uint8]

    @property
    def name(self) -> str:
        return f"CORINE level {self.number}"

    def gather_map(self, classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Groups uint8 (y, x) of class numbers uint8 (y, x); 0 = unclassified or no group, 255 stays."""
        table = np.zeros(256, np.uint8)
        table[1 : len(self.groups) + 1] = self.groups
        table[IGNORE] = IGNORE
        return np.asarray(table[classes])

    def gather_activations(self, activations: NDArray[np.float32]) -> NDArray[np.float32]:
        """Sums of activations over the classes of each group: float32 (y, x, group).

        `activations` are float32 (y, x, class), NaN = no data. A sum is NaN where any class is NaN.
        """
        members = np.eye(len(self.legend) + 1, dtype=np.float32)[self.groups][:, 1:]
        return activations @ members

    def decide(self, activations: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Group uint8 (y, x) with the highest summed activation, 255 = no data.

        It may differ from the group of the class with the highest activation: three kinds of forest that
        share 0.6 outvote one field of 0.4. It is 0 where classes without a group outvote every group.
        """
        summed = self.gather_activations(activations)
        valid = np.asarray(np.isfinite(summed).all(axis=-1))
        best = np.where(np.isnan(summed), 0.0, summed).argmax(axis=-1) + 1
        if not self.groups.all():
            best[activations[..., self.groups == 0].sum(axis=-1) > summed.max(axis=-1)] = UNCLASSIFIED
        return np.where(valid, best, IGNORE).astype(np.uint8)

    def gather(
        self, classes: NDArray[np.uint8], activations: NDArray[np.float32] | None
    ) -> NDArray[np.uint8]:
        """Groups uint8 (y, x) of a map, by `decide` if it has activations; unclassified pixels stay so."""
        groups = self.gather_map(classes)
        if activations is None:
            return groups
        decided = self.decide(activations)
        return np.where((decided != IGNORE) & (classes != UNCLASSIFIED), decided, groups).astype(np.uint8)

    def gather_matrix(self, confusion: NDArray[np.int64]) -> NDArray[np.int64]:
        """Aggregate a confusion matrix int64 (N + 1, N + 1) to (M + 1, M + 1).

        References without a group are left out; map classes without one become unclassified.
        """
        groups = np.concatenate([[0], self.groups]).astype(np.intp)
        result = np.zeros((len(self.legend) + 1,) * 2, np.int64)
        np.add.at(result, (groups[:, None], groups[None, :]), confusion)
        result[0] = 0
        return result


def levels_of(legend: Legend) -> tuple[Level, ...]:
    """The CORINE levels 1 and 2 of a legend, if any of its classes has a group there."""
    known = (
        Level(1, load_scheme("clc-level1").legend, level1_of(legend)),
        Level(2, load_scheme("clc-level2").legend, level2_of(legend)),
    )
    return tuple(level for level in known if level.groups.any())
