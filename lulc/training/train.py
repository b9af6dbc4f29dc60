"""Training of a network on stacks."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lulc.config import WITHOUT_LABELS, TrainConfig
from lulc.core.channels import ChannelSet, differing
from lulc.core.documents import write_document
from lulc.core.machine import cores, free_memory
from lulc.core.schema import InputError, LandCoverClass, Legend
from lulc.core.storage import check_disk, sha256_of
from lulc.core.version import __version__
from lulc.models import backend
from lulc.models.backend import keras
from lulc.models.calibration import Temperature
from lulc.models.card import Channel, ModelCard
from lulc.models.config import NetworkConfig
from lulc.models.unet import build_unet, geometry
from lulc.models.weights import arrays_of, find_model, load_model, record_picks, save_model, transfer
from lulc.training import run_folder
from lulc.training.baseline import GROWTH_SECONDS, Comparison, fit_novelty, keep_pixel_models
from lulc.training.batch_norm import Normalization
from lulc.training.checkpoint import clear_checkpoints
from lulc.training.data.batches import TileGenerator
from lulc.training.data.crops import (
    check_crop_device,
    choose_crop_device,
    limit_validation,
    plain_crops,
    training_crops,
    validation_crops,
)
from lulc.training.data.dataset import Dataset, open_dataset
from lulc.training.data.masking import Filled, absolute_difference
from lulc.training.data.unlabelled import open_mosaic
from lulc.training.devices import ONE, Devices, open_devices
from lulc.training.loop import LabelledAccuracy, Loop, PretrainingLoop, StopRequest
from lulc.training.losses import Loss, build_loss
from lulc.training.optimizer import build_optimizer
from lulc.training.run_folder import Row, Run
from lulc.training.training_plan import TrainingPlan, plan_training

logger = logging.getLogger("lulc")

STEP_COPIES = 1.4
"""Peak memory of a training step, in multiples of the outputs of all layers (1.3 measured on a CPU)."""

PRECISION = 1e-5
"""Ratio of deviation to mean below which a channel varies by rounding alone (float32: 1e-7)."""

MEMORY_MARGIN = 0.9
"""Fraction of the free memory that a training may take."""


@dataclass(frozen=True)
class TrainingResult:
    """Result of a training.

    Parameters
    ----------
    folder
        The run folder.
    picks
        Model file of each pick: lowest-val-loss, highest-val-accuracy, best-macro-f1, last; ``auto`` alone
        if no network was trained.
    rows
        History, one row per epoch; empty without a network.
    history, picture
        History as CSV and as a figure; None without a network.
    finished
        False if the time budget ended the run; the same command continues it.
    first
        True in the process that wrote the files, if several trained together.
    epochs, steps
        Planned epochs, and batches of each.
    channels
        Channels of the stacks.
    pretrained
        True after a training without labels, whose network knows no classes.
    comparison
        Comparison with the random forest; None after a pretraining, and in all processes but the first.
    cross_validation
        A `lulc.training.cross_validation.CrossValidation`, if ``cross_validate`` is set.
    """

    folder: Path
    picks: dict[str, Path]
    rows: tuple[Row, ...]
    history: Path | None
    picture: Path | None
    finished: bool
    first: bool
    epochs: int
    steps: int
    channels: ChannelSet
    pretrained: bool = False
    comparison: Comparison | None = None
    cross_validation: Any = None


def train(
    config: TrainConfig, dataset: Dataset | None = None, temperature: Temperature | None = None, *,
    refit: bool = True,
) -> TrainingResult:  # fmt: skip
    """Train a network, or fit small models if there are few labels.

    Parameters
    ----------
    config
        Options of the training; its recipe fills in those that are None.
    dataset
        Opened stacks of ``config.data``; opened here if None.
    temperature
        Temperature for the cards, if it was fitted elsewhere (by `cross_validate`).
    refit
        Fit the small models once more on training and validation labels together, after they are scored.

    Raises
    ------
    InputError
        If the data don't fit the network or each other, nothing can be learnt from them, memory or disk are
        too small, the run folder holds something else, or loss or weights become NaN.
    KeyboardInterrupt
        After SIGINT or SIGTERM; the same command continues from the checkpoint that was written.
    """
    asked, config = config, config.resolved()
    check_options(config)
    dataset = dataset or (open_mosaic(config) if config.pretrain else open_dataset(config))
    plan = None if config.pretrain else plan_training(asked, dataset)
    config = settle(asked, dataset, plan)
    check_options(config)
    _check_spread(dataset)
    network = _network_of(config, dataset)
    inputs = inputs_of(config, dataset)
    if temperature is not None:
        inputs |= {"temperature": str(temperature)}
    with contextlib.ExitStack() as resources:
        devices = resources.enter_context(open_devices(config))
        with devices.agreed():
            run = resources.enter_context(run_folder.open_run(config, inputs, follow=not devices.first))
        with_network = plan is None or plan.network
        if with_network:
            with devices.agreed():
                model, crops = prepare(config, dataset, devices)
                resources.callback(crops[0].close)
        # All checks have passed: the files that --overwrite replaces may be removed.
        if devices.first:
            run.begin()
            if plan:
                plan = dataclasses.replace(plan, config=config)
                write_document(run.folder / run_folder.PLAN, plan.to_json())
                for line in plan.lines():
                    logger.info("%s", line)
        finished, loop = True, None
        if with_network:
            loop = _make_loop(config, dataset, network, model, crops, run, temperature, devices)
            seconds = math.inf if config.minutes is None else 60 * config.minutes
            with StopRequest() as stop:
                finished = loop.go(stop, seconds)
        picks = run_folder.picks_of(loop.rows) if loop else {}
        comparison = None
        with devices.agreed():
            dataset.check_unchanged()
            if devices.first and not config.pretrain:
                with devices.alone():
                    best = run.folder / picks["lowest-val-loss"] if loop else None
                    legend = classes_of(config, dataset)
                    comparison = keep_pixel_models(config, dataset, legend, best, temperature, refit=refit)
                    record_picks(run.folder, picks | comparison.picks)
                    picks = picks or comparison.picks
        if finished and devices.first:
            run.finish()
            clear_checkpoints(run.checkpoints)
    return TrainingResult(
        folder=run.folder,
        picks={pick: run.folder / name for pick, name in picks.items()},
        rows=loop.rows if loop else (),
        history=run.folder / run_folder.HISTORY if loop else None,
        picture=run.folder / run_folder.PICTURE if loop else None,
        finished=finished,
        first=devices.first,
        epochs=config.epochs,
        steps=config.steps,
        channels=dataset.described_channels,
        pretrained=bool(config.pretrain),
        comparison=comparison,
    )


def _check_spread(dataset: Dataset) -> None:
    """Refuse constant channels, whose rounding differences the standardisation would magnify."""
    moments = zip(dataset.channels, dataset.statistics.mean, dataset.statistics.std, strict=True)
    constant = [channel["name"] for channel, mean, std in moments if not std > PRECISION * abs(mean)]
    if constant:
        raise InputError(
            f"cannot train on the channels {', '.join(constant)}, since they have one value in all training "
            "stacks, expected values that differ",
            "Such a channel carries no information: leave it out of the set of --channels, and prepare the "
            "stacks again.",
        )


def settle(config: TrainConfig, dataset: Dataset, plan: TrainingPlan | None = None) -> TrainConfig:
    """Return a config with every option filled in, by its recipe and the size of the data."""
    resolved = config.resolved() if config.pretrain else (plan or plan_training(config, dataset)).config
    return resolved if config.validation_steps is not None else limit_validation(resolved, dataset)


def prepare(
    config: TrainConfig, dataset: Dataset, devices: Devices = ONE
) -> tuple[keras.Model, tuple[TileGenerator, TileGenerator]]:
    """Build the model and open the training and validation crops of a run; nothing is written.

    Raises InputError if the data don't fit the network or the initial weights, or memory or disk are too
    small.
    """
    keras.utils.set_random_seed(config.seed)
    model = build_model(config, dataset, devices)
    crops = devices.own_crops(config.batch_size)
    if not backend.computes_in(config.precision):
        logger.warning(
            "this processor does not multiply in %s, so that a step takes several times as long as in "
            "float32: leave --precision out",
            config.precision,
        )
    available = free_memory() * MEMORY_MARGIN
    _check_limits(dataclasses.replace(config, batch_size=len(crops)), model, available)
    device = choose_crop_device(config, dataset, devices.count, available)
    config = dataclasses.replace(config, stacks_on=device)
    if config.init:
        _start_from(find_model(config.init), model, dataset, config.single_class)
    return model, (training_crops(config, dataset, crops), validation_crops(config, dataset, crops))


def check_options(config: TrainConfig) -> None:
    """Raise InputError if options of a resolved config contradict each other; reads no data."""
    if config.keep not in ("best", "all") and not _is_positive(config.keep):
        raise _refused("keep", f"'{config.keep}'", "best, all or a number from 1")
    _check_pretraining(config)
    stride = 2 ** len(config.filters)
    for name in ("crop_sizes", "validation_crop_sizes"):
        sides = getattr(config, name)
        if not sides or any(side < stride or side % stride for side in sides):
            stages = f"the stride of a network with {len(config.filters)} stages"
            raise _refused(name, " ".join(map(str, sides)), f"multiples of {stride}, {stages}")
    if config.devices != "all" and not _is_positive(config.devices):
        raise _refused("devices", f"'{config.devices}'", "a number from 1, or all")
    check_crop_device(config)
    missing = [name for name in ("tensorflow", "tensorboard") if importlib.util.find_spec(name) is None]
    if config.tensorboard and missing:
        raise InputError(
            f"cannot write TensorBoard logs, since the Python package '{missing[0]}' is not installed",
            f"Install it with `pip install {missing[0]}`, or leave --tensorboard out: the history is in "
            f"{run_folder.HISTORY} and {run_folder.PICTURE} in any case.",
        )


def _check_pretraining(config: TrainConfig) -> None:
    if not config.pretrain:
        return
    refused = [name for name, value in WITHOUT_LABELS.items() if getattr(config, name) != value]
    if refused:
        raise InputError(
            f"cannot pretrain as asked, since --{refused[0].replace('_', '-')} is given, which is about "
            "stacks with labels, expected none",
            "Pretrain without it, then train on labels with --init FOLDER and this option.",
        )
    smallest = min(*config.crop_sizes, *config.validation_crop_sizes)
    if (config.mask_block or 0) >= smallest:
        expected = f"1 to {smallest - 1} pixels, smaller than the smallest crop"
        raise _refused("mask_block", config.mask_block, expected)


def _is_positive(text: str) -> bool:
    return text.isdecimal() and int(text) > 0


def _refused(name: str, value: object, expected: str) -> InputError:
    option = f"--{name.replace('_', '-')}"
    return InputError(
        f"cannot train as asked, since {option} is {value}, expected {expected}",
        "Change the option and type it again.",
    )


def _network_of(config: TrainConfig, dataset: Dataset) -> NetworkConfig:
    single = config.single_class is not None
    activation = "linear" if config.pretrain else "sigmoid" if single else "softmax"
    return NetworkConfig(
        classes=1 if single else len(dataset.legend),
        channels=len(dataset.channels),
        filters=config.filters,
        decoder_filters=config.decoder_filters,
        bottleneck=config.bottleneck,
        block=config.block,
        dropout=config.dropout,
        norm=config.norm,
        activation=activation,
    )


def _check_limits(config: TrainConfig, model: keras.Model, available: float) -> None:
    """Refuse a training that exceeds memory or disk; frameworks end without a message if memory runs out."""
    weights = 4 * model.count_params()
    check_disk(config.out, 12 * weights, "models and checkpoints")
    if backend.device_name() != "CPU":
        return
    needed, side = memory_needed(model, config), max(config.crop_sizes)
    if needed > available:
        raise InputError(
            f"cannot train with batches of {config.batch_size} crops of {side} pixels, since that needs "
            f"about {needed / 1e9:.1f} GB of memory, expected at most {available / 1e9:.1f} GB (now free)",
            f"Give a smaller `--batch-size` (now {config.batch_size}), smaller `--crop-sizes` (now "
            f"{' '.join(str(s) for s in config.crop_sizes)}) or fewer `--filters`.",
        )


def memory_needed(model: keras.Model, config: TrainConfig) -> int:
    """Return the bytes that a training step on the largest batch takes, with the optimizer's variables."""
    side = max(config.crop_sizes)
    all_layers = keras.Model(model.inputs, [layer.output for layer in model.layers[1:]])
    shapes = all_layers.compute_output_shape((config.batch_size, side, side, model.input_shape[-1]))
    outputs = 4 * sum(math.prod(shape) for shape in shapes)
    return int(STEP_COPIES * outputs) + 24 * model.count_params()


def _start_from(path: Path, model: keras.Model, dataset: Dataset, single_class: str | None) -> None:
    """Copy the arrays of other weights that fit; those of the head only if the classes are the same."""
    initial, card = load_model(path)
    channels, expected = differing(card.inputs, dataset.described_channels)
    if channels != expected:
        raise InputError(
            f"cannot start from '{path}', since its channels are {', '.join(channels)}, expected those of "
            f"the stacks: {', '.join(expected)}",
            "Prepare the stacks with the same --channels, or train without --init.",
        )
    same_classes = (card.legend.names, card.single_class) == (dataset.legend.names, single_class)
    fresh = ("standardization",) if same_classes else ("standardization", "final_conv")
    unfit = transfer(model, arrays_of(initial), fresh=fresh)
    head = "" if same_classes else "; the head is new, as the classes are"
    logger.info("starting from '%s'%s; statistics are those of the data here", path, head)
    if unfit:
        logger.warning(
            "%d arrays don't fit the network and start from random values: %s",
            len(unfit), ", ".join(unfit[:3]),
        )  # fmt: skip


def build_model(config: TrainConfig, dataset: Dataset, devices: Devices = ONE) -> keras.Model:
    """Build and compile the network of a resolved config for a dataset, with random weights."""
    with devices.scope():
        with backend.precision(config.precision):
            model = build_unet(_network_of(config, dataset), _moments_of(dataset))
        devices.unite(model)
        metric = Filled() if config.pretrain else LabelledAccuracy()
        model.compile(
            optimizer=build_optimizer(config, devices),
            loss=devices.loss(_loss_of(config, dataset)),
            metrics=[devices.metric(metric)],
            # XLA on TensorFlow's CPU compiles each crop side for minutes and runs no faster; JAX needs it.
            jit_compile=backend.name() == "jax",
        )
        # TensorFlow would trace the first step twice if that step created variables.
        model.optimizer.build(model.trainable_variables)
    return model


def _moments_of(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    return np.array(dataset.statistics.mean), np.array(dataset.statistics.std)


def _loss_of(config: TrainConfig, dataset: Dataset) -> Loss:
    if config.pretrain:
        return absolute_difference
    counts = dataset.counts
    if config.single_class is not None:
        of_class = counts[dataset.legend.names.index(config.single_class)]
        counts = np.array([counts.sum() - of_class, of_class])
    return build_loss(config.loss, counts.tolist(), classes=_network_of(config, dataset).classes)


def _make_loop(
    config: TrainConfig, dataset: Dataset, network: NetworkConfig, model: keras.Model,
    crops: tuple[TileGenerator, TileGenerator], run: Run, fixed_temperature: Temperature | None,
    devices: Devices,
) -> Loop:  # fmt: skip
    if fixed_temperature is not None:
        config = dataclasses.replace(config, calibrate="none")
    board = None
    if config.tensorboard and devices.first:
        board = keras.callbacks.TensorBoard(str(run.folder / run_folder.TENSORBOARD), write_graph=False)
        board.set_model(model)
        board.on_train_begin()
    novelty = fit_novelty(dataset) if devices.first and not config.pretrain else None

    def save(row: Row, rows: tuple[Row, ...], temperature: Temperature) -> None:
        if fixed_temperature is not None:
            temperature = fixed_temperature
        card = dataclasses.replace(
            _card_of(config, dataset, network, row), temperature=temperature, novelty=novelty
        )
        save_model(model, card, run.folder / row.model)
        record_picks(run.folder, run_folder.picks_of(rows))
        if board:
            scores = ("loss", "accuracy", "val_loss", "val_accuracy", "val_macro_f1", "learning_rate")
            board.on_epoch_end(row.epoch, {name: getattr(row, name) for name in scores})

    normalization = None
    if config.average:
        build = functools.partial(build_unet, network, _moments_of(dataset))
        normalization = Normalization(build, plain_crops(config, dataset), config.workers)
    kind = PretrainingLoop if config.pretrain else Loop
    return kind(
        config=config,
        model=model,
        training=crops[0],
        validation=crops[1],
        legend=classes_of(config, dataset),
        run=run,
        save=save,
        normalization=normalization,
        devices=devices,
        afterwards=0.0 if config.pretrain else GROWTH_SECONDS / cores(),
    )


def inputs_of(config: TrainConfig, dataset: Dataset) -> dict[str, str]:
    """Return the sha256 of each input of a training by name."""
    initial = find_model(config.init) if config.init else None
    return dataset.inputs | ({"initial weights": sha256_of(initial)} if initial else {})


def classes_of(config: TrainConfig, dataset: Dataset) -> Legend:
    """Return the classes of the network: those of the data, or a single class and the rest."""
    legend = dataset.legend
    if config.single_class is None:
        return legend
    chosen = next(c for c in legend.classes if c.name == config.single_class)
    return Legend(
        legend.name, (LandCoverClass(1, "the rest", "#ffffff"), LandCoverClass(2, chosen.name, chosen.color))
    )


def _card_of(config: TrainConfig, dataset: Dataset, network: NetworkConfig, row: Row) -> ModelCard:
    windows = geometry(network)
    return ModelCard(
        name=f"{Path(config.out).resolve().name}/{row.model.removesuffix('.keras')}",
        channels=tuple(Channel(**channel) for channel in dataset.channels),
        channel_set=dataset.channel_set,
        legend=dataset.legend,
        statistics=dataset.statistics,
        network=network,
        stride=windows.stride,
        halo=windows.halo,
        single_class=config.single_class,
        training={
            "parameters": run_folder.parameters_of(config),
            "data": dataset.provenance,
            "class_counts": dict(zip(dataset.legend.names, dataset.counts.tolist(), strict=True)),
            "epoch": row.epoch,
            "batches": row.batches,
        },
        scores={
            "val_loss": row.val_loss,
            "val_filled" if config.pretrain else "val_accuracy": row.val_accuracy,
            "val_filled_by_channel" if config.pretrain else "val_macro_f1": row.val_macro_f1,
        },
        versions={"lulc": __version__, **backend.versions()},
        simulated=dataset.simulated,
    )
