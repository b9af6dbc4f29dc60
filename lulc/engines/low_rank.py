"""How few dimensions hold the results of each convolution, and which of them are computed in two steps.

The results of a trained network's wide convolutions lie near spaces of few dimensions, found as principal
components on windows of the mosaic. What a space misses adds noise to the logits, as rounding to 8 bits
does; independent noises add up in their variance, and the share of pixels that change their class grows with
its root. So each convolution is computed in the way that saves most for the noise that it adds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from lulc.engines.convolutions import Convolution, Factor, cost_of_second

LANES = 16
"""Ranks are multiples of it: values that a processor with AVX-512 computes at once."""

LEAST_SHARE = 0.02
"""Of all multiplications that a convolution must have, to be worth looking at."""


@dataclass(frozen=True, eq=False)
class Space:
    """Principal components of the results of a convolution.

    Parameters
    ----------
    mean
        float64 (channel,).
    variances
        float64 (channel,), falling.
    components
        float64 (channel, component), orthonormal.
    """

    mean: np.ndarray
    variances: np.ndarray
    components: np.ndarray

    @classmethod
    def of(cls, count: int, sums: np.ndarray, products: np.ndarray) -> Space:
        """From how many results there are, their sums (channel,) and sums of products (channel, channel)."""
        mean = sums / count
        variances, components = np.linalg.eigh(products / count - np.outer(mean, mean))
        return cls(mean, np.maximum(variances[::-1], 0.0), components[:, ::-1])

    def missed(self, rank: int) -> float:
        """Share of the variance that lies outside the first `rank` components."""
        return float(self.variances[rank:].sum() / max(self.variances.sum(), 1e-30))

    def factor(self, rank: int) -> Factor:
        """The first `rank` components, turned among themselves so that all vary alike.

        In 8 bits they share one range, which otherwise the first alone would decide.
        """
        turned, _ = np.linalg.qr(np.random.default_rng(rank).standard_normal((rank, rank)))
        basis = self.components[:, :rank] @ turned
        # In what a document holds of it.
        return Factor(basis.astype(np.float16).astype(np.float32), self.mean.astype(np.float32))


@dataclass(frozen=True)
class Way:
    """One way to compute a convolution.

    Parameters
    ----------
    rank
        Dimensions of the space between its two steps; None for one step.
    eight_bit
        Whether it is computed in 8 bits.
    cost
        Multiplications in 8 bits for each pixel of the image that take as long.
    noise
        What it adds to the square of the share of pixels whose class changes.
    """

    rank: int | None
    eight_bit: bool
    cost: float
    noise: float


def candidates(convolutions: Mapping[str, Convolution]) -> list[str]:
    """Convolutions that may be worth two steps: neither the first nor the last, and of some weight."""
    total = sum(c.cost for c in convolutions.values())
    inner = list(convolutions)[1:-1]
    return [n for n in inner if convolutions[n].cost >= LEAST_SHARE * total and ranks_of(convolutions[n])]


def ranks_of(convolution: Convolution) -> list[int]:
    """Ranks with which two steps cost less than one."""
    channels = len(convolution.bias)
    both = 1 + cost_of_second(convolution) / convolution.cost
    return [rank for rank in range(LANES, channels, LANES) if both * rank / channels < 0.95]


def ways_of(
    convolution: Convolution,
    *,
    space: Space | None,
    sensitivity: float,
    rounding: float,
    finer: float | None,
) -> list[Way]:
    """The ways to compute a convolution.

    Parameters
    ----------
    convolution
        In one step.
    space
        Of its results; None for one step only.
    sensitivity
        Noise for each share of variance that is missed.
    rounding
        Noise of its 8 bits.
    finer
        Time of a finer multiplication, in those of 8 bits; None where it may not be computed finer.
    """
    ways = []
    for per_cost, noise, eight_bit in ((1.0, rounding, True), (finer, 0.0, False)):
        if per_cost is None:
            continue
        ways.append(Way(None, eight_bit, convolution.cost * per_cost, noise))
        if space is None:
            continue
        for rank in ranks_of(convolution):
            cost = (convolution.cost + cost_of_second(convolution)) * rank / len(convolution.bias)
            more = sensitivity * space.missed(rank)
            ways.append(Way(rank, eight_bit, cost * per_cost, noise + more))
    return ways


def cost_of(chosen: Mapping[str, Way]) -> float:
    """Multiplications in 8 bits for each pixel of the image that take as long as all together."""
    return sum(way.cost for way in chosen.values())


def noise_of(chosen: Mapping[str, Way]) -> float:
    """What all together are expected to add to the square of the share of pixels whose class changes."""
    return sum(way.noise for way in chosen.values())


def ladder_of(ways: Mapping[str, Sequence[Way]]) -> list[dict[str, Way]]:
    """Choices of one way for each convolution, from the least noise to the least cost.

    From rung to rung one convolution changes to another way, always where that saves most for the noise that
    it adds; each is the cheapest choice with as little noise.
    """
    steps = []
    rung = {}
    for name, of in ways.items():
        way = rung[name] = min(of, key=lambda w: (w.noise, w.cost))
        saving = np.inf
        while cheaper := [w for w in of if w.cost < way.cost]:
            before, way = way, max(cheaper, key=partial(_saving, way))
            # Never more than the step before, whose place is before it.
            saving = min(saving, _saving(before, way))
            steps.append((saving, name, way))
    ladder = [rung]
    for _, name, way in sorted(steps, key=lambda step: -step[0]):
        ladder.append(ladder[-1] | {name: way})
    return ladder


def _saving(before: Way, after: Way) -> float:
    """Cost saved for the noise that is added."""
    return (before.cost - after.cost) / max(after.noise - before.noise, 1e-30)
