"""Checks of the options of a classification: share, dates, and files that it may write or replace."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from contextlib import closing
from pathlib import Path

from lulc.config import ClassifyConfig
from lulc.core.channels import name_of, split_prefix
from lulc.core.claims import claim_outputs
from lulc.core.removal import remove_leftovers
from lulc.core.schema import InputError
from lulc.core.storage import check_absent
from lulc.export.stac import known_dates, parse_dates
from lulc.export.styles import style_paths
from lulc.inference.journal import claimed_by, folder_of, open_journal
from lulc.inference.outputs import check_tiles, is_named, is_tileset
from lulc.rasters.sources import Stamp, open_source

logger = logging.getLogger("lulc")


def share_of(text: str) -> tuple[int, int]:
    """Parse ``I/N``, with I from 1 to N."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(
            f"cannot make the share '{text}', expected I/N with I from 1 to N",
            "Type for example --share 1/8; in an array of SLURM from 1 to N "
            '--share "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT".',
        )
    return int(match[1]), int(match[2])


def dates_of(config: ClassifyConfig) -> tuple[str, ...]:
    """Return the dates of the imagery for ``--tiles``, else none."""
    if not config.tiles:
        return ()
    names = {name: [name_of(p) for p in getattr(config, name)] for name in ("inputs", "layers", "fill")}
    dates = config.date or known_dates({"LULC_PARAMETERS": json.dumps(names)})
    if not dates:
        raise InputError(
            "cannot describe the tiles as a STAC collection, since the names of the inputs hold no dates, "
            "expected --date",
            "Type --date 2018-07-01, or --date 2018-06-01 2018-08-31.",
        )
    parse_dates(dates)
    return dates


def sieved_path(out: Path) -> Path:
    """Return the path of the sieved map of `out`: ``OUT_sieved.tif``."""
    return out.with_name(f"{out.stem}_sieved{out.suffix}")


def further_of(config: ClassifyConfig) -> tuple[Path, ...]:
    """Return the files derived from the map: sieved map, polygons."""
    sieved = [sieved_path(Path(config.out))] if config.sieve else []
    return (*sieved, *([Path(config.polygons)] if config.polygons else []))


def beside_of(config: ClassifyConfig) -> tuple[Path, ...]:
    """Return the files that a run writes beside the map: derived files and styles."""
    out = Path(config.out)
    rasters = [] if config.tiles else [out, sieved_path(out)] if config.sieve else [out]
    return (*further_of(config), *(style for raster in rasters for style in style_paths(raster)))


def check_outputs(config: ClassifyConfig, stamps: list[Stamp]) -> None:
    """Refuse, before any work, to write over inputs, folders and files that may not be replaced."""
    out = Path(config.out)
    single = (config.model, config.like, config.aoi, config.statistics)
    several = (*config.inputs, *config.layers, *config.fill, *config.mask, *config.ensemble)
    named = {Path(split_prefix(name)[1]).resolve() for name in (*several, *filter(None, single))}
    inputs = named | {Path(stamp.path).resolve() for stamp in stamps}
    claimed = claimed_by(out)
    for target in (out, *further_of(config)):
        folder = target.is_dir() and not config.tiles
        if target.resolve() in inputs or folder:
            raise InputError(
                f"cannot write '{target}', since it is {'a folder' if folder else 'an input'}",
                "Give another output: the last argument names the map.",
            )
        if target.exists() and str(target.resolve()) not in claimed:
            _check_replaceable(target, config)


def _check_replaceable(target: Path, config: ClassifyConfig) -> None:
    """Refuse to replace a file that is no map of this toolkit, and any file without ``--overwrite``."""
    polygons = config.polygons is not None and target == Path(config.polygons)
    if not polygons and not _is_map(target):
        raise InputError(
            f"cannot write '{target}', since it exists already and is not a map of this toolkit, "
            "expected a new name",
            f"The last argument names the map: type a new name there, or move '{target}' away.",
        )
    if not config.overwrite:
        _tidy(config)
        check_absent(target)
    if target.is_dir():
        check_tiles(target)


def _tidy(config: ClassifyConfig) -> None:
    """Remove parts, temporary files and locks of a run that was killed after the map was named."""
    out = Path(config.out)
    with contextlib.suppress(InputError, OSError), claim_outputs((out, *beside_of(config))):
        remove_leftovers(out.parent, folder_of(out).name)
    if not is_named(out):
        return
    # Another process may hold the journal.
    with contextlib.suppress(InputError), open_journal(out) as journal:
        if is_named(out):
            journal.remove()
            logger.info("removed '%s', which a killed run left: the map is finished", journal.folder)


def _is_map(path: Path) -> bool:
    """Return True if a file or a folder of tiles is a whole map that a classification wrote."""
    if path.is_dir():
        return is_tileset(path)
    try:
        with closing(open_source(path)) as source:
            return "LULC_VERSION" in source.tags
    except InputError:
        return False
