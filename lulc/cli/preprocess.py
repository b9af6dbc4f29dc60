"""Cut Sentinel-2 bands, spectral indices and labels into .npy stacks for training and validation.

The result is a folder of stacks. train_image_0.npy is float32, rows x columns x channels: reflectance x 10000
and index codes, NaN in all channels of an invalid pixel. train_masks_0.npy is uint8: class numbers, 255 =
ignore. val_image_0.npy and val_masks_0.npy are for validation. manifest.json describes the stacks and is
written last. The same command continues an interrupted run.

Example: python preprocess.py --bands demo/summer.tif --fill demo/spring.tif --indices demo/indices.tif
--labels demo/labels.tif --scheme kaakonkulma-13 --size 256 --out demo/stacks
"""

from __future__ import annotations

import shlex
from functools import partial
from typing import TYPE_CHECKING, Any

from lulc.cli.commandline import Answer, run
from lulc.config import PreprocessConfig
from lulc.core.text import columns, visible

if TYPE_CHECKING:
    from lulc.datasets.manifest import Manifest

SHOWN = 3  # printed codes with their classes


def _prepare(config: PreprocessConfig) -> Answer:
    from lulc.preprocessing.preprocess import make_stacks

    manifest = make_stacks(config)
    following = f"python train_model.py {_folders(config, manifest)} --out runs/first"
    tables = "\n\n".join(
        (_stack_table(manifest), _class_table(manifest), _channel_table(manifest), _readings(manifest))
    )
    text = f"{tables}\n\nThe stacks and their manifest are in {config.out}. Next:\n\n    {following}"
    return Answer(text, _data(manifest))


def _folders(config: PreprocessConfig, manifest: Manifest) -> str:
    """Return the folders of the next training; DATA and FOLDER stand for other folders."""
    out = shlex.quote(config.out)
    if not manifest.of("train"):
        return f"DATA --validation-data {out}"
    return out if manifest.of("val") else f"{out} --validation-data FOLDER"


def _data(manifest: Manifest) -> dict[str, Any]:
    """Return stacks, class counts and fractions of patched and invalid pixels, JSON-ready."""
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


def _readings(manifest: Manifest) -> str:
    """Describe the scheme of the labels, and the source of the indices."""
    from lulc.core.schema import INDICES
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
    has_indices = any(channel["name"] in INDICES for channel in manifest.channels)
    lines = [
        f"labels: {origin} ({shown})",
        *(f"labels: {words}" for words in losses),
        *_labelled(manifest),
        *([f"indices: {'; '.join(origins)}"] if has_indices else []),
    ]
    return "\n".join(map(visible, lines))


def _labelled(manifest: Manifest) -> list[str]:
    """Describe the labelled pixels in use, and the reasons for the others; empty for older manifests."""
    pixels = manifest.provenance.get("labelled")
    if not pixels:
        return []
    reasons = (
        ("hidden", "within --gap or --border-ignore"),
        ("not_cut", "outside the stacks that --stacks or --gap allows"),
    )
    used = pixels["training"] + pixels["validation"]
    unused = ", ".join(f"{pixels[name]:,} {words}" for name, words in reasons if pixels[name])
    lines = [
        f"labels: {pixels['given']:,} px on valid pixels, {100 * used / max(1, pixels['given']):.1f} % used: "
        f"{pixels['training']:,} for training, {pixels['validation']:,} for validation"
        + (f"; not used: {unused}" if unused else "")
    ]
    if "groups" in pixels:
        near = pixels["distance"]
        joined = {0: "touch and have one class", 1: "touch"}.get(near, f"lie within {near} px of each other")
        lines.append(
            f"split by patches: {pixels['groups']['training']:,} groups train and "
            f"{pixels['groups']['validation']:,} validate; patches that {joined} are one group"
        )
        if near == 0:
            lines.append(
                "training labels may touch validation labels, so that scores may be too good: validate on "
                "another scene (train_model.py --validation-data) or choose a smaller --size"
            )
    return lines


def _computed(manifest: Manifest) -> list[str]:
    return [str(c["name"]) for c in manifest.channels if c["coding"] == "computed"]


def _stack_table(manifest: Manifest) -> str:
    rows = [["stack", "number", "pixels", "labelled"]]
    for stack in manifest.stacks:
        height, width = stack.shape[:2]
        labelled = _percent(sum(stack.class_counts) / (height * width))
        number = "" if stack.number is None else str(stack.number)
        rows.append([stack.name, number, f"{height} x {width}", labelled])
    return columns(rows)


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


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"


main = partial(run, PreprocessConfig, __doc__ or "", _prepare)

if __name__ == "__main__":
    raise SystemExit(main())
