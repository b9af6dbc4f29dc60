"""A model as the folder of a repository: weights, card, page, licence and STAC item."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from lulc.core.documents import write_document
from lulc.core.schema import InputError
from lulc.core.storage import put_folder, temporary_folder
from lulc.core.text import printable
from lulc.export.stac import model_item
from lulc.models.card import ModelCard, load_card, write_card
from lulc.models.hub import STEM, ending_of

OWN = ("README.md", "LICENSE", ".gitattributes", "model.stac.json", "model.json")
"""Files of a repository beside the weights."""


def write_repository(model: Path, folder: Path, dates: Sequence[str], *, overwrite: bool) -> tuple[Path, ...]:
    """Write the folder of a repository, completely or not at all; return its files.

    A model without a card, and a folder with other files, are refused.
    """
    card = load_card(model)
    weights = f"{STEM}{ending_of(card)}"
    if model.suffix != ending_of(card):
        raise InputError(
            f"cannot write a repository of '{model}', expected weights with a model card",
            "Give weights that train_model.py or import_model.py wrote.",
        )
    others = {path.name for path in folder.iterdir()} - {*OWN, weights} if folder.is_dir() else set()
    if others or (folder.exists() and not overwrite):
        holds = f"it holds '{min(others)}'" if others else "it exists already"
        raise InputError(
            f"cannot write the repository '{folder}', since {holds}",
            "Give another --hub" + ("." if others else ", or add --overwrite."),
        )
    with temporary_folder(folder) as temporary:
        new = temporary / folder.name
        new.mkdir()
        shutil.copyfile(model, new / weights)
        write_card(card, new / weights)
        write_document(new / f"{STEM}.stac.json", model_item(new / weights, new, card, dates))
        (new / "README.md").write_text(page(card, weights), encoding="utf-8")
        licence = [card.licence or "No licence is named.", card.attribution]
        (new / "LICENSE").write_text("\n\n".join(filter(None, licence)) + "\n", encoding="utf-8")
        (new / ".gitattributes").write_text(f"{weights} filter=lfs diff=lfs merge=lfs -text\n")
        put_folder(new, folder)
    return tuple(sorted(folder.iterdir()))


def page(card: ModelCard, weights: str) -> str:
    """Return the page about a model, Markdown with the fields that model hubs read."""
    known = re.fullmatch(r"[\w.+-]+", card.licence)
    kind = type(card.network).__name__
    head = [
        "---", f"license: {card.licence.lower() if known else 'other'}", "library_name: lulc",
        "pipeline_tag: image-segmentation", "tags: [land-cover, sentinel-2, remote-sensing]", "---",
    ]  # fmt: skip
    classes = [c for c in card.legend.classes if card.single_class in (None, c.name)]
    parts = [
        *head,
        "",
        f"# {_text(card.name)}",
        "",
        _text(card.description) or f"Land cover of the legend {_text(card.legend.name)}.",
        "",
        *([f"**Not for:** {_text(card.not_for)}", ""] if card.not_for else []),
        *(["**It was trained on simulated imagery.**", ""] if card.simulated else []),
        f"{_text(card.known_accuracy)}.".capitalize(),
        "",
        "```bash",
        "python make_classifications.py hf://OWNER/NAME@REVISION MOSAIC.tif MAP.tif",
        "```",
        "",
        "| channel | unit |",
        "|---|---|",
        *(f"| {_text(c.name)} | {_text(c.unit)} |" for c in card.channels),
        "",
        "| number | class | colour |",
        "|---|---|---|",
        *(f"| {c.number} | {_text(c.name)} | `{c.color}` |" for c in classes),
        "",
        f"{kind} with {card.network.parameters:,} numbers, stride {card.stride}, halo {card.halo} pixels. "
        f"`{weights}` has the sha256 `{card.sha256}`; `{STEM}.json` is its card, "
        f"`{STEM}.stac.json` its STAC item.",
        *(["", _text(card.attribution)] if card.attribution else []),
    ]
    return "\n".join(parts) + "\n"


def _text(text: str) -> str:
    """Return a text of the card escaped for Markdown, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", " ".join(printable(text).split()))
