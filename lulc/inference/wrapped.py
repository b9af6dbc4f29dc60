"""Wrappers of networks: test-time augmentation and the out-of-distribution score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lulc.core.directions import Directions, mirror_directions, turn_directions
from lulc.engines.registry import Network
from lulc.models.card import ModelCard


def turns_of(height: int, width: int) -> tuple[int, ...]:
    """Return the quarter turns that keep the shape of a window, each with and without a flip."""
    return (0, 1, 2, 3) if height == width else (0, 2)


def dihedral(network: Network, directions: Directions = ()) -> Network:
    """Return the mean of `network` over the flips and rotations of its input (test-time augmentation).

    Square windows have 8, others the 4 that keep the shape. Channels that hold `directions` turn with the
    image.
    """

    def average(x: np.ndarray) -> np.ndarray:
        turns = turns_of(*x.shape[1:3])
        total: np.ndarray | None = None
        for turn in turns:
            for flip in (False, True):
                turned = np.rot90(x[:, ::-1] if flip else x, turn, axes=(1, 2))
                turned = mirror_directions(turned, directions, down=flip)
                turned = turn_directions(turned, directions, 90 * turn)
                y = np.rot90(network(np.ascontiguousarray(turned)), -turn, axes=(1, 2))
                y = y[:, ::-1] if flip else y
                total = y.copy(order="K") if total is None else np.add(total, y, out=total)
        assert total is not None
        return total / np.float32(2 * len(turns))

    return average


def with_ood_score(network: Network, cards: Sequence[ModelCard]) -> Network:
    """Return `network` with the out-of-distribution score as one more channel, 0 for invalid pixels.

    Of several networks the highest score counts.
    """

    def with_score(x: np.ndarray) -> np.ndarray:
        y = network(x)
        scores = [card.novelty.of(x, card.statistics) for card in cards if card.novelty]
        score = np.nan_to_num(np.maximum.reduce(scores), copy=False)
        return np.concatenate([y, score[..., np.newaxis]], axis=-1)

    return with_score
