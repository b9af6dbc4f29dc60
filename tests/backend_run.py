"""Train and predict with tiny networks on the backend in KERAS_BACKEND; test_backends.py runs this.

FOLDER holds model.keras and picture.npz; the result is FOLDER/BACKEND.npz.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from lulc.config import TrainConfig
from lulc.core.buffers import Buffers
from lulc.core.schema import IGNORE
from lulc.models import backend
from lulc.models.backend import keras
from lulc.models.unet import NetworkConfig, build_unet
from lulc.models.weights import arrays_of, load_model
from lulc.training.data.augmentation import Flip
from lulc.training.data.batches import BatchConfig, TileGenerator
from lulc.training.data.dataset import Tile, class_targets
from lulc.training.data.on_device import ResidentCrops
from lulc.training.devices import open_devices
from lulc.training.losses import build_loss

STEPS = 6


def scene(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Crops whose class shows in their values, with holes: image (n, y, x, band), labels (n, y, x)."""
    labels = rng.integers(0, 3, (4, 4, 4)).repeat(4, 1).repeat(4, 2).astype("uint8")
    centres = np.array([[700, 60], [1000, 160], [1400, 90]])
    image = (centres[labels] + rng.normal(0, 20, (*labels.shape, 2))).astype("float32")
    image[0, :3, :5, 0] = np.nan
    labels[0, :3, :5] = IGNORE
    labels[1, 8:] = IGNORE
    return image, labels


def train(config: NetworkConfig, loss: str, image: Any, labels: Any) -> tuple[np.ndarray, bool]:
    """Loss of each step, and whether all weights are finite in the end."""
    keras.utils.set_random_seed(1)
    if backend.name() == "tensorflow":
        importlib.import_module("tensorflow").config.experimental.enable_op_determinism()
    elif backend.name() == "torch":
        importlib.import_module("torch").use_deterministic_algorithms(True, warn_only=True)
    model = build_unet(config, (np.array([1000.0, 100.0]), np.array([300.0, 40.0])))
    counts = [int((labels == c).sum()) for c in range(max(config.classes, 2))]
    model.compile(keras.optimizers.Nadam(0.01), build_loss(loss, counts, config.classes))
    losses = np.array([model.train_on_batch(image, labels) for _ in range(STEPS)])
    return losses, all(np.isfinite(a).all() for a in arrays_of(model).values())


def cut() -> tuple[np.ndarray, np.ndarray]:
    """The same crops (n, y, x, band), cut on the device and on the host."""
    rng = np.random.default_rng(2)
    tiles = []
    for side in (40, 56):
        image = rng.uniform(0, 3000, (side, side, 3)).astype("float32")
        image[5:9, ::7] = np.nan
        tiles.append(Tile(str(side), image, np.ones((side, side), np.uint8)))
    config = BatchConfig(
        steps=1, batch_size=6, crop_sizes=(16,), targets=class_targets(1), rotations=4,
        augmentations=(Flip(),), batch_from="any",
    )  # fmt: skip
    there, here = (kind(tiles, config).batch(0, 0)[0] for kind in (ResidentCrops, TileGenerator))
    return keras.ops.convert_to_numpy(there), here


def place() -> bool:
    """Whether images that were placed stay as they are when their memory would be used again."""
    config = TrainConfig(data=("stacks",), out="run", batch_size=2).resolved()
    memory = Buffers()
    with open_devices(config) as devices:
        placed = []
        for number in range(8):
            images = memory.empty((2, 64, 64, 3))
            images[:] = number
            placed.append(devices.put(images))
            del images
        return all(
            (keras.ops.convert_to_numpy(images) == number).all() for number, images in enumerate(placed)
        )


def limit_threads(count: int) -> None:
    """Limit the framework to `count` threads; JAX takes their number from the processor affinity."""
    framework: Any = importlib.import_module(backend.name())
    if backend.name() == "tensorflow":
        framework.config.threading.set_intra_op_parallelism_threads(count)
        framework.config.threading.set_inter_op_parallelism_threads(min(count, 2))
    elif backend.name() == "torch":
        framework.set_num_threads(count)
    else:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def main(folder: Path, losses: list[str]) -> None:
    """Run everything and store what came out."""
    limit_threads(2)
    image, labels = scene(np.random.default_rng(0))
    model, card = load_model(folder / "model.keras")
    with np.load(folder / "picture.npz") as picture:
        results: dict[str, Any] = {"prediction": backend.compile_predict(model)(picture["x"])}
    finite = []
    for number, loss in enumerate(losses):
        results[f"loss{number}"], ends_finite = train(card.network, loss, image, labels)
        finite.append(ends_finite)
    single = NetworkConfig(classes=1, channels=2, filters=(4,), activation="sigmoid")
    binary = np.where(labels == IGNORE, IGNORE, labels == 1).astype("uint8")
    results["single"], ends_finite = train(single, "ce(weights=sqrt)", image, binary)
    finite.append(ends_finite)
    results["there"], results["here"] = cut()
    results["placed"] = place()
    np.savez(folder / f"{backend.name()}.npz", **results, finite=all(finite))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
