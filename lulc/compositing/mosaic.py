"""From a region and dates to a mosaic: search, composition part by part with a journal, output."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from tqdm import tqdm

from lulc.compositing import periods
from lulc.compositing.catalog import NothingFoundError, find
from lulc.compositing.composer import Composer, Gap, Job, Made, Site, make_part, part_path
from lulc.compositing.labels import check_product, find_labels, labels_path, write_labels
from lulc.compositing.observation import Observation, lay_out, ranked
from lulc.compositing.output import finished_clear, write_mosaic
from lulc.compositing.region import grid_of
from lulc.compositing.scene_list import is_list, list_path, write_list
from lulc.config import MosaicConfig
from lulc.core.claims import Claims, claim_outputs
from lulc.core.documents import seal_of
from lulc.core.grid import GridSpec
from lulc.core.schema import SENTINEL_BANDS, InputError
from lulc.core.storage import check_absent, check_disk, sha256_of
from lulc.core.windows import Part
from lulc.distributed.cluster import Cluster, open_cluster, run_tasks
from lulc.inference.journal import Journal, document_of, folder_of, open_journal, read_key
from lulc.rasters.names import canonical_name

logger = logging.getLogger("lulc")


@dataclass(frozen=True)
class Mosaic:
    """A finished mosaic; `clear` are its pixels by number of clear observations."""

    path: Path
    scenes: Path
    days: tuple[datetime.date, ...]
    clear: dict[int, int]

    @property
    def covered(self) -> float:
        """Fraction of the pixels with an observation."""
        total = sum(self.clear.values())
        return 1 - self.clear.get(0, 0) / total if total else 0.0

    @property
    def mean_clear(self) -> float:
        """Mean number of clear observations of a pixel."""
        return sum(n * pixels for n, pixels in self.clear.items()) / max(1, sum(self.clear.values()))


def open_jobs(config: MosaicConfig, lists: Path | None = None) -> list[Job]:
    """Find the scenes of each period and lay them on the grid.

    The list of the scenes is written into the folder `lists`, by default beside the mosaic.

    Raises
    ------
    InputError
        If options don't fit, no scene is found, or one can't be read.
    """
    config, grid = _with_bands(config), grid_of(config)
    region = shapely.segmentize(grid.outline_in_degrees(), 0.5)
    jobs, empty = [], None
    for out, span in _outputs(config):
        try:
            jobs.append(_job(config, out, (lists or out.parent) / list_path(out).name, grid, region, span))
        except NothingFoundError as error:
            if config.every == "all":
                raise
            empty = error
            logger.warning("no mosaic '%s': %s", out, error.problem)
    if empty is not None and not jobs:
        raise empty
    return jobs


def _with_bands(config: MosaicConfig) -> MosaicConfig:
    """Return the config with canonical band names; refuse unknown and repeated bands."""
    names = tuple(canonical_name(name) or name for name in config.band_names)
    if not names or len({*names}) < len(names) or not {*names} <= {*SENTINEL_BANDS}:
        raise InputError(
            f"cannot make a mosaic of the bands {' '.join(config.band_names)}, expected different ones among "
            f"{' '.join(SENTINEL_BANDS)}",
            "Type --band-names B02 B03 B04 B08; indices are computed by preprocess.py.",
        )
    return dataclasses.replace(config, band_names=names)


def _outputs(config: MosaicConfig) -> Iterator[tuple[Path, periods.Span]]:
    """Yield the output and the days of each period."""
    out = Path(config.out)
    for name, span in periods.split(periods.parse(config.dates), config.every):
        yield (out.with_name(f"{out.stem}_{name}{out.suffix}") if name else out), span


def _job(
    config: MosaicConfig, out: Path, listed: Path, grid: GridSpec, region: shapely.Geometry,
    span: periods.Span,
) -> Job:  # fmt: skip
    found = find(config, region, span)
    spans = {name: periods.span_of(name, span) for name in config.fill_from}
    filling = {name: find(config, region, days) for name, days in spans.items() if days}
    scenes = {scene.id: scene for scene in (*found, *(s for own in filling.values() for s in own))}
    write_list(listed, list(scenes.values()))
    gaps = []
    with _bar(len(scenes), "scene", "scenes") as bar:
        observations = lay_out(found, grid, config, listed, bar.update)
        for name, days in spans.items():
            laid_out = lay_out(filling.get(name, ()), grid, config, listed, bar.update)
            gaps.append(Gap(name, tuple(ranked(laid_out, config.rule, None)), None if days else name))
    if not observations:
        raise NothingFoundError(
            f"cannot make '{out}', since none of the {len(found)} scenes has a pixel of the region",
            "Check the region; footprints of scenes may be larger than their pixels.",
        )
    read = [*observations, *(one for gap in gaps for one in gap.observations)]
    write_list(listed, list(scenes.values()), {k: v for one in read for k, v in one.offsets.items()})
    _warn_of_unmasked(read)
    near = periods.day(config.near) if config.near else None
    return Job(config, out, grid, tuple(ranked(observations, config.rule, near)), tuple(gaps))


def _warn_of_unmasked(observations: Sequence[Observation]) -> None:
    """Warn of scenes without a cloud mask."""
    pairs = [pair for one in observations for pair in zip(one.names, one.scenes, strict=True)]
    names = list(dict.fromkeys(name for name, scene in pairs if scene.left_out is None))
    if names:
        more = f" and {len(names) - 3} more" * (len(names) > 3)
        logger.warning(
            "scenes without a scene classification: %s%s; their clouds count as clear without --masks or "
            "--cloud-probability",
            ", ".join(names[:3]), more,
        )  # fmt: skip


def make_mosaic(config: MosaicConfig) -> list[Mosaic]:
    """Make the mosaic of each period, in the order of time; the same call continues an interrupted run.

    Raises
    ------
    InputError
        If options don't fit, no scene is found, one can't be read, or an output exists already.
    """
    if config.labels:
        check_product(config.labels)
    mosaics, claims = [], {}
    with contextlib.ExitStack() as stack:
        for out, _ in _outputs(config):
            claims[out] = stack.enter_context(contextlib.ExitStack())
            claimed = claims[out].enter_context(claim_outputs(_files(config, out), config))
            _check_outputs(config, out, claimed)
        jobs = open_jobs(config)
        cluster = stack.enter_context(open_cluster(config)) if config.dask else None
        for job in jobs:
            # A finished period keeps its outputs when a later one fails.
            with claims[job.out].pop_all():
                mosaics.append(_make(job, cluster))
    return mosaics


def _files(config: MosaicConfig, out: Path) -> list[Path]:
    files = [out, out.with_suffix(".json"), list_path(out)]
    return [*files, labels_path(out)] if config.labels else files


def _check_outputs(config: MosaicConfig, out: Path, claims: Claims) -> None:
    """Refuse before the search outputs that could not be written after it."""
    if config.overwrite or read_key(folder_of(out)) or (config.every != "all" and finished_clear(out)):
        return  # `_make` continues an interrupted run
    for file in _files(config, out):
        # An interrupted run may have left its list of scenes.
        if not (claims.may_replace(file) or (file == list_path(out) and is_list(file))):
            check_absent(file)


def _make(job: Job, cluster: Cluster | None) -> Mosaic:
    size = job.grid.height * job.grid.width * (len(job.config.band_names) + 1) * 2
    days = tuple(sorted({one.day for one in job.observations}))
    seal = seal_of(document_of(job.key))
    if not job.config.overwrite and (clear := finished_clear(job.out, seal)):
        return Mosaic(job.out, list_path(job.out), days, clear)
    labels = find_labels(job.config.labels, job.grid, days[0].year) if job.config.labels else []
    with open_journal(job.out, claimed=True) as journal:
        if not journal.is_begun and not job.config.overwrite:
            check_absent(job.out)
        journal.begin(job.key, restart=job.config.restart)
        check_disk(job.out.parent, 2 * size - journal.bytes, "the mosaic")
        _make_parts(job, journal, cluster)

        def pixels(part: Part) -> np.ndarray:
            stored = np.fromfile(part_path(journal.folder, part.index), "int16")
            return stored.reshape(-1, *part.extent.shape)

        if job.config.labels:
            write_labels(job.config.labels[0], labels, job.grid, labels_path(job.out))
        clear = journal.counts
        write_mosaic(job, pixels, clear, seal)
        journal.remove()
    return Mosaic(job.out, list_path(job.out), days, clear)


def _make_parts(job: Job, journal: Journal, cluster: Cluster | None) -> None:
    plan = job.plan

    def checksum(number: int) -> str:
        path = part_path(journal.folder, number)
        return sha256_of(path) if path.is_file() else ""

    finished = journal.finished(range(len(plan)), checksum)
    missing = [number for number in range(len(plan)) if number not in finished]
    with contextlib.ExitStack() as stack:
        made: Iterator[Made]
        if cluster is None:
            composer = stack.enter_context(closing(Composer(job, journal.folder)))
            made = (make_part(composer, number) for number in missing)
        else:
            workers = len(cluster.cores) or 1
            site = Site(job.anywhere(job.config.memory / workers), journal.folder.absolute())
            made = run_tasks(cluster, make_part, missing, site=site, what="part {}".format)
        bar = stack.enter_context(_bar(job.grid.height * job.grid.width, "px", "mosaic"))
        bar.update(sum(map(plan.pixels_of, finished)))
        for part in made:
            journal.record(*part)
            bar.update(plan.pixels_of(part.number))


def _bar(total: int, unit: str, name: str) -> Any:
    quiet = not logger.isEnabledFor(logging.INFO)
    return tqdm(total=total, unit=unit, unit_scale=unit == "px", desc=name, disable=quiet)
