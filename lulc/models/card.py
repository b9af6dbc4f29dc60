"""Model cards: origin, input and classes of a model, as JSON beside its weights (``NAME.json``)."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from lulc.core.channels import ChannelSet, set_of
from lulc.core.codec import REQUIRED, Jsonable, limits, schema_of
from lulc.core.documents import read_document, seal_of, write_document
from lulc.core.removal import withdraw
from lulc.core.schema import MAX_CLASSES, InputError, Legend, Name
from lulc.core.statistics import Statistics
from lulc.core.storage import write_atomically
from lulc.models.config import GraphConfig, NetworkConfig, PixelConfig
from lulc.models.ood_score import OodScore

FORMAT_VERSION = 1

Text = Annotated[str, limits(maxLength=10_000)]
Sha256 = Annotated[str, limits(pattern="^[0-9a-f]{64}$")]
Temperature = Annotated[float, limits(minimum=0.1, maximum=1000)]
"""At lower temperatures the powers of equal probabilities underflow and give NaN."""


@dataclass(frozen=True)
class Channel(Jsonable):
    """Input channel of a network: its name, its unit, and the coding of its values."""

    name: Name
    unit: Annotated[Text, REQUIRED] = ""
    coding: Annotated[Text, REQUIRED] = ""


@dataclass(frozen=True, kw_only=True)
class ModelCard(Jsonable):
    """Card of a weights file.

    Raises InputError if channels, statistics, legend and network do not fit together.

    Parameters
    ----------
    stride, halo
        See `lulc.models.config.Geometry`, pixels.
    temperature
        Divisor of the logits before the softmax: one number, or one for each class.
    novelty
        Out-of-distribution score; None if it was not fitted.
    single_class
        Name of the class that a sigmoid network tells from the rest; None for a softmax network.
    training, scores
        Data and parameters of the training, and its validation scores; any JSON.
    versions
        Versions of the programs that wrote it.
    sha256, bytes
        Checksum and size of the weights file; `write_with_card` fills them in.
    channel_set
        Definitions of the channels; None if their names define them.
    description, licence, attribution, not_for
        Texts for readers.
    simulated
        True if training imagery was simulated.
    """

    name: Name
    channels: Annotated[tuple[Channel, ...], limits(minItems=1, maxItems=1024)]
    legend: Legend
    statistics: Statistics
    network: NetworkConfig | PixelConfig | GraphConfig
    stride: Annotated[int, limits(minimum=1, maximum=4096)]
    halo: Annotated[int, limits(minimum=0, maximum=65_536)]
    temperature: (
        Temperature | Annotated[tuple[Temperature, ...], limits(minItems=1, maxItems=MAX_CLASSES)]
    ) = 1.0
    novelty: OodScore | None = None
    single_class: Name | None = None
    training: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Text] = field(default_factory=dict)
    sha256: Annotated[Sha256, REQUIRED] = ""
    bytes: Annotated[int, limits(minimum=1), REQUIRED] = 0
    channel_set: ChannelSet | None = None
    description: Text = ""
    licence: Text = ""
    attribution: Text = ""
    not_for: Text = ""
    simulated: bool = False

    def __post_init__(self) -> None:
        for problem in self._problems():
            raise InputError(
                f"cannot use the model card '{self.name}', since {problem}",
                "It is damaged or was changed by hand: make the model again, or take the original card.",
            )

    def _problems(self) -> list[str]:
        network, legend, single = self.network, self.legend.names, self.single_class
        names, channels = [c.name for c in self.channels], self.network.channels
        mean, std, temperature = self.statistics.mean, self.statistics.std, self.temperature
        classes = len(legend) if single is None else 1
        set_fits = self.channel_set is None or list(self.channel_set.names) == names
        single_fits = single is None or single in legend
        whole = self.halo % self.stride == 0
        score_fits = self.novelty is None or len(self.novelty.whitening) == channels
        temperature_fits = not isinstance(temperature, tuple) or len(temperature) == classes
        checks = {
            f"it names {len(names)} channels and its network has {channels}": len(names) == channels,
            "its channel set has other channels": set_fits,
            f"it names a channel twice ({', '.join(names)})": len(set(names)) == len(names),
            f"its statistics are of {len(mean)} channels, expected {channels}": len(mean) == channels,
            f"its standard deviations are {std}, expected positive ones": all(s > 0 for s in std),
            f"its network has {network.classes} outputs, expected {classes}": network.classes == classes,
            f"its single class '{single}' is not in its legend ({', '.join(legend)})": single_fits,
            f"its halo is {self.halo}, expected a multiple of its stride {self.stride}": whole,
            f"its out-of-distribution score is of other channels, expected {channels}": score_fits,
            f"it has {temperature} as temperatures, expected one, or {classes}": temperature_fits,
        }
        return [problem for problem, holds in checks.items() if not holds]

    @property
    def inputs(self) -> ChannelSet:
        """Channel set for reading rasters."""
        return self.channel_set or set_of([channel.name for channel in self.channels], self.name)

    @property
    def origin(self) -> str:
        """Epoch of the weights in their training, in words; empty if the card lacks it."""
        parameters = self.training.get("parameters")
        planned = parameters.get("epochs") if isinstance(parameters, dict) else None
        epoch = self.training.get("epoch")
        return f"epoch {epoch} of {planned} planned" if epoch and planned else ""

    @property
    def known_accuracy(self) -> str:
        """Known accuracy of maps by these weights, as a sentence without its full stop."""
        score = next((v for k in _SCORES if isinstance(v := self.scores.get(k), int | float)), None)
        data = [entry for entry in self.training.get("data", ()) if isinstance(entry, dict)]
        stacks = self.scores.get("validation stacks")
        if not isinstance(stacks, list):
            stacks = [
                f"{e.get('folder', '?')}/{name}" for e in data for name in e.get("validation_stacks", ())
            ]
        if score is None or not stacks:
            return f"nothing is known of the accuracy of '{self.name}' on land that it was not trained on"
        shown = ", ".join(map(str, stacks[:5])) + (f" and {len(stacks) - 5} more" if len(stacks) > 5 else "")
        return (
            f"overall accuracy was {score:.2f} on the validation stacks of the training ({shown}); elsewhere "
            "it is unknown and may be far lower, and no measure of the imagery tells"
        )

    @property
    def unet(self) -> NetworkConfig:
        """Shape of a network of this toolkit; raises InputError for cards of other models."""
        if not isinstance(self.network, NetworkConfig):
            kind = "an imported network"
            if isinstance(self.network, PixelConfig):
                kind = "a mean of small models" if self.network.dense else "a random forest"
            raise InputError(
                f"cannot use '{self.name}' here, since it is {kind}, expected a network of this toolkit",
                "Give the weights of such a network (.keras). This one makes maps: make_classifications.py.",
            )
        return self.network


_SCORES = ("micro-F1", "val_accuracy")
"""Scores that are overall accuracies."""

_SCHEMA = schema_of(ModelCard)
CARD_SCHEMA: dict[str, Any] = _SCHEMA | {
    "required": ["format_version", *_SCHEMA["required"]],
    "properties": {
        "format_version": {"const": FORMAT_VERSION},
        "seal": schema_of(Sha256),
        **_SCHEMA["properties"],
    },
}
"""JSON Schema of the document of a model card."""


def check_classifies(card: ModelCard) -> None:
    """Raise InputError for the card of a pretrained network, which knows no classes."""
    if card.network.activation == "linear":
        raise InputError(
            f"cannot use '{card.name}' to classify, since it was pretrained to fill in hidden values and "
            "knows no classes, expected a network that was trained on labels",
            "Train from it: python train_model.py DATA --init MODEL --out FOLDER, then use what that made.",
        )


def card_path(model: str | os.PathLike[str]) -> Path:
    """Return the path of the card of a weights file."""
    return Path(model).with_suffix(".json")


def load_card(model: str | os.PathLike[str]) -> ModelCard:
    """Read the card beside a weights file (or the card itself) without a framework.

    Raises InputError if it is missing, does not fit its schema, has a newer version, or contradicts itself.
    """
    path = card_path(model)
    data = read_document(path, CARD_SCHEMA, "model card", FORMAT_VERSION)
    seal = data.pop("seal", None)
    fields = {name: value for name, value in data.items() if name != "format_version"}
    try:
        card = ModelCard.from_json(fields)
    except InputError as error:
        raise InputError(f"cannot read the model card '{path}': {error.problem}", error.hint) from error
    # A changed temperature or class name contradicts no other entry; only the seal detects it.
    if seal not in (None, seal_of(data)):
        raise InputError(
            f"cannot read the model card '{path}', since it was changed after it was written (see its seal)",
            "Take it from its source again. If you changed it by hand, remove its entry 'seal'.",
        )
    return card


def write_card(card: ModelCard, model: str | os.PathLike[str]) -> None:
    """Write the card beside a weights file, whole or not at all, sealed with the sha256 of its content."""
    data = {"format_version": FORMAT_VERSION, **card.to_json()}
    write_document(card_path(model), data | {"seal": seal_of(data)})


def write_with_card(content: bytes, card: ModelCard, path: str | os.PathLike[str]) -> ModelCard:
    """Write a weights file and then its card, each whole or not at all; return the card as written."""
    # An old card must not lie beside new weights, not even after a crash.
    withdraw(card_path(path))
    with write_atomically(path) as temporary:
        temporary.write_bytes(content)
    card = replace(card, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    write_card(card, path)
    return card
