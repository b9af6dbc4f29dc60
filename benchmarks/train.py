"""Whether crops are cut as fast as the network takes them: pixels per second of both, alone and together.

Three measurements on one machine and backend, of the same sequence of batches: (a) the generator alone,
(b) the training step alone on batches that are in memory already, (c) both together, as `lulc.training.loop`
runs them. Together divided by the step alone is the share of the time that the network is not kept waiting.

Example: KERAS_BACKEND=jax python benchmarks/train.py demo/stacks --seconds 60 --workers 2
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lulc.config import RECIPES, TrainConfig  # noqa: E402

if TYPE_CHECKING:
    from lulc.training.devices import Devices

BATCHES = 6
"""Different batches that the step alone is measured on, in turn."""


def main() -> int:
    """Measure, print, and store the figures under ``benchmarks/results``."""
    options = _parse()
    changes = {name: value for name, value in vars(options).items() if value is not None}
    seconds = changes.pop("seconds")
    config = TrainConfig(**changes | {"data": tuple(options.data), "out": "-", "steps": 10**6}).resolved()
    from lulc.training.devices import open_devices

    with open_devices(config) as devices:
        document = measure(config, seconds, devices)
    print(json.dumps(document, indent=2))
    target = ROOT / "benchmarks" / "results" / f"train-{document['backend']}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", nargs="+", help="folders that preprocess.py wrote")
    parser.add_argument("--recipe", default="default", choices=tuple(RECIPES))
    parser.add_argument("--seconds", type=float, default=60.0, help="for each measurement (default: 60)")
    parser.add_argument("--crop-sizes", type=int, nargs="+")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--filters", type=int, nargs="+")
    parser.add_argument("--precision", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--stacks-on", choices=("auto", "host", "device"))
    parser.add_argument("--workers", type=int, default=1, help="threads that cut crops (default: 1)")
    return parser.parse_args()


def measure(config: TrainConfig, seconds: float, devices: Devices) -> dict[str, Any]:
    """Pixels per second of generator, step and both, each for about `seconds`."""
    from lulc.core.machine import free_memory
    from lulc.models import backend
    from lulc.models.backend import keras
    from lulc.training.data.batches import cut_ahead
    from lulc.training.data.crops import choose_crop_device, training_crops
    from lulc.training.data.dataset import open_dataset
    from lulc.training.train import build_model

    dataset = open_dataset(config)
    device = choose_crop_device(config, dataset, devices.count, free_memory())
    config = dataclasses.replace(config, stacks_on=device)
    crops = training_crops(config, dataset)
    model = build_model(config, dataset, devices)
    drawn = (crops.batch(0, index) for index in range(BATCHES))
    kept = [(devices.put(images), labels) for images, labels in drawn]

    def train(batches: Iterable[Any]) -> Iterator[int]:
        for images, labels in batches:
            logs = devices.train(model, images, labels)
            float(logs["loss"])
            yield labels.size

    # Each shape is compiled before anything is timed.
    for _ in range(2):
        list(train(kept))

    def cut(batches: Iterable[Any]) -> Iterator[int]:
        for images, labels in batches:
            keras.ops.convert_to_numpy(images[0, 0, 0, 0])  # waits for a device that cuts it
            yield labels.size

    figures = {
        "generator": _speed(cut(cut_ahead(crops, 1, 0, config.workers, devices.put)), seconds),
        "step": _speed(train(itertools.cycle(kept)), seconds),
        # The sequence of batches repeats that of the step alone, but each is cut anew.
        "together": _speed(train(cut_ahead(_Repeated(crops), 0, 0, config.workers, devices.put)), seconds),
    }
    parameters = dataclasses.asdict(config) | {"data": len(config.data)}
    return {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "device": backend.device_name(),
        "backend": backend.name(),
        "kpx/s": {name: round(value / 1000, 1) for name, value in figures.items()},
        "together / step": round(figures["together"] / figures["step"], 4),
        "parameters": {name: parameters[name] for name in ("recipe", "crop_sizes", "batch_size", "filters",
                                                           "precision", "workers", "stacks_on")},
    }  # fmt: skip


class _Repeated:
    """A generator whose batches come again and again, cut anew each time."""

    def __init__(self, crops: Any) -> None:
        self._crops = crops

    def __len__(self) -> int:
        return len(self._crops)

    def batch(self, epoch: int, index: int) -> Any:
        return self._crops.batch(epoch, index % BATCHES)

    def release(self) -> None:
        self._crops.release()


def _speed(batches: Iterator[int], seconds: float) -> float:
    """Pixels per second; the first round is not timed."""
    for _ in range(BATCHES):
        next(batches)
    started, pixels = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        # Whole rounds, so that each measurement has the same mixture of crop sides.
        pixels += sum(itertools.islice(batches, BATCHES))
    elapsed = time.perf_counter() - started
    batches.close()  # type: ignore[attr-defined]
    return pixels / elapsed


if __name__ == "__main__":
    raise SystemExit(main())
