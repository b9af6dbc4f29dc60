"""Classification of arrays in memory, without a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lulc.config import ClassifyConfig
from lulc.core.grid import GridSpec
from lulc.core.schema import IGNORE, UNCLASSIFIED, Legend
from lulc.inference.job import no_valid_pixel, open_job
from lulc.maps.reader import REST
from lulc.rasters.layers import Source


class ClassifiedArray(NamedTuple):
    """A map in memory.

    Parameters
    ----------
    grid, legend
        Pixels and classes.
    classes : uint8 (y, x)
        1..N, 0 unclassified, 255 no data.
    probabilities : float32 (class, y, x)
        Calibrated, NaN = no data.
    extra
        Measures of certainty by name, float32 (y, x).
    tags
        Metadata that the file of the map would have.
    """

    grid: GridSpec
    legend: Legend
    classes: NDArray[np.uint8]
    probabilities: NDArray[np.float32]
    extra: Mapping[str, NDArray[np.float32]]
    tags: Mapping[str, str]

    @property
    def has_activations(self) -> bool:
        """True, as there always are probabilities."""
        return True


def classify_source(config: ClassifyConfig, source: Source) -> ClassifiedArray:
    """Classify an open raster with the windows, engine and calibration of `classify`.

    Parameters
    ----------
    config
        Options; what concerns the file of the map is not used.
    source
        Bands, and indices or none; closed afterwards.

    Raises
    ------
    InputError
        If model or raster are refused or don't fit together, or no pixel is valid.
    """
    config = dataclasses.replace(config, activations="float32")
    with open_job(config, sources=[source]) as job:
        engine = job.build_engine()
        legend, shape = job.profile.legend, job.stack.grid.shape
        values = np.full((1 + len(legend) + len(config.extra), *shape), np.nan, np.float32)
        for prediction in job.predictions(job.network(engine), list(job.plan.parts())):
            encoded, _ = job.encode(prediction)
            if encoded is not None:
                rows, cols = prediction.window.write.slices
                values[:, rows, cols] = np.where(encoded == job.profile.encoding.nodata, np.nan, encoded)
        grid, tags = job.stack.grid, job.tags(engine)
    valid = ~np.isnan(values[0])
    if not valid.any():
        raise no_valid_pixel()
    classes = np.where(valid, values[0], IGNORE).astype(np.uint8)
    probabilities, extra = np.split(values[1:], [len(legend)])
    if len(legend) == 1:
        # As maps are read: the rest is a class of its own.
        classes[classes == UNCLASSIFIED] = REST.number
        probabilities = np.concatenate([probabilities, 1 - probabilities])
        legend = Legend(legend.name, (*legend.classes, REST))
    return ClassifiedArray(
        grid, legend, classes, probabilities, dict(zip(config.extra, extra, strict=True)), tags
    )
