"""The model card: what a weights file was trained on, what it expects and what it is for.

Plain data beside the weights (``NAME.json`` beside ``NAME.keras``), read without any framework.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lulc.core.documents import read_document, seal_of, write_document
from lulc.core.schema import LEGEND_SCHEMA, MAX_CLASSES, InputError, Legend
from lulc.core.statistics import STATISTICS_SCHEMA, Statistics
from lulc.models.config import NETWORK_SCHEMA, NetworkConfig
from lulc.models.ood_score import NOVELTY_SCHEMA, Novelty

FORMAT_VERSION = 1

_TEXT = {"type": "string", "maxLength": 10_000}
_NAME = {"type": "string", "minLength": 1, "maxLength": 200}
_TEMPERATURE = {"type": "number", "minimum": 0.1, "maximum": 1000}
"""At lower ones powers of activations that are all alike underflow, and their quotients are NaN."""

CARD_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "required": [
        "format_version",
        "name",
        "channels",
        "legend",
        "statistics",
        "network",
        "stride",
        "halo",
        "sha256",
        "bytes",
    ],
    "additionalProperties": False,
    "properties": {
        "format_version": {"const": FORMAT_VERSION},
        "name": _NAME,
        "channels": {
            "type": "array",
            "minItems": 1,
            "maxItems": 1024,
            "items": {
                "type": "object",
                "required": ["name", "unit", "coding"],
                "additionalProperties": False,
                "properties": {"name": _NAME, "unit": _TEXT, "coding": _TEXT},
            },
        },
        "legend": LEGEND_SCHEMA,
        "statistics": STATISTICS_SCHEMA,
        "network": NETWORK_SCHEMA,
        "stride": {"type": "integer", "minimum": 1, "maximum": 4096},
        "halo": {"type": "integer", "minimum": 0, "maximum": 65_536},
        "temperature": {
            "oneOf": [
                _TEMPERATURE,
                {"type": "array", "minItems": 1, "maxItems": MAX_CLASSES, "items": _TEMPERATURE},
            ],
        },
        "novelty": {"oneOf": [NOVELTY_SCHEMA, {"type": "null"}]},
        "single_class": {"oneOf": [_NAME, {"type": "null"}]},
        "training": {"type": "object"},
        "scores": {"type": "object"},
        "versions": {"type": "object", "additionalProperties": _TEXT},
        "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
        "seal": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
        "bytes": {"type": "integer", "minimum": 1},
        "description": _TEXT,
        "licence": _TEXT,
        "attribution": _TEXT,
        "not_for": _TEXT,
    },
}
"""JSON Schema of a model card."""


@dataclass(frozen=True)
class Channel:
    """One input channel of a network: its name, its unit, and how its values are coded."""

    name: str
    unit: str = ""
    coding: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What belongs to a weights file.

    Parameters
    ----------
    name
        Name of the model.
    channels
        Input channels in order.
    legend
        Classes of the output.
    statistics
        Of the valid training pixels, in the channels' units.
    network
        Shape of the network.
    stride, halo
        See `lulc.models.unet.Geometry`, pixels.
    temperature
        Divides the logits before the softmax: one number, or one for each class.
    novelty
        What tells pixels unlike the training data; None where that was not learnt.
    single_class
        Name of the class that a sigmoid network tells from the rest; None for a softmax network.
    training, scores
        What it was trained on and how; what it reached. Free, JSON-ready.
    versions
        Versions of the programs that wrote it.
    sha256, bytes
        Of the weights file; ``save_model`` fills them in.
    description, licence, attribution, not_for
        For people.

    Raises
    ------
    InputError
        If channels, statistics, legend and network do not fit together.
    """

    name: str
    channels: tuple[Channel, ...]
    legend: Legend
    statistics: Statistics
    network: NetworkConfig
    stride: int
    halo: int
    temperature: float | tuple[float, ...] = 1.0
    novelty: Novelty | None = None
    single_class: str | None = None
    training: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    sha256: str = ""
    bytes: int = 0
    description: str = ""
    licence: str = ""
    attribution: str = ""
    not_for: str = ""

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
            (
                halo % self.stride == 0,
                f"its halo is {halo}, expected a multiple of its stride {self.stride}",
            ),
            (
                self.novelty is None or len(self.novelty.whitening) == channels,
                f"its novelty is that of other channels, expected {channels}",
            ),
            (
                not isinstance(temperature, tuple) or len(temperature) == classes,
                f"it has {temperature} as temperatures, expected one, or {classes}",
            ),
        ]
        return [problem for holds, problem in checks if not holds]

    def to_json(self) -> dict[str, Any]:
        """The card as JSON-ready data, the inverse of `from_json`."""
        temperature = self.temperature
        return {
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "channels": [{"name": c.name, "unit": c.unit, "coding": c.coding} for c in self.channels],
            "legend": self.legend.to_json(),
            "statistics": self.statistics.to_json(),
            "network": self.network.to_json(),
            "stride": self.stride,
            "halo": self.halo,
            "temperature": list(temperature) if isinstance(temperature, tuple) else temperature,
            "novelty": self.novelty.to_json() if self.novelty else None,
            "single_class": self.single_class,
            "training": self.training,
            "scores": self.scores,
            "versions": self.versions,
            "sha256": self.sha256,
            "bytes": self.bytes,
            "description": self.description,
            "licence": self.licence,
            "attribution": self.attribution,
            "not_for": self.not_for,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ModelCard:
        """A card from data that fit `CARD_SCHEMA`."""
        temperature = data.get("temperature", 1.0)
        rest = {k: v for k, v in data.items() if k != "format_version"}
        return cls(
            **rest
            | {
                "channels": tuple(Channel(**c) for c in data["channels"]),
                "legend": Legend.from_json(data["legend"]),
                "statistics": Statistics.from_json(data["statistics"]),
                "network": NetworkConfig.from_json(data["network"]),
                "temperature": tuple(temperature) if isinstance(temperature, list) else temperature,
                "novelty": Novelty.from_json(data["novelty"]) if data.get("novelty") else None,
            }
        )


def check_classifies(card: ModelCard) -> None:
    """Raise InputError where the network of a card was pretrained only, and knows no classes."""
    if card.network.activation == "linear":
        raise InputError(
            f"cannot use '{card.name}' to classify, since it was pretrained to fill in hidden values and "
            "knows no classes, expected a network that was trained on labels",
            "Train from it: python train_model.py DATA --init MODEL --out FOLDER, then use what that made.",
        )


def card_path(model: str | os.PathLike[str]) -> Path:
    """Path of the card that belongs to a weights file."""
    return Path(model).with_suffix(".json")


def load_card(model: str | os.PathLike[str]) -> ModelCard:
    """Read the card beside a weights file (or the card itself); loads no framework.

    Raises
    ------
    InputError
        If there is none, or it does not fit its schema, or is from a newer version, or contradicts itself.
    """
    path = card_path(model)
    data = read_document(path, CARD_SCHEMA, "model card", FORMAT_VERSION)
    seal = data.pop("seal", None)
    try:
        card = ModelCard.from_json(data)
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
    """Write the card beside a weights file, whole or not at all, with the sha256 of its content as seal."""
    data = card.to_json()
    write_document(card_path(model), data | {"seal": seal_of(data)})
