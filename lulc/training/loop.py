"""Training loop: batches, epochs, validation, checkpoints, and stopping without loss of work."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from lulc.config import TrainConfig
from lulc.core.codec import Jsonable
from lulc.core.schema import IGNORE, InputError, Legend
from lulc.core.text import duration
from lulc.evaluation.measures import metrics
from lulc.evaluation.report import figures
from lulc.models.backend import keras
from lulc.models.calibration import Holdout, Temperature
from lulc.models.uncertainty import decide
from lulc.training.batch_norm import Normalization
from lulc.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    restore_variables,
    save_checkpoint,
    variables_of,
)
from lulc.training.data.batches import TileGenerator, cut_ahead
from lulc.training.devices import ONE, Devices
from lulc.training.optimizer import averaged
from lulc.training.run_folder import HISTORY, PICTURE, Row, Run, is_stale

logger = logging.getLogger("lulc")

CHECKPOINT_SECONDS = 120.0
"""Time between checkpoints: a kill loses no more work than this and one batch."""

WEIGHTS_SECONDS = 1.0
"""Least time between checks of the weights for NaN; each checkpoint checks them too."""

PACE_BATCHES, PACE_LATEST = 8, 40
"""Batches before the duration of the run is forecast: once each crop side came twice, and in any case."""

PLAIN_PRICE = 1.5
"""Time of a pixel in the pass for the statistics of batch norm, in multiples of a validated one's."""

MARGIN = 0.85
"""Fraction of the time budget that the suggested options fill, so that they cause no second warning."""

PICTURE_SECONDS = 30.0
"""Least time between two drawings of the history; it is drawn once more at the end."""


@dataclass(frozen=True)
class Progress(Jsonable):
    """Counters of a checkpoint, which needs nothing else beside the variables.

    Crops and augmentation need no random state: they follow from the seed, `epoch` and `step`.

    Parameters
    ----------
    epoch
        Number of the current epoch, from 1.
    step, seconds
        Batches of the current epoch that are done, and the time that they took.
    loss, hits
        Loss and correct pixels, summed over the labelled pixels of these batches.
    labelled
        Number of these pixels.
    rows
        History of the earlier epochs.
    """

    epoch: int = 1
    step: int = 0
    seconds: float = 0.0
    loss: float = 0.0
    hits: float = 0.0
    labelled: int = 0
    rows: tuple[Row, ...] = ()

    def after_batch(self, logs: dict[str, float], labelled: int, seconds: float) -> Progress:
        """Return the progress after one more batch, whose means are weighted by its labelled pixels."""
        return replace(
            self,
            step=self.step + 1,
            seconds=self.seconds + seconds,
            loss=self.loss + logs["loss"] * labelled,
            hits=self.hits + logs["accuracy"] * labelled,
            labelled=self.labelled + labelled,
        )


class Validation(NamedTuple):
    """Mean loss over labelled pixels, accuracy, macro-F1, and the pixels for calibration."""

    loss: float
    accuracy: float
    macro_f1: float
    holdout: Holdout | None = None


class Pace:
    """Measured speed of training and validation.

    Parameters
    ----------
    side_fractions
        Fraction of the batches that have each crop side.
    """

    def __init__(self, side_fractions: dict[int, float]) -> None:
        self._fractions = side_fractions
        self._seconds: dict[int, list[float]] = {}
        self._forecast = False
        self.validation = 0.0
        """Seconds of the work at the end of an epoch."""

    def note(self, side: int, seconds: float) -> bool:
        """Record the time of a batch; return True once, when enough batches are timed for a forecast."""
        # The first batch of a side includes its compilation, which takes seconds.
        self._seconds.setdefault(side, []).append(seconds)
        counts = [max(0, len(self._seconds.get(side, ())) - 1) for side in self._fractions]
        enough = sum(counts) >= PACE_BATCHES and min(counts) >= 2
        due = not self._forecast and (enough or sum(counts) >= PACE_LATEST)
        self._forecast = self._forecast or due
        return due

    @property
    def batch(self) -> float:
        """Mean seconds of a batch; for a side without a timed batch they follow from its pixels."""
        means = {
            side: sum(times[1:]) / (len(times) - 1) for side, times in self._seconds.items() if times[1:]
        }
        speed = sum(side**2 for side in means) / max(sum(means.values()), 1e-9)
        return sum(fraction * means.get(side, side**2 / speed) for side, fraction in self._fractions.items())


class StopRequest:
    """Catches SIGINT and SIGTERM, so that the batch is finished first; a second signal ends the run at once.

    Only the main thread may set signal handlers; in other threads signals are not caught.
    """

    def __init__(self) -> None:
        self.received = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: Any) -> None:
        self.received = True
        self._restore()
        logger.warning("stopping after this batch; a second signal stops at once")

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()


class LabelledAccuracy(keras.metrics.Metric):
    """Accuracy over labelled pixels; ignored pixels are left out."""

    def __init__(self, name: str = "accuracy") -> None:
        super().__init__(name=name)
        self._right = self.add_variable((), "zeros", name="right")
        self._labelled = self.add_variable((), "zeros", name="labelled")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Count correct pixels of labels (n, y, x) 0..N-1 or 255 and probabilities (n, y, x, class)."""
        ops = keras.ops
        labels = ops.cast(y_true, "int32")
        single = y_pred.shape[-1] == 1
        decided = y_pred[..., 0] >= 0.5 if single else ops.argmax(y_pred, axis=-1)
        known = ops.not_equal(labels, IGNORE)
        right = ops.logical_and(known, ops.equal(ops.cast(decided, "int32"), labels))
        self._right.assign_add(ops.sum(ops.cast(right, "float32")))
        self._labelled.assign_add(ops.sum(ops.cast(known, "float32")))

    def result(self) -> Any:
        """Return the accuracy; 0 without a labelled pixel."""
        return self._right / keras.ops.maximum(self._labelled, 1.0)


@dataclass(kw_only=True)
class Loop:
    """Training of a compiled network, epoch by epoch, by a resolved config.

    Parameters
    ----------
    model
        Compiled, with a loss and a metric ``accuracy`` that leave ignored pixels out.
    training, validation
        Batches; each validation uses those of epoch 0.
    legend
        Classes of the network.
    run
        The run folder.
    save
        Writes the model and its card; called with the row of the epoch, all rows and the temperature while
        the model has its averaged weights.
    normalization
        Estimates the statistics of batch norm once more. The loop saves these or those gathered in training,
        whichever have the lower validation loss. None keeps the latter.
    devices
        Devices that the model was built on. All processes train on the same batches; the first one writes
        the files and decides by its clock.
    afterwards
        Seconds of the work that follows the loop, for the forecast.
    """

    config: TrainConfig
    model: keras.Model
    training: TileGenerator
    validation: TileGenerator
    legend: Legend
    run: Run
    save: Callable[[Row, tuple[Row, ...], Temperature], None]
    normalization: Normalization | None = None
    devices: Devices = ONE
    afterwards: float = 0.0

    def __post_init__(self) -> None:
        self._pace = Pace(self.training.side_fractions)
        self._weights_checked = self._saved = self._drawn = time.monotonic()
        self._progress = Progress()
        self._deadline = math.inf
        self.rows: tuple[Row, ...] = ()

    def go(self, stop: StopRequest, seconds: float = math.inf) -> bool:
        """Train until all epochs are done, no score improves, or the time is up.

        Returns True if the run is finished. Otherwise the unfinished epoch has been validated and saved, and
        the same call in a new process continues from its checkpoint. Raises InputError if loss or weights are
        not finite, and KeyboardInterrupt after a stop request, when the checkpoint is written.
        """
        deadline = self._deadline = time.monotonic() + seconds
        self._restore()
        steps = len(self.training)
        done = (self._progress.epoch - 1) * steps + self._progress.step
        quiet = not logger.isEnabledFor(logging.INFO)
        with tqdm(
            total=self.config.epochs * steps, initial=done, unit="batch", disable=quiet, dynamic_ncols=True,
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, {rate_fmt}{postfix}]",
        ) as bar:  # fmt: skip
            while self._progress.epoch <= self.config.epochs and not is_stale(
                self.rows, self.config.patience
            ):
                bar.set_description(f"epoch {self._progress.epoch}/{self.config.epochs}")
                complete = self._train_epoch(stop, deadline, bar)
                final = complete and self._progress.epoch == self.config.epochs
                # Checked after an epoch, not before, so that the shortest budget still trains one batch.
                late = self._agree(0, False, time.monotonic() >= deadline)[2]
                over = final or not complete or bool(late)
                self._end_epoch(complete, draw=over)
                if over:
                    return final or is_stale(self.rows, self.config.patience)
        return True

    def _restore(self) -> None:
        devices = self.devices
        checkpoint = load_checkpoint(self.run.checkpoints, self.run.key) if devices.first else None
        state = devices.spread(checkpoint.state if checkpoint else None)
        if state is None:
            return
        arrays = checkpoint.arrays if checkpoint else variables_of(self.model)
        restore_variables(self.model, devices.spread_arrays(arrays))
        self._progress = Progress.from_json(state)
        self.rows = self._progress.rows
        logger.info(
            "continuing in epoch %d after %d of its %d batches",
            self._progress.epoch, self._progress.step, len(self.training),
        )  # fmt: skip

    def _train_epoch(self, stop: StopRequest, deadline: float, bar: Any) -> bool:
        """Train the rest of the current epoch; return False if the time is up before its end."""
        epoch, step = self._progress.epoch, self._progress.step
        batches = cut_ahead(self.training, epoch, step, self.config.workers, self.devices.put)
        before = time.monotonic()
        try:
            for images, labels in batches:
                logs = self.devices.train(self.model, images, labels)
                now = time.monotonic()
                labelled, stopped, late, checkpoint_due, check_due = self._agree(
                    int(np.count_nonzero(labels != IGNORE)),
                    stop.received,
                    now >= deadline,
                    now - self._saved >= CHECKPOINT_SECONDS,
                    now - self._weights_checked >= WEIGHTS_SECONDS,
                )
                self._progress = self._progress.after_batch(
                    {name: float(value) for name, value in logs.items()}, labelled, now - before
                )
                if self._pace.note(images.shape[1], now - before):
                    self._log_forecast()
                before = time.monotonic()
                self._check_finite(float(logs["loss"]), check_due)
                bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)
                bar.update()
                if stopped:
                    self._checkpoint()
                    raise KeyboardInterrupt
                interrupted = late and self._progress.step < len(self.training)
                if interrupted or checkpoint_due:
                    self._checkpoint()
                if interrupted:
                    return False
        finally:
            batches.close()
        return True

    def _agree(self, labelled: int, stop: bool, *clock: bool) -> list[int]:
        """Return the labelled pixels of all processes, 1 if any is to stop, and `clock` of the first one."""
        rows = self.devices.gather(np.array([[labelled, stop, *clock]], np.int32))
        return [int(rows[:, 0].sum()), int(rows[:, 1].max()), *rows[0, 2:].tolist()]

    def _log_forecast(self) -> None:
        """Log how long the run will take, with options for a time budget that is too short."""
        pace, steps = self._pace, len(self.training)
        pace.validation = self._forecast_validation()
        validations = self.config.epochs - self._progress.epoch + 1
        batches = validations * steps - self._progress.step
        seconds = batches * pace.batch + validations * pace.validation + self.afterwards
        logger.info(
            "about %s for the %d batches to come, validation of %d epochs included",
            duration(seconds), batches, validations,
        )  # fmt: skip
        # The last validation comes after the deadline.
        budget = self._deadline - time.monotonic()
        if budget < batches * pace.batch + pace.validation * (validations - 1):
            logger.warning(
                "the time ends before that; learning rate and averages are planned for all batches: "
                "`%s` would plan them for what fits",
                self._advice(budget, steps),
            )

    def _advice(self, budget: float, steps: int) -> str:
        """Return options with which the whole run fits the time used so far and `budget` seconds."""
        done = (self._progress.epoch - 1) * steps + self._progress.step
        seconds = MARGIN * (budget + done * self._pace.batch)
        epochs = int(seconds / (steps * self._pace.batch + self._pace.validation))
        if epochs:
            return f"--epochs {epochs}"
        return f"--epochs 1 --steps {max(1, int(seconds / self._pace.batch))}"

    def _forecast_validation(self) -> float:
        """Return the seconds of a validation, measured on a batch after a first pass that compiles."""
        crops = self.validation
        images, _ = crops.batch(0, 0)
        for _ in range(2):
            begun = time.monotonic()
            self.devices.predict(self.model, images)
        measured = math.prod(images.shape[:3]) * self.devices.processes
        crops.release()
        pixels = len(crops) * crops.pixels_per_batch
        if self.normalization:
            pixels = 2 * pixels + PLAIN_PRICE * self.normalization.pixels
        return (time.monotonic() - begun) * pixels / measured

    def _end_epoch(self, complete: bool, draw: bool) -> None:
        """Validate and save with the averaged weights; start the next epoch if this one is complete."""
        self._check_weights()
        started = time.monotonic()
        with averaged(self.model), contextlib.ExitStack() as statistics:
            validation = self._validate()
            if self.normalization:
                statistics.enter_context(self.normalization.settled(self.model, self.devices))
                estimated = self._validate()
                if self.devices.spread(estimated.loss < validation.loss):
                    validation = estimated
                else:
                    statistics.close()  # brings back the statistics gathered in training
            temperature: Temperature = 1.0
            if validation.holdout and self.config.calibrate != "none":
                temperature = validation.holdout.fit(per_class=self.config.calibrate == "per-class")
            self._pace.validation = time.monotonic() - started
            self._add_row(validation, temperature, draw)
        if complete:
            self._progress = Progress(epoch=self._progress.epoch + 1, rows=self.rows)
            self._checkpoint()

    def _add_row(self, validation: Validation, temperature: Temperature, draw: bool) -> None:
        """Add the epoch to the history, and write its model, card and picks."""
        p, seconds = self._progress, self._pace.validation
        row = Row(
            epoch=p.epoch,
            batches=p.step,
            seconds=round(p.seconds + seconds, 1),
            loss=p.loss / max(p.labelled, 1),
            accuracy=p.hits / max(p.labelled, 1),
            val_loss=validation.loss,
            val_accuracy=validation.accuracy,
            val_macro_f1=validation.macro_f1,
            learning_rate=float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)),
            model=f"{p.epoch:02d}-{validation.loss:.2f}.keras",
        )
        row = Row(**self.devices.spread(asdict(row)))
        self.rows = (*p.rows, row)
        if self.devices.first:
            with self.devices.alone():
                self._write(row, temperature, draw)

    def _write(self, row: Row, temperature: Temperature, draw: bool) -> None:
        self.save(row, self.rows, temperature)
        self.run.write_history(self.rows)
        self.run.tidy(self.rows, self.config.keep)
        if draw or time.monotonic() - self._drawn >= PICTURE_SECONDS:
            figures.draw_history(self.run.folder / HISTORY, self.run.folder / PICTURE)
            self._drawn = time.monotonic()
        logger.info(
            "epoch %d: loss %.4f, accuracy %.4f, validation loss %.4f, accuracy %.4f, macro-F1 %.4f, %.0f s, "
            "%.1f s of it for validation",
            row.epoch, row.loss, row.accuracy, row.val_loss, row.val_accuracy, row.val_macro_f1, row.seconds,
            self._pace.validation,
        )  # fmt: skip

    def _validate(self) -> Validation:
        """Return the metrics of the validation crops."""
        classes = len(self.legend)
        confusion = np.zeros((classes + 1, classes + 1), np.int64)
        holdout = Holdout(len(self.validation))
        total, labelled = 0.0, 0
        for images, labels in cut_ahead(self.validation, 0, 0, self.config.workers):
            probabilities, labels = self.devices.predict(self.model, images), self.devices.gather(labels)
            known = labels != IGNORE
            count = int(known.sum())
            loss = self.model.loss(labels, keras.ops.convert_to_tensor(probabilities))
            total += float(keras.ops.convert_to_numpy(loss)) * count
            labelled += count
            confusion += metrics.count(labels[known] + 1, decide(probabilities)[known] + 1, classes)
            holdout.add(probabilities, labels)
        val_loss = total / max(labelled, 1)
        if not math.isfinite(val_loss):
            raise self._not_finite(f"the validation loss is {val_loss}")
        scores = metrics.score(confusion, self.legend)
        macro_f1 = scores.macro.f1 if scores.macro else 0.0
        return Validation(val_loss, scores.overall_accuracy or 0.0, macro_f1, holdout)

    def _checkpoint(self) -> None:
        self._check_weights()
        if self.devices.first:
            checkpoint = Checkpoint(variables_of(self.model), self._progress.to_json())
            save_checkpoint(self.run.checkpoints, checkpoint, self.run.key)
        self._saved = time.monotonic()

    def _check_finite(self, loss: float, with_weights: int) -> None:
        if not math.isfinite(loss):
            raise self._not_finite(f"the loss is {loss}")
        # The loss may stay finite although weights are NaN.
        if with_weights:
            self._check_weights()

    def _check_weights(self) -> None:
        self._weights_checked = time.monotonic()
        sums = {v.path: float(keras.ops.convert_to_numpy(keras.ops.sum(v))) for v in self.model.weights}
        broken = [path for path, value in sums.items() if not math.isfinite(value)]
        if broken:
            raise self._not_finite(f"weights are not finite ({broken[0]})")

    def _not_finite(self, what: str) -> InputError:
        return InputError(
            f"cannot go on training, since {what} after batch {self._progress.step} of epoch "
            f"{self._progress.epoch}, expected finite numbers",
            "Lower `--learning-rate` and check the values of the stacks, then give `--restart`: crops follow "
            "from the seed, so the same command would fail at the same batch.",
        )


class PretrainingLoop(Loop):
    """Training of a network to fill in the blocks that `lulc.training.data.masking.MaskedCrops` masks.

    Its history has other metrics: as accuracy, 1 minus the absolute error of the masked values over their
    absolute deviation from the mean; as macro-F1, the mean over channels of the same.
    """

    def _validate(self) -> Validation:
        """Return the mean absolute error and both metrics."""
        channels = len(self.legend)
        error, deviation = np.zeros(channels), np.zeros(channels)
        count = 0
        for images, targets in cut_ahead(self.validation, 0, 0, self.config.workers):
            filled, targets = self.devices.predict(self.model, images), self.devices.gather(targets)
            masked = targets != IGNORE
            count += int(masked.sum())
            error += np.where(masked, np.abs(filled - targets), 0).sum((0, 1, 2), dtype=np.float64)
            deviation += np.where(masked, np.abs(targets), 0).sum((0, 1, 2), dtype=np.float64)
        loss = float(error.sum()) / max(count, 1)
        if not math.isfinite(loss):
            raise self._not_finite(f"the validation loss is {loss}")
        by_channel = 1 - error / np.maximum(deviation, 1e-6)
        return Validation(loss, float(1 - error.sum() / max(deviation.sum(), 1e-6)), float(by_channel.mean()))
