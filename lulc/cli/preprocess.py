"""Cut Sentinel-2 bands, spectral indices and labels into .npy stacks for training and validation.

The result is a folder of stacks. train_image_0.npy is float32, rows x columns x channels: reflectance x 10000
and index codes, NaN in all channels of an invalid pixel. train_masks_0.npy is uint8: class numbers, 255 =
ignore. val_image_0.npy and val_masks_0.npy are for validation. manifest.json describes them and is written
last. The same command continues an interrupted run.

Example: python preprocess.py --bands demo/summer.tif --fill demo/spring.tif --indices demo/indices.tif
--labels demo/labels.tif --scheme kaakonkulma-13 --size 256 --out demo/stacks
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lulc.cli.commandline import Answer, run
from lulc.config import PreprocessConfig
from lulc.core.text import columns, visible

if TYPE_CHECKING:
    from lulc.datasets.manifest import Manifest

SHOWN = 3
"""Codes that are printed with their classes."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0, 1 for data that don't fit, 2 for a wrong command line."""
    return run(PreprocessConfig, __doc__ or "", _prepare, argv)


def _prepare(config: PreprocessConfig) -> Answer:
    from lulc.preprocessing.preprocess import make_stacks

    manifest = make_stacks(config)
    following = f"python train_model.py {_folders(config, manifest)} --out runs/first"
    text = (
        f"{summary(manifest)}\n\nThe stacks and their manifest are in {config.out}. Next:\n\n    {following}"
    )
    return Answer(text, figures(manifest))


def _folders(config: PreprocessConfig, manifest: Manifest) -> str:
    """Return the folders of the training to come; DATA and FOLDER stand for others."""
    out = shlex.quote(config.out)
    if not manifest.of("train"):
        return f"DATA --validation-data {out}"
    return out if manifest.of("val") else f"{out} --validation-data FOLDER"


def figures(manifest: Manifest) -> dict[str, Any]:
    """Stacks, class counts and shares of patched and invalid pixels, JSON-ready."""
    counts = zip(manifest.class_counts("train"), manifest.class_counts("val"), strict=True)
    return {
        "folder": str(manifest.folder),
        "scheme": manifest.scheme,
        "indices_computed": _computed(manifest),
        "stacks": [
            {"name": s.name, "split": s.split, "pixels": list(s.shape), "labelled": sum(s.class_counts)}
            for s in manifest.stacks
        ],
        "classes": [
            {"number": c.number, "name": c.name, "training": int(train), "validation": int(val)}
            for c, (train, val) in zip(manifest.legend.classes, counts, strict=True)
        ],
        "coverage": manifest.provenance["coverage"],
        "labels": manifest.provenance["labels"],
        "labelled": manifest.provenance.get("labelled"),
    }


def summary(manifest: Manifest) -> str:
    """Stacks, class counts and shares of patched and invalid pixels, as text tables."""
    tables = (_stack_table(manifest), _class_table(manifest), _channel_table(manifest))
    return "\n\n".join((*tables, _readings(manifest)))


def _readings(manifest: Manifest) -> str:
    """By which scheme the codes of the labels were read, and where the indices come from."""
    from lulc.labels.labels import words_of

    names = {c.number: c.name for c in manifest.legend.classes}
    codes = [
        names[number] if code == names[number].casefold() else f"{code} {names[number]}"
        for code, number in manifest.parameters["classes"]
        if number in names
    ]
    shown = "; ".join(codes[:SHOWN] + (["..."] if len(codes) > SHOWN else []))
    origin, *losses = words_of(manifest.provenance["labels"])
    computed, files = _computed(manifest), ", ".join(manifest.parameters["indices"])
    origins = [f"read from {files}"] if files else []
    origins += [f"{', '.join(computed)} computed from the bands"] if computed else []
    lines = [
        f"labels: {origin} ({shown})",
        *(f"labels: {words}" for words in losses),
        *_labelled(manifest),
        *([f"indices: {'; '.join(origins)}"] if _indices(manifest) else []),
    ]
    return "\n".join(map(visible, lines))


def _indices(manifest: Manifest) -> list[str]:
    from lulc.core.schema import INDICES

    return [str(c["name"]) for c in manifest.channels if c["name"] in INDICES]


def _labelled(manifest: Manifest) -> list[str]:
    """Return the number of labelled pixels in use, and reasons for the others; nothing of older manifests."""
    found = manifest.provenance.get("labelled")
    if not found:
        return []
    reasons = (
        ("hidden", "within --gap or --border-ignore"),
        ("not_cut", "in places that --stacks or --gap leaves out"),
    )
    used = found["training"] + found["validation"]
    lost = [f"{found[name]:,} {words}" for name, words in reasons if found[name]]
    why = f"; not used: {', '.join(lost)}" if lost else ""
    share = f"{100 * used / max(1, found['given']):.1f} %"
    lines = [
        f"labels: {found['given']:,} px on valid pixels, {share} used: {found['training']:,} for training, "
        f"{found['validation']:,} for validation{why}"
    ]
    if "groups" in found:
        near = found["distance"]
        joined = {0: "touch and have one class", 1: "touch"}.get(near, f"lie within {near} px of each other")
        lines.append(
            f"split by patches: {found['groups']['training']:,} groups train and "
            f"{found['groups']['validation']:,} validate; patches that {joined} are one group"
        )
        if near == 0:
            lines.append(
                "labels that train may touch labels that validate, so that scores may be too good: another "
                "scene (--validation-data of train_model.py) or a smaller --size tells more"
            )
    return lines


def _computed(manifest: Manifest) -> list[str]:
    return [str(c["name"]) for c in manifest.channels if c["coding"] == "computed"]


def _stack_table(manifest: Manifest) -> str:
    rows = []
    for stack in manifest.stacks:
        labelled = sum(stack.class_counts) / (stack.shape[0] * stack.shape[1])
        size = f"{stack.shape[0]} x {stack.shape[1]}"
        number = "" if stack.number is None else str(stack.number)
        rows.append([stack.name, number, size, _percent(labelled)])
    return columns([["stack", "number", "pixels", "labelled"], *rows])


def _class_table(manifest: Manifest) -> str:
    counts = zip(manifest.class_counts("train"), manifest.class_counts("val"), strict=True)
    rows = [
        [f"{c.number} {c.name}", f"{int(train):,}", f"{int(val):,}"]
        for c, (train, val) in zip(manifest.legend.classes, counts, strict=True)
    ]
    return columns([["class", "training px", "validation px"], *rows])


def _channel_table(manifest: Manifest) -> str:
    coverage = manifest.provenance["coverage"]
    patched, invalid = coverage["patched"], coverage["invalid"]
    rows = [[name, _percent(patched.get(name, 0)), _percent(share)] for name, share in invalid.items()]
    rows.append(["all", "", _percent(1 - coverage["valid"])])
    return columns([["channel", "patched", "invalid"], *rows])


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


if __name__ == "__main__":
    raise SystemExit(main())
