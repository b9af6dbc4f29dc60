"""Export of maps and weights to the formats of other programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rasterio

from lulc.config import EXPORT_ENDINGS, STYLE_ENDINGS, ExportConfig, ExportModelConfig
from lulc.core.claims import Claims, check_distinct, claim_outputs
from lulc.core.documents import write_document
from lulc.core.machine import GDAL_CACHE
from lulc.core.schema import IGNORE, InputError
from lulc.core.storage import check_absent, check_disk
from lulc.core.windows import Window
from lulc.export import styles
from lulc.export.cf import write_netcdf, write_zarr
from lulc.export.hub import write_repository
from lulc.export.onnx_graph import write_onnx
from lulc.export.stac import MISSION, Item, known_dates, map_item, model_item, parse_dates
from lulc.labels.levels import Level, levels_of
from lulc.labels.schemes import load_scheme
from lulc.labels.value_tables import LEGEND_TAG, TAG_PREFIX
from lulc.maps.blocks import ENCODINGS, Encoding
from lulc.maps.geotiff import MapProfile
from lulc.maps.reader import ClassMap, open_map
from lulc.maps.writer import PART, write_map
from lulc.models.card import ModelCard, check_classifies, load_card
from lulc.models.weights import CARDED, find_model, read_arrays

LEVEL_TAG = "LULC_LEVEL"
"""Tag with the level of a map that `write_level` wrote."""


def export_map(config: ExportConfig) -> tuple[Path, ...]:
    """Write a map in the formats of other programs; return the files.

    Raises
    ------
    InputError
        If the map or an option doesn't fit, or an output exists; then nothing is written.
    """
    source = Path(config.map)
    outputs = [Path(out) for out in config.out]
    if not outputs and config.level is None:
        outputs = _styles_of(source)
    elif not outputs:
        outputs = [source.with_name(f"{source.stem}_level{config.level}.tif")]
    kinds = [_kind_of(out) for out in outputs]
    _check_level(config.level, outputs, kinds)
    model = find_model(config.model) if config.model is not None else None
    items = [out.parent / _item_name(model) for out, kind in zip(outputs, kinds, strict=True)
             if model is not None and kind == ".json"]  # fmt: skip
    styled = [style for out in outputs if config.level is not None for style in _styles_of(out)]
    written = [*outputs, *styled, *items]
    check_distinct([*outputs, *styled])
    with claim_outputs(written, config) as claims:
        _check_outputs(written, source, claims, overwrite=config.overwrite)
        _write_all(config, outputs, kinds, model)
    return tuple(written)


def _write_all(
    config: ExportConfig, outputs: Sequence[Path], kinds: Sequence[str], model: Path | None
) -> None:
    source = Path(config.map)
    legend = load_scheme(config.scheme).legend if config.scheme is not None else None
    cache = rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE)
    with cache, open_map(source, legend, allow_vrt=config.allow_vrt) as land_cover:
        dates = config.date or known_dates(land_cover.tags)
        if ".json" in kinds:
            _check_dates(dates, source)
        counted = set(kinds) & {".qml", ".sld", ".aux.xml", ".json"}
        entries = styles.count_entries(land_cover) if counted else ()
        for out, kind in zip(outputs, kinds, strict=True):
            if kind in STYLE_ENDINGS:
                _write_style(out, kind, source, entries)
            elif kind == ".json":
                _write_item(out, source, land_cover, entries, dates, model)
            else:
                _write_pixels(out, kind, source, land_cover, config.level)
        for out in outputs if config.level is not None else ():
            with open_map(out) as grouped:
                entries = styles.count_entries(grouped)
            for style, kind in zip(_styles_of(out), STYLE_ENDINGS, strict=True):
                _write_style(style, kind, out, entries)


def export_model(config: ExportModelConfig) -> tuple[Path, ...]:
    """Write the STAC items of weights, or their networks as ONNX files.

    Raises
    ------
    InputError
        If the weights have no card, an option doesn't fit the format, or an output exists; then nothing is
        written.
    """
    if config.hub is not None:
        folder = Path(config.hub)
        with claim_outputs([folder], config) as claims:
            replace = config.overwrite or claims.may_replace(folder)
            model = find_model(config.model, config.pick)
            return write_repository(model, folder, config.date or MISSION, overwrite=replace)
    kind = _model_format(config)
    folder = Path(config.model)
    if config.pick == "all" and folder.is_dir():
        paths = sorted(folder.glob("*.keras"))
    else:
        paths = [find_model(config.model, "auto" if config.pick == "all" else config.pick)]
    if not paths or (config.out is not None and len(paths) > 1):
        raise InputError(
            f"cannot export '{folder}', since it holds {len(paths)} weights files, expected "
            + ("some" if not paths else "one where an output is named"),
            "Give a run folder or weights file; leave --out out for several.",
        )
    names = [p.with_suffix(".onnx") if kind == "onnx" else p.with_name(_item_name(p)) for p in paths]
    outputs = [Path(config.out)] if config.out else names
    with claim_outputs(outputs, config) as claims:
        for path, out in zip(paths, outputs, strict=True):
            _check_outputs([out], path, claims, overwrite=config.overwrite)
        if kind == "onnx":
            for path, out in zip(paths, outputs, strict=True):
                card = _card_of(path)
                write_onnx(card, read_arrays(path, card), out, config.tile)
            return tuple(outputs)
        dates = config.date or MISSION
        items = [_describe(path, out.parent, dates) for path, out in zip(paths, outputs, strict=True)]
        for out, item in zip(outputs, items, strict=True):
            write_document(out, item)
    return tuple(outputs)


def _model_format(config: ExportModelConfig) -> str:
    """Return the format of an export from ``--format`` or the suffix; refuse options of the other format."""
    ending = "onnx" if config.out and config.out.lower().endswith(".onnx") else "stac"
    kind = config.format or ending
    if config.out and kind != ending:
        fitting = Path(config.out).with_suffix(".onnx" if kind == "onnx" else ".json")
        raise InputError(
            f"cannot write '{config.out}' in the format {kind}, since its ending stands for {ending}",
            f"Leave --format out, or type --out {fitting}.",
        )
    name, value = ("--date", config.date) if kind == "onnx" else ("--tile", config.tile)
    if value:
        raise InputError(
            f"cannot write the format {kind} with {name}, since that belongs to the other format",
            f"Leave {name} out, or type --format {'stac' if kind == 'onnx' else 'onnx'}.",
        )
    return kind


def _styles_of(land_cover: Path) -> list[Path]:
    """Return the paths where programs look for styles, in the order of `STYLE_ENDINGS`."""
    return [land_cover.with_suffix(".qml"), land_cover.with_suffix(".sld"), Path(f"{land_cover}.aux.xml")]


def _write_style(out: Path, kind: str, source: Path, entries: Sequence[styles.Entry]) -> None:
    texts = {
        ".qml": lambda: styles.qml(entries),
        ".sld": lambda: styles.sld(entries, source.stem),
        ".aux.xml": lambda: styles.attribute_table(entries),
    }
    styles.write_text(out, texts[kind]())


def _check_level(level: str | None, outputs: Sequence[Path], kinds: Sequence[str]) -> None:
    """Refuse a level in other formats than GeoTIFF, and GeoTIFF without a level."""
    pairs = zip(outputs, kinds, strict=True)
    other = next((out for out, kind in pairs if (kind == ".tif") == (level is None)), None)
    if other is None:
        return
    if level is None:
        raise InputError(
            f"cannot write '{other}', since the map is a GeoTIFF already, expected --level beside it",
            "Type --level 1 or --level 2 for its CORINE groups, or copy the file.",
        )
    raise InputError(
        f"cannot write '{other}' at level {level}, expected an output in .tif",
        f"Write the level first: --level {level} --out {other.with_suffix('.tif')}; then export that map.",
    )


def _kind_of(out: Path) -> str:
    return next(kind for kind in EXPORT_ENDINGS if out.name.lower().endswith(kind))


def _item_name(model: Path) -> str:
    return f"{model.stem}.stac.json"


def _check_outputs(outputs: Sequence[Path], source: Path, claims: Claims, *, overwrite: bool) -> None:
    for out in outputs:
        if out.resolve() == source.resolve():
            raise InputError(f"cannot write '{out}', since it is the input", "Give another output.")
        replaceable = overwrite or styles.is_own(out) or claims.may_replace(out)
        if not replaceable:
            check_absent(out)


def _check_dates(dates: Sequence[str], source: Path) -> None:
    if not dates:
        raise InputError(
            f"cannot describe '{source}' as a STAC item, since the names of its inputs hold no dates, "
            "expected --date",
            "Type --date 2018-07-01, or --date 2018-06-01 2018-08-31.",
        )
    parse_dates(dates)


def _write_item(
    out: Path, source: Path, land_cover: ClassMap, entries: Sequence[styles.Entry], dates: Sequence[str],
    model: Path | None,
) -> None:  # fmt: skip
    link = None
    if model is not None:
        item = _describe(model, out.parent, MISSION)
        made_with = land_cover.tags.get("LULC_MODEL_SHA256")
        if load_card(model).sha256 != made_with:
            raise InputError(
                f"cannot link '{source}' to the weights '{model}', since it was made with others "
                f"({land_cover.tags.get('LULC_MODEL', 'unknown')}, sha256 {made_with})",
                "Give the weights of this map, or leave --model out.",
            )
        write_document(out.parent / _item_name(model), item)
        link = (f"./{_item_name(model)}", item)
    write_document(out, map_item(source, out.parent, land_cover, entries, dates, link))


def _describe(model: Path, folder: Path, dates: Sequence[str]) -> Item:
    parse_dates(dates)
    return model_item(model, folder, _card_of(model, CARDED), dates)


def _card_of(model: Path, endings: Sequence[str] = (".keras",)) -> ModelCard:
    if model.suffix not in endings:
        raise InputError(
            f"cannot export the weights '{model}', expected a network of this toolkit with its card, .keras",
            "Give weights that train_model.py wrote. Small models of few labels are no network: train one "
            "with --recipe default.",
        )
    card = load_card(model)
    check_classifies(card)
    return card


def write_level(land_cover: ClassMap, number: int, out: Path) -> None:
    """Aggregate a map to a CORINE level and write it as a map, completely or not at all.

    Activations are summed and stored like those of `land_cover`; further bands are left out.

    Raises
    ------
    InputError
        If the legend of the map has no groups at that level.
    """
    level = next((known for known in levels_of(land_cover.legend) if known.number == number), None)
    if level is None:
        raise InputError(
            f"cannot group the classes of '{land_cover.name}' at CORINE level {number}, since its legend "
            f"'{land_cover.legend.name}' has no groups of that level",
            "Level 1 takes classes with level-1 groups, level 2 those of a built-in scheme.",
        )
    profile = _level_profile(land_cover, level)
    write_map(profile, lambda window: _aggregate(land_cover, level, window, profile.encoding), out)


def _level_profile(land_cover: ClassMap, level: Level) -> MapProfile:
    stored = land_cover.layers[1].dtype if land_cover.has_activations else None
    kinds = (kind for kind, known in ENCODINGS.items() if known.has_activations and known.dtype == stored)
    tags = {name: value for name, value in land_cover.tags.items() if name.startswith(TAG_PREFIX)}
    tags[LEGEND_TAG] = json.dumps(level.legend.to_json(), ensure_ascii=False, sort_keys=True)
    tags[LEVEL_TAG] = str(level.number)
    return MapProfile(land_cover.grid, level.legend, next(kinds, "none"), PART, tags)


def _aggregate(land_cover: ClassMap, level: Level, window: Window, encoding: Encoding) -> np.ndarray:
    """Return the encoded values of a window: groups, and sums of activations."""
    classes, sums = land_cover.read(window), np.zeros((*window.shape, 0), np.float32)
    activations = land_cover.read_activations(window) if land_cover.has_activations else None
    if activations is not None and encoding.has_activations:
        sums = np.nan_to_num(level.gather_activations(activations))
    groups = level.gather(classes, activations)
    return encoding.apply(groups, sums, groups != IGNORE)


def _write_pixels(out: Path, kind: str, source: Path, land_cover: ClassMap, level: str | None) -> None:
    # Deflated and Zstandard pixels of a map are about as large as the map.
    check_disk(out.parent, int(1.5 * source.stat().st_size), f"'{out}'")
    if level is not None:
        write_level(land_cover, int(level), out)
    elif kind == ".nc":
        write_netcdf(land_cover, out)
    else:
        write_zarr(land_cover, out)
