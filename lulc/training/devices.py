"""Data-parallel training: on one device, several of one machine, or those of several processes.

Each step trains on one batch: every device computes its crops, and all end the step with the same weights.
The result is that of one device with the same batches, apart from the order of sums. On TensorFlow
(`MirroredStrategy`) the devices belong to one machine; on JAX (`keras.distribution`) they may belong to
several processes, on one machine or many.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lulc.config import TrainConfig
from lulc.core.schema import InputError
from lulc.models import backend
from lulc.models.backend import keras

__all__ = ["ONE", "Devices", "local_numbers", "meeting_of", "open_devices"]

logger = logging.getLogger("lulc")

PORTS = range(61_440, 65_536)
"""Ports at which processes meet under SLURM, chosen by the numbers of job and step."""

PATIENCE = 60
"""Seconds that a process waits for the others when it ends."""

Loss = Callable[[Any, Any], Any]


class Devices:
    """One device of one process; subclasses distribute the work over several.

    Parameters
    ----------
    count
        Devices of all processes together.
    process, processes
        Number of this process, from 0, and number of all processes.
    """

    def __init__(self, count: int = 1, process: int = 0, processes: int = 1) -> None:
        self.count, self.process, self.processes = count, process, processes

    @property
    def first(self) -> bool:
        """True in the process that writes checkpoints, models, history and messages."""
        return self.process == 0

    def own_crops(self, batch_size: int) -> range:
        """Return the numbers of the crops of each batch that this process cuts."""
        crops = batch_size // self.processes
        return range(self.process * crops, (self.process + 1) * crops)

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which networks and their optimizers are created."""
        return contextlib.nullcontext()

    def optimizer(self, kind: type[keras.optimizers.Optimizer]) -> type[keras.optimizers.Optimizer]:
        """Return an optimizer class that sees the gradients of the whole batch."""
        return kind

    def loss(self, loss: Loss) -> Loss:
        """Return a loss of the whole batch."""
        return loss

    def metric(self, metric: keras.metrics.Metric) -> keras.metrics.Metric:
        """Return a metric of the whole batch."""
        return metric

    def unite(self, model: keras.Model) -> None:
        """Synchronise batch norm over the whole batch."""

    def train(self, model: keras.Model, images: Any, labels: np.ndarray) -> dict[str, Any]:
        """Train one step on the crops of this process; return loss and metrics of the whole batch.

        Parameters
        ----------
        images
            float32 (crop, y, x, band): an array, or the result of `put`.
        labels
            uint8 (crop, y, x).
        """
        return dict(model.train_on_batch(images, labels, return_dict=True))

    def put(self, images: Any) -> Any:
        """Copy images to the devices; called ahead of `train` by the threads that cut crops."""
        return images

    def predict(self, model: keras.Model, images: np.ndarray) -> np.ndarray:
        """Return the probabilities of the batch of all processes, float32 (crop, y, x, class)."""
        return np.asarray(model.predict_on_batch(images))

    def gather(self, values: np.ndarray) -> np.ndarray:
        """Concatenate arrays of equal shape of all processes along the first axis, by process number."""
        return values

    def spread(self, value: Any) -> Any:
        """Return the JSON-ready value of the first process in all processes."""
        return value

    def spread_arrays(self, arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Return the arrays of the first process; the others pass arrays of equal names, shapes and types."""
        return arrays

    def alone(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which the first process computes without the others."""
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def agreed(self) -> Iterator[None]:
        """Raise an InputError of one process in all of them, so that none waits for a process that ended."""
        yield


ONE = Devices()


class _Mirrored(Devices):
    """Several devices of this machine, on TensorFlow; batch norm is synchronised.

    Each device computes losses and metrics from the probabilities of the whole batch, so that those that are
    no sum over pixels are right as well.
    """

    def __init__(self, framework: Any, names: Sequence[str]) -> None:
        super().__init__(len(names))
        self._tf = framework
        # NCCL adds up on GPUs; processors lack it.
        reduction = None if names[0].startswith("GPU") else framework.distribute.ReductionToOneDevice()
        self._strategy = framework.distribute.MirroredStrategy(names, cross_device_ops=reduction)

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        return self._strategy.scope()

    def optimizer(self, kind: type[keras.optimizers.Optimizer]) -> type[keras.optimizers.Optimizer]:
        """Return an optimizer class that sums gradients before it clips them.

        Keras clips the gradients of each device, then sums over the n devices. Here each device gets 1/n of
        the sum, clipped at 1/n of the norm.
        """
        count, tf = self.count, self._tf

        class Summed(kind):
            def __init__(self, *args: Any, global_clipnorm: float | None = None, **keywords: Any) -> None:
                clip = global_clipnorm and global_clipnorm / count
                super().__init__(*args, global_clipnorm=clip, **keywords)

            def apply(self, grads: Any, trainable_variables: Any = None) -> Any:
                context = tf.distribute.get_replica_context()
                summed = context.all_reduce(tf.distribute.ReduceOp.SUM, list(grads))
                return super().apply([gradient / count for gradient in summed], trainable_variables)

        return Summed

    def loss(self, loss: Loss) -> Loss:
        def of_all(labels: Any, probabilities: Any) -> Any:
            # Gradients are summed over devices, each of which has the whole loss.
            return loss(self._joined(labels), self._joined(probabilities)) / self._replicas()

        return of_all

    def metric(self, metric: keras.metrics.Metric) -> keras.metrics.Metric:
        update_of_one = metric.update_state

        def update_state(y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
            return update_of_one(self._joined(y_true), self._joined(y_pred), sample_weight)

        metric.update_state = update_state
        return metric

    def unite(self, model: keras.Model) -> None:
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = True

    def train(self, model: keras.Model, images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
        # `train_on_batch` would give each device the whole batch.
        model.make_train_function()
        model.reset_metrics()
        logs = model.train_function(iter([(self._split(images), self._split(labels), None)]))
        return {name: np.asarray(value) for name, value in logs.items()}

    def predict(self, model: keras.Model, images: np.ndarray) -> np.ndarray:
        return np.asarray(model.predict_on_batch(self._split(images)))

    def _split(self, values: np.ndarray) -> Any:
        parts = np.split(values, self.count)
        return self._strategy.experimental_distribute_values_from_function(
            lambda context: self._tf.constant(parts[context.replica_id_in_sync_group])
        )

    def _replicas(self) -> int:
        context = self._tf.distribute.get_replica_context()
        return 1 if context is None else int(context.num_replicas_in_sync)

    def _joined(self, values: Any) -> Any:
        if self._replicas() == 1:
            return values
        return self._tf.distribute.get_replica_context().all_gather(values, axis=0)


class _Parallel(Devices):
    """Any number of devices, of one process or several, on JAX, which computes on the whole batch."""

    def __init__(self, framework: Any, devices: Sequence[Any]) -> None:
        super().__init__(len(devices), framework.process_index(), framework.process_count())
        self._jax = framework
        names = [f"{device.platform}:{device.id}" for device in devices]
        self.distribution = keras.distribution.DataParallel(devices=names, auto_shard_dataset=False)
        self._forward: Any = None

    def put(self, images: Any) -> Any:
        if self.processes > 1:
            # Keras joins the arrays of the processes itself.
            return images
        # Keras would copy a batch to the devices twice in each step; a batch on the devices stays in place.
        return self._jax.device_put(images, self._layout_of(images))

    def _layout_of(self, images: Any) -> Any:
        return self.distribution.get_data_layout(images.shape).backend_layout

    def predict(self, model: keras.Model, images: np.ndarray) -> np.ndarray:
        # Keras' own function donates its weights, which averaged weights share with the optimizer.
        if self._forward is None:
            everywhere = self._jax.sharding.PartitionSpec()
            mesh = self.distribution.device_mesh.backend_mesh
            self._forward = self._jax.jit(
                lambda trained, fixed, x: model.stateless_call(trained, fixed, x, training=False)[0],
                out_shardings=self._jax.sharding.NamedSharding(mesh, everywhere),
            )
        return np.asarray(
            self._forward(
                [v.value for v in model.trainable_variables],
                [v.value for v in model.non_trainable_variables],
                self._jax.make_array_from_process_local_data(self._layout_of(images), images),
            )
        )


class _Distributed(_Parallel):
    """Devices of several processes, on JAX."""

    def gather(self, values: np.ndarray) -> np.ndarray:
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(values, tiled=True))

    def spread(self, value: Any) -> Any:
        return json.loads(self._texts(json.dumps(value) if self.first else "")[0])

    def spread_arrays(self, arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        from jax.experimental import multihost_utils

        received = multihost_utils.broadcast_one_to_all(dict(arrays))
        return {name: np.asarray(array) for name, array in received.items()}

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        # With a distribution, Keras compares each value assigned to a variable among all processes.
        keras.distribution.set_distribution(None)
        try:
            yield
        finally:
            keras.distribution.set_distribution(self.distribution)

    @contextlib.contextmanager
    def agreed(self) -> Iterator[None]:
        refusal = []
        try:
            yield
        except InputError as error:
            refusal = [error.problem, error.hint]
        for text in self._texts(json.dumps(refusal)):
            if json.loads(text):
                raise InputError(*json.loads(text))

    def _texts(self, text: str) -> list[str]:
        """Gather a text from each process."""
        raw = np.frombuffer(text.encode(), np.uint8)
        lengths = self.gather(np.array([raw.size], np.int32))
        padded = np.zeros((1, lengths.max()), np.uint8)
        padded[0, : raw.size] = raw
        rows = self.gather(padded)
        return [row[:length].tobytes().decode() for row, length in zip(rows, lengths, strict=True)]


@contextlib.contextmanager
def open_devices(config: TrainConfig) -> Iterator[Devices]:
    """Open the devices of a resolved config, and connect to the other processes.

    Enter it before anything is computed, and build and train networks inside.

    Raises InputError if the framework can't train on several devices, there are fewer devices, the batch size
    is no multiple of their number, or the other processes can't be reached.
    """
    wanted = None if config.devices == "all" else int(config.devices)
    openers = {"tensorflow": _open_mirrored, "jax": _open_parallel, "torch": _open_single}
    with openers[backend.name()](config, wanted) as devices:
        if config.batch_size % devices.count:
            raise InputError(
                f"cannot distribute batches, since --batch-size is {config.batch_size}, expected a multiple "
                f"of the number of devices, {devices.count}",
                f"Give e.g. `--batch-size {-(-config.batch_size // devices.count) * devices.count}`.",
            )
        if devices.count > 1 and devices.first:
            logger.info("training on %d devices, in %d processes", devices.count, devices.processes)
        if not devices.first:
            # The first process logs for all.
            logger.setLevel(logging.ERROR)
        yield devices


@contextlib.contextmanager
def _open_single(config: TrainConfig, wanted: int | None) -> Iterator[Devices]:
    if wanted != 1 or config.processes > 1:
        raise InputError(
            f"cannot train on several devices with the backend '{backend.name()}', expected tensorflow (one "
            "machine) or jax",
            "Set e.g. KERAS_BACKEND=jax; the same command then continues the run.",
        )
    yield Devices()


@contextlib.contextmanager
def _open_mirrored(config: TrainConfig, wanted: int | None) -> Iterator[Devices]:
    if config.processes > 1:
        raise InputError(
            "cannot train in several processes with the backend 'tensorflow', since Keras has no strategy "
            "for that, expected jax",
            "Set KERAS_BACKEND=jax; several GPUs of one machine need no more than `--devices all`.",
        )
    import tensorflow as tf

    present = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    names = [device.name.removeprefix("/device:") for device in _choose(present, wanted)]
    if len(names) == 1:
        yield Devices()
        return
    if config.precision == "float16":
        raise InputError(
            f"cannot train on {len(names)} devices with --precision float16, since TensorFlow can't skip a "
            "step whose gradients overflow there",
            "Give --precision bfloat16 or float32, or set KERAS_BACKEND=jax.",
        )
    yield _Mirrored(tf, names)


@contextlib.contextmanager
def _open_parallel(config: TrainConfig, wanted: int | None) -> Iterator[Devices]:
    import jax

    if config.processes > 1:
        _meet(jax, config, wanted)
    backend.cache_programs()
    try:
        by_process: list[list[Any]] = [[] for _ in range(config.processes)]
        for device in jax.devices():
            by_process[device.process_index].append(device)
        kind = _Distributed if config.processes > 1 else _Parallel
        devices = kind(jax, [device for present in by_process for device in _choose(present, wanted)])
        before = keras.distribution.distribution()
        keras.distribution.set_distribution(devices.distribution)
        try:
            yield devices
        finally:
            keras.distribution.set_distribution(before)
    finally:
        if config.processes > 1:
            jax.distributed.shutdown()


def _choose(present: Sequence[Any], wanted: int | None) -> Sequence[Any]:
    if wanted is not None and len(present) < wanted:
        raise InputError(
            f"cannot train on {wanted} devices, since {len(present)} are found, expected at least {wanted}",
            "Give `--devices all` or fewer, and check CUDA_VISIBLE_DEVICES.",
        )
    return present[:wanted]


def _meet(jax: Any, config: TrainConfig, wanted: int | None) -> None:
    """Connect to the other processes."""
    address, process = meeting_of(config, os.environ)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # JAX's handler of SIGTERM would replace ours, which ends a run cleanly.
    jax.config.update("jax_enable_preemption_service", False)
    from jax.experimental import multihost_utils

    try:
        with _output_to_stderr():
            jax.distributed.initialize(
                address,
                config.processes,
                process,
                local_device_ids=local_numbers(wanted, os.environ),
                cluster_detection_method="deactivate",
                shutdown_timeout_seconds=PATIENCE,
            )
            multihost_utils.sync_global_devices("met")
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"cannot meet the {config.processes} processes of this training at {address}, since "
            f"{str(error).splitlines()[0]}",
            "Start all of them with the same --processes and --coordinator, each with its own --process.",
        ) from error


@contextlib.contextmanager
def _output_to_stderr() -> Iterator[None]:
    """Redirect standard output of native code to standard error, since standard output is for results."""
    sys.stdout.flush()
    standard_output = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(standard_output, 1)
        os.close(standard_output)


def meeting_of(config: TrainConfig, environment: Mapping[str, str]) -> tuple[str, int]:
    """Return the address where the processes meet, and the number of this one.

    Options that are None come from the variables of SLURM: ``SLURM_PROCID``, ``SLURM_STEP_NODELIST``, and
    ``SLURM_JOB_ID`` and ``SLURM_STEP_ID`` for the port.

    Raises InputError if config and variables lack one, or the number of this process is out of range.
    """
    address, process = config.coordinator, config.process
    if process is None and "SLURM_PROCID" in environment:
        process = int(environment["SLURM_PROCID"])
    if address is None and "SLURM_STEP_NODELIST" in environment:
        # The first node of a list like a[01-04,9],b2.
        node = re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", environment["SLURM_STEP_NODELIST"]).split(",")[0]
        number = int(environment.get("SLURM_JOB_ID", 0)) + int(environment.get("SLURM_STEP_ID", 0))
        address = f"{node}:{PORTS[number % len(PORTS)]}"
    for name, value in (("--coordinator", address), ("--process", process)):
        if value is None:
            raise InputError(
                f"cannot train in {config.processes} processes, since {name} is not given, and the variables "
                "of SLURM are not set",
                "Start each with e.g. `--coordinator node1:29500 --process 0`, or by srun.",
            )
    assert address is not None and process is not None
    if not 0 <= process < config.processes:
        raise InputError(
            f"cannot train in {config.processes} processes, since this one has the number {process}, "
            f"expected 0 to {config.processes - 1}",
            "Give the number of tasks of the step, `--processes $SLURM_NTASKS`, or another --process.",
        )
    return address, process


def local_numbers(wanted: int | None, environment: Mapping[str, str]) -> list[int] | None:
    """Return the numbers of the GPUs that this process may use; None for all visible ones.

    Processes of one machine that see the same GPUs take `wanted` each, in the order of ``SLURM_LOCALID``.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    if wanted is None or (visible and len(visible.split(",")) <= wanted):
        return None
    first = wanted * int(environment.get("SLURM_LOCALID", 0))
    return list(range(first, first + wanted))
