"""Model cards: the training data, input and purpose of a weights file.

Plain data beside the weights (``NAME.json`` beside ``NAME.keras``), read without any framework.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from lulc.core.channels import ChannelSet, set_of
from lulc.core.codec import REQUIRED, Jsonable, limits, schema_of
from lulc.core.documents import read_document, seal_of, write_document
from lulc.core.schema import MAX_CLASSES, InputError, Legend, Name
from lulc.core.statistics import Statistics
from lulc.models.config import GraphConfig, NetworkConfig, PixelConfig
from lulc.models.ood_score import OodScore

FORMAT_VERSION = 1

Text = Annotated[str, limits(maxLength=10_000)]
Sha256 = Annotated[str, limits(pattern="^[0-9a-f]{64}$")]
Temperature = Annotated[float, limits(minimum=0.1, maximum=1000)]
"""At lower temperatures powers of equal probabilities underflow, and their quotients are NaN."""


@dataclass(frozen=True)
class Channel(Jsonable):
    """One input channel of a network: its name, its unit, and how its values are coded."""

    name: Name
    unit: Annotated[Text, REQUIRED] = ""
    coding: Annotated[Text, REQUIRED] = ""


@dataclass(frozen=True, kw_only=True)
class ModelCard(Jsonable):
    """Card of a weights file.

    Parameters
    ----------
    stride, halo
        See `lulc.models.unet.Geometry`, pixels.
    temperature
        Divides the logits before the softmax: one number, or one for each class.
    novelty
        Out-of-distribution score; None where it was not fitted.
    single_class
        Name of the class that a sigmoid network tells from the rest; None for a softmax network.
    training, scores
        Data and parameters of the training; scores that it reached. Any JSON.
    versions
        Versions of the programs that wrote it.
    sha256, bytes
        Identity of the weights file; ``save_model`` fills them in.
    channel_set
        What the channels are; None where their names say everything.
    description, licence, attribution, not_for
        For people.
    simulated
        True where training imagery was simulated.

    Raises
    ------
    InputError
        If channels, statistics, legend and network do not fit together.
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
        channels = self.network.channels
        names = [c.name for c in self.channels]
        classes = len(self.legend) if self.single_class is None else 1
        single, legend, halo, temperature = self.single_class, self.legend.names, self.halo, self.temperature
        checks = [
            (len(names) == channels, f"it names {len(names)} channels and its network has {channels}"),
            (
                self.channel_set is None or list(self.channel_set.names) == names,
                "its channel set has other channels",
            ),
            (len(set(names)) == len(names), f"it names a channel twice ({', '.join(names)})"),
            (
                len(self.statistics.mean) == channels,
                f"its statistics are of {len(self.statistics.mean)} channels, expected {channels}",
            ),
            (
                all(s > 0 for s in self.statistics.std),
                f"its standard deviations are {self.statistics.std}, expected positive ones",
            ),
            (
                self.network.classes == classes,
                f"its network has {self.network.classes} outputs, expected {classes}",
            ),
            (
                single is None or single in legend,
                f"its single class '{single}' is not in its legend ({', '.join(legend)})",
            ),
            (halo % self.stride == 0, f"its halo is {halo}, expected a multiple of its stride {self.stride}"),
            (
                self.novelty is None or len(self.novelty.whitening) == channels,
                f"its out-of-distribution score is of other channels, expected {channels}",
            ),
            (
                not isinstance(temperature, tuple) or len(temperature) == classes,
                f"it has {temperature} as temperatures, expected one, or {classes}",
            ),
        ]
        return [problem for holds, problem in checks if not holds]

    @property
    def inputs(self) -> ChannelSet:
        """Channel set by which rasters are read."""
        return self.channel_set or set_of([channel.name for channel in self.channels], self.name)

    @property
    def origin(self) -> str:
        """Say in words which epoch of its training the weights are of; empty where the card doesn't know."""
        parameters = self.training.get("parameters")
        planned = parameters.get("epochs") if isinstance(parameters, dict) else None
        epoch = self.training.get("epoch")
        return f"epoch {epoch} of {planned} planned" if epoch and planned else ""

    @property
    def known_accuracy(self) -> str:
        """Say what is known of the accuracy of maps by these weights, as a sentence without its end."""
        score = next((v for k in _SCORES if isinstance(v := self.scores.get(k), int | float)), None)
        stacks = self.scores.get("validation stacks")
        data = [entry for entry in self.training.get("data", ()) if isinstance(entry, dict)]
        own = [f"{e.get('folder', '?')}/{name}" for e in data for name in e.get("validation_stacks", ())]
        places = stacks if isinstance(stacks, list) else own
        if score is None or not places:
            return f"nothing is known of the accuracy of '{self.name}' on land that it was not trained on"
        shown = ", ".join(map(str, places[:5])) + (f" and {len(places) - 5} more" if len(places) > 5 else "")
        return (
            f"overall accuracy was {score:.2f} on the validation stacks of the training ({shown}); elsewhere "
            "it is unknown and may be far lower, and no measure of the imagery tells"
        )

    @property
    def unet(self) -> NetworkConfig:
        """Shape of a network of this toolkit; raises InputError where the card is of another model."""
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
"""Entries of the scores that hold the overall accuracy."""

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
    """Raise InputError where the network of a card was only pretrained and knows no classes."""
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

    Raises
    ------
    InputError
        If there is none, or it does not fit its schema, or is from a newer version, or contradicts itself.
    """
    path = card_path(model)
    data = read_document(path, CARD_SCHEMA, "model card", FORMAT_VERSION)
    seal = data.pop("seal", None)
    fields = {name: value for name, value in data.items() if name != "format_version"}
    try:
        card = ModelCard.from_json(fields)
    except InputError as error:
        raise InputError(f"cannot read the model card '{path}': {error.problem}", error.hint) from error
    # Another temperature or class name contradicts nothing else, so that only a seal tells damage.
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
