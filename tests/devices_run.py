"""Train with the command, several times in one process; test_devices.py runs this.

Each argument is a run, in JSON: ``words`` of the command line; ``stop``, the number of the batch after which
this process is sent SIGTERM; ``apart``, that batch norm looks at each device alone; ``readonly``, that this
process may write to no file. The exit codes are printed after all else.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from typing import Any
from unittest import mock

from lulc.cli.train_model import main
from lulc.models import backend
from lulc.training import devices


def split_processor() -> None:
    """Two devices out of TensorFlow's one; JAX is told by XLA_FLAGS."""
    import tensorflow as tf

    two = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], two)


def run(words: list[str], stop: int = 0, apart: bool = False, readonly: bool = False) -> int:
    """Exit code of the command."""
    from lulc.training.loop import Loop

    agree, batches = Loop._agree, []

    def count(self: Loop, labelled: int, *said: bool) -> list[int]:
        batches.append(labelled)
        if len(batches) == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return agree(self, labelled, *said)

    changes: list[Any] = [mock.patch.object(Loop, "_agree", count)]
    if apart:
        changes.append(mock.patch.object(devices._Mirrored, "unite"))
    if readonly:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    for change in changes:
        change.start()
    try:
        return main(words)
    finally:
        mock.patch.stopall()


if __name__ == "__main__":
    if backend.name() == "tensorflow":
        split_processor()
    print("codes", *[run(**json.loads(text)) for text in sys.argv[1:]])
