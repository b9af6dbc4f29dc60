"""Ensembles: the mean of the calibrated probabilities of several networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lulc.core.channels import differing
from lulc.core.schema import InputError
from lulc.engines.registry import Engine, Footprint, footprint, shared_of
from lulc.models.calibration import calibrate
from lulc.models.card import ModelCard


@dataclass(frozen=True)
class Member:
    """Network of an ensemble: its weights file and card."""

    path: Path
    card: ModelCard

    def to_json(self) -> dict[str, Any]:
        """Return name, checksum and temperature, JSON-ready."""
        temperature = self.card.temperature
        return {
            "name": self.card.name,
            "sha256": self.card.sha256,
            "temperature": list(temperature) if isinstance(temperature, tuple) else temperature,
        }


def check_alike(members: Sequence[Member]) -> None:
    """Raise InputError unless all members have the classes and channels of the first one."""
    first = members[0]
    for other in members[1:]:
        pair = (first.card, other.card)
        for what, (a, b) in (
            ("channels", differing(*(card.inputs for card in pair))),
            ("channels that may be missing", [_optional_of(card) or ["none"] for card in pair]),
            ("classes", [[*card.legend.names, *filter(None, [card.single_class])] for card in pair]),
        ):
            if a != b:
                raise InputError(
                    f"cannot average '{first.path}' and '{other.path}', since the {what} of the second are "
                    f"{', '.join(b)}, expected those of the first: {', '.join(a)}",
                    "Leave it out, or train it on stacks with the same channels and scheme.",
                )


def _optional_of(card: ModelCard) -> list[str]:
    return [card.inputs.names[number] for number in card.inputs.optional]


def geometry_of(members: Sequence[Member]) -> tuple[int, int]:
    """Return the smallest stride and halo that fit all members."""
    stride = math.lcm(*(member.card.stride for member in members))
    halo = max(member.card.halo for member in members)
    return stride, -(-halo // stride) * stride


def footprint_of(name: str, members: Sequence[Member]) -> Footprint:
    """Return the memory of the engines of all members together."""
    footprints = [footprint(name, member.card.network) for member in members]
    fixed, *per_pixel = map(sum, zip(*footprints, strict=True))
    # All engines share driver and framework.
    return Footprint(fixed - (len(footprints) - 1) * shared_of(name), *per_pixel)


def average(engines: Sequence[Engine], members: Sequence[Member]) -> Engine:
    """Return one engine that averages the calibrated probabilities of all members."""

    def mean(x: np.ndarray) -> np.ndarray:
        total: np.ndarray | None = None
        for engine, member in zip(engines, members, strict=True):
            y = calibrate(engine(x), member.card.temperature)
            total = y.copy(order="K") if total is None else np.add(total, y, out=total)
        assert total is not None
        return total / np.float32(len(engines))

    first = engines[0]
    identity = dict(first.identity)
    for number, engine in enumerate(engines[1:], 2):
        differing = engine.identity.items() - first.identity.items()
        identity |= {f"{name} of network {number}": value for name, value in sorted(differing)}
    return Engine(first.name, first.shape, identity, mean)
