"""Classes gathered into the groups of a CORINE level: maps, activations and matrices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lulc.core.schema import IGNORE, UNCLASSIFIED, Legend
from lulc.labels.schemes import level1_of, level2_of, load_scheme


@dataclass(frozen=True)
class Level:
    """One CORINE level over a legend.

    Parameters
    ----------
    legend
        The groups 1..M.
    groups
        uint8 (N,), group of each class; 0 where a class belongs to none.
    """

    number: int
    legend: Legend
    groups: NDArray[np.uint8]

    @property
    def name(self) -> str:
        return f"CORINE level {self.number}"

    def gather_map(self, classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Groups uint8 (y, x) of class numbers uint8 (y, x); 0 unclassified or no group, 255 stays."""
        table = np.zeros(256, np.uint8)
        table[1 : len(self.groups) + 1] = self.groups
        table[IGNORE] = IGNORE
        return np.asarray(table[classes])

    def gather_activations(self, activations: NDArray[np.float32]) -> NDArray[np.float32]:
        """Activations of the groups, each the sum over its classes.

        Parameters
        ----------
        activations
            float32 (y, x, class), NaN = no data.

        Returns
        -------
        float32 (y, x, group)
            NaN where any class is NaN.
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
        """Groups uint8 (y, x) of a map, by `decide` where it has activations.

        Pixels without a class stay without.
        """
        groups = self.gather_map(classes)
        if activations is None:
            return groups
        decided = self.decide(activations)
        return np.where((decided != IGNORE) & (classes != UNCLASSIFIED), decided, groups).astype(np.uint8)

    def gather_matrix(self, confusion: NDArray[np.int64]) -> NDArray[np.int64]:
        """The (M + 1, M + 1) matrix of an (N + 1, N + 1) matrix; see `lulc.labels.levels.aggregate`."""
        groups = np.concatenate([[0], self.groups]).astype(np.intp)
        return aggregate(confusion, groups, len(self.legend))


def levels_of(legend: Legend) -> tuple[Level, ...]:
    """The CORINE levels 1 and 2 at which classes of a legend have groups."""
    known = (
        Level(1, load_scheme("clc-level1").legend, level1_of(legend)),
        Level(2, load_scheme("clc-level2").legend, level2_of(legend)),
    )
    return tuple(level for level in known if level.groups.any())


def aggregate(confusion: NDArray[np.int64], groups: NDArray[np.intp], size: int) -> NDArray[np.int64]:
    """A matrix whose classes are gathered into groups.

    Parameters
    ----------
    confusion
        int64 (N + 1, N + 1).
    groups
        Group 1..size of each class number 0..N, 0 for none. References without a group are left out;
        map classes without one become unclassified.
    """
    result = np.zeros((size + 1, size + 1), np.int64)
    np.add.at(result, (groups[:, None], groups[None, :]), confusion)
    result[0] = 0
    return result
