"""Simulated scenes: a Sentinel-2 mosaic of summer and of spring, indices, and labels with errors.

Nothing here was measured. Scenes are for demonstrations, tests and benchmarks. They have known amounts of
what makes real scenes difficult: similar forest classes, mixed pixels at borders, 20 m bands, cloud gaps and
wrong labels.

Each land-cover class is a mixture of materials such as conifer crowns, grass, bare soil, roofs and water.
Each material has a reflectance spectrum in summer and in spring. Each patch of ground has its own mixture,
from which the variation within a class and between the seasons follows.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from scipy import ndimage

from lulc.core.grid import GridSpec
from lulc.core.schema import BANDS, INDICES, SIMULATED_TAG, InputError
from lulc.core.storage import write_atomically
from lulc.rasters.indices import compute_indices

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

CLASSES = 13
"""Classes of a simulated scene, those of the scheme kaakonkulma-13."""

PRODUCT = "S2A_MSIL2A_20180701T095031_N0500_R079_T35VNG_20180701T124512"
"""Name of the simulated product."""

_SHARES = (0.06, 0.03, 0.03, 0.05, 0.16, 0.06, 0.20, 0.12, 0.12, 0.08, 0.03, 0.0, 0.10)
"""Area fraction of each class in a random class map; class 12 grows along the shores of class 13."""

_SIZES = (180, 150, 140, 160, 320, 200, 420, 350, 330, 200, 180, 1, 480)
"""Typical diameter of an area of each class, in metres."""

# Surface reflectance x 10000 of the materials in the nine bands, in summer and in late April: round numbers
# similar to spectral libraries and cloud-free scenes of southern Finland.
# fmt: off
_SPECTRA = {
    "birch": ((220, 480, 250, 850, 2700, 3500, 3700, 1600, 700),
              (340, 460, 520, 780, 1250, 1400, 1500, 1900, 1150)),
    "pine": ((220, 370, 260, 600, 1500, 1850, 1950, 1050, 520),
             (230, 360, 270, 580, 1350, 1650, 1750, 1050, 540)),
    "spruce": ((180, 300, 190, 480, 1350, 1700, 1800, 800, 370),
               (185, 295, 195, 470, 1230, 1550, 1650, 800, 390)),
    "shrub": ((300, 520, 430, 900, 2000, 2400, 2500, 1900, 1050),
              (390, 540, 620, 900, 1350, 1500, 1600, 2200, 1450)),
    "crop": ((300, 600, 400, 950, 2900, 3700, 3900, 1800, 850),
             (520, 720, 900, 1150, 1500, 1650, 1800, 2500, 1950)),
    "soil": ((600, 800, 1000, 1250, 1500, 1650, 1800, 2600, 2100),
             (580, 760, 960, 1200, 1430, 1560, 1700, 2350, 1900)),
    "grass": ((330, 650, 450, 1050, 2600, 3200, 3400, 2000, 1000),
              (480, 690, 740, 1100, 1700, 1900, 2050, 2450, 1700)),
    "gravel": ((1000, 1200, 1400, 1500, 1600, 1700, 1800, 2300, 2000),
               (960, 1150, 1340, 1440, 1540, 1630, 1720, 2150, 1880)),
    "roof": ((1000, 1050, 1100, 1150, 1250, 1300, 1400, 1500, 1400),
             (980, 1030, 1080, 1130, 1210, 1260, 1350, 1450, 1360)),
    "mire": ((350, 600, 550, 950, 1700, 1950, 2050, 1600, 850),
             (400, 600, 680, 920, 1300, 1450, 1550, 1700, 1050)),
    "reed": ((280, 480, 380, 750, 1500, 1750, 1800, 900, 450),
             (420, 560, 640, 800, 980, 1080, 1150, 1300, 850)),
    "water": ((200, 220, 130, 100, 70, 70, 50, 30, 20), (210, 230, 150, 120, 85, 85, 65, 35, 25)),
}
# fmt: on

_MIXTURES: tuple[dict[str, float], ...] = (
    {"roof": 0.28, "grass": 0.34, "birch": 0.20, "pine": 0.18},
    {"roof": 0.66, "gravel": 0.16, "grass": 0.18},
    {"gravel": 0.62, "soil": 0.20, "shrub": 0.10, "mire": 0.08},
    {"grass": 0.68, "shrub": 0.20, "crop": 0.12},
    {"crop": 0.62, "soil": 0.30, "grass": 0.08},
    {"birch": 0.70, "spruce": 0.15, "shrub": 0.15},
    {"pine": 0.72, "spruce": 0.12, "birch": 0.08, "mire": 0.08},
    {"spruce": 0.70, "pine": 0.15, "birch": 0.15},
    {"birch": 0.34, "pine": 0.33, "spruce": 0.33},
    {"shrub": 0.62, "birch": 0.18, "grass": 0.12, "pine": 0.08},
    {"mire": 0.72, "reed": 0.16, "pine": 0.12},
    {"reed": 0.55, "water": 0.45},
    {"water": 1.0},
)
"""Mean mixtures of the materials in classes 1..13."""

_CONFUSED = ((2, 4), (1, 3), (2, 10), (5, 10), (4,), (9, 10), (9, 8), (9, 7), (7, 8, 6), (4, 9), (10, 7),
             (13, 11), (12,))  # fmt: skip
"""Classes that a wrong label of class 1..13 may have."""

_INDEX_NODATA = {"NDVI": 0, "NDTI": 0, "NDBI": 255, "NDMI": 0, "NDSI": 0}
"""No-data values of SYKE's index mosaics."""

_COARSE_BANDS = ("B05", "B06", "B07", "B11", "B12")
"""Bands that Sentinel-2 measures at 20 m."""


@dataclass(frozen=True)
class Scene:
    """A simulated scene on one 10 m grid.

    Parameters
    ----------
    summer, spring
        uint16 (y, x, band), reflectance x 10000, 0 = no data (clouds); bands as in `lulc.core.schema.BANDS`.
    indices
        uint8 (y, x, index), SYKE code, of a mix of other dates; no data 0, but 255 for NDBI.
    labels
        uint8 (y, x), classes 1..13, 0 = unlabelled; with errors where the class map is random.
    truth
        uint8 (y, x), the classes 1..13 that the spectra were drawn from.
    grid
        A grid in EPSG:3067.
    """

    summer: NDArray[np.uint16]
    spring: NDArray[np.uint16]
    indices: Bytes
    labels: Bytes
    truth: Bytes
    grid: GridSpec
    seed: int


def simulate(
    shape: tuple[int, int], seed: int, labels: Bytes | None = None, *, clouds: float = 0.02,
    wrong: float = 0.1,
) -> Scene:  # fmt: skip
    """Simulate a scene; equal arguments give equal scenes.

    Parameters
    ----------
    shape
        (rows, columns), at least 32 each.
    labels
        uint8 (y, x) of that shape, classes 1..13 and 0 = unlabelled. The ground truth is these labels with
        errors. By default the ground truth is a random class map, and the labels are that map with errors.
    clouds
        Fraction of pixels without data in each season.
    wrong
        Fraction of patches with a wrong class; borders are shifted as well.

    Raises
    ------
    InputError
        If the shape is too small, or labels have another shape or other classes.
    """
    _check(shape, labels)
    ground, parcels, errors, mixing, summer, spring, composite = np.random.default_rng(seed).spawn(7)
    patches = _patches(shape, parcels)
    if labels is None:
        truth = _class_map(shape, ground)
        drawn = _disturb(truth, patches, errors, wrong)
    else:
        drawn = labels.copy()
        truth = _disturb(_without_gaps(labels), patches, errors, wrong)
    mixtures = _mixtures_of_patches(int(patches.max()) + 1, mixing)
    images = [
        _reflectance(truth, patches, mixtures, season, rng) for season, rng in enumerate((summer, spring))
    ]
    grid = GridSpec(CRS.from_epsg(3067), Affine(10, 0, 566000, 0, -10, 6785000), *shape)
    return Scene(
        summer=_digitise(images[0], _clouds(shape, clouds, summer)),
        spring=_digitise(images[1], _clouds(shape, clouds, spring)),
        indices=_composite_indices(images[0], _clouds(shape, clouds / 8, composite), composite),
        labels=drawn,
        truth=truth,
        grid=grid,
        seed=seed,
    )


def write_scene(scene: Scene, folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Write a scene as GeoTIFFs: summer.tif, spring.tif, indices.tif, labels.tif.

    The no-data values of the indices are in the tags of their bands (``NODATA``), as in SYKE's mosaics. The
    tags of every file say that it is simulated.

    Returns
    -------
    dict
        Path of each file by name: summer, spring, indices, labels.
    """
    tags = [{"NODATA": str(_INDEX_NODATA[name]), "SCALE": "value/100-1"} for name in INDICES]
    contents: list[tuple[str, NDArray[np.generic], tuple[str, ...], int | None]] = [
        ("summer", scene.summer, BANDS, 0),
        ("spring", scene.spring, BANDS, 0),
        ("indices", scene.indices, INDICES, None),
        ("labels", scene.labels[..., np.newaxis], ("class",), 0),
    ]
    paths = {}
    for name, image, names, nodata in contents:
        paths[name] = Path(folder) / f"{name}.tif"
        with write_atomically(paths[name]) as temporary:
            write_raster(
                temporary, image, scene, names, "landscape", tags if name == "indices" else (), nodata=nodata,
                transform=scene.grid.transform, blockxsize=256, blockysize=256, predictor=2,
            )  # fmt: skip
    return paths


def write_product(scene: Scene, folder: str | os.PathLike[str], name: str = PRODUCT) -> Path:
    """Write the summer image as a level-2A product of Copernicus; return the ``.SAFE`` folder.

    Bands are lossless JPEG 2000 at Sentinel-2's resolutions, with the offset of processing baseline 04.00.
    Clouds are bright; only the scene classification marks them. Previews, quality masks and most of the
    metadata are left out.

    Parameters
    ----------
    scene
        Scene with even sides, so that 20 m bands cover it.
    name
        Name of the product: satellite_level_time_baseline_orbit_tile_time.
    """
    if scene.grid.height % 2 or scene.grid.width % 2:
        raise InputError(
            f"cannot write a product of {scene.grid.height} x {scene.grid.width} pixels, expected even sides",
            "Simulate a scene with even sides.",
        )
    safe = Path(folder) / f"{name}.SAFE"
    time, tile = name.split("_")[2], name.split("_")[5]
    images = safe / "GRANULE" / f"L2A_{tile}_A000001_{time}" / "IMG_DATA"
    clouds = (scene.summer == 0).any(axis=-1)
    for number, band in enumerate(BANDS):
        digits = np.where(clouds, 9000, scene.summer[..., number]).astype(np.float32) + 1000
        step = 2 if band in _COARSE_BANDS else 1
        digits = np.rint(_at_20_m(digits) if step == 2 else digits)
        file = images / f"R{10 * step}m" / f"{tile}_{time}_{band}_{10 * step}m.jp2"
        _write_jp2(file, digits[::step, ::step].astype(np.uint16), scene, step)
    blocks = clouds.reshape(clouds.shape[0] // 2, 2, -1, 2).any(axis=(1, 3))
    # Scene classification: 9 is cloud of high probability, 4 vegetation.
    classes = np.where(blocks, 9, 4).astype(np.uint8)
    _write_jp2(images / "R20m" / f"{tile}_{time}_SCL_20m.jp2", classes, scene, 2)
    offsets = "".join(f'<BOA_ADD_OFFSET band_id="{k}">-1000</BOA_ADD_OFFSET>' for k in range(13))
    with write_atomically(safe / "MTD_MSIL2A.xml") as temporary:
        temporary.write_text(
            "<Level-2A_User_Product><General_Info><Product_Image_Characteristics>"
            "<QUANTIFICATION_VALUES_LIST><BOA_QUANTIFICATION_VALUE>10000</BOA_QUANTIFICATION_VALUE>"
            f"</QUANTIFICATION_VALUES_LIST><BOA_ADD_OFFSET_VALUES_LIST>{offsets}"
            "</BOA_ADD_OFFSET_VALUES_LIST></Product_Image_Characteristics></General_Info>"
            f"<!-- simulated by lulc.demo.landscape, seed {scene.seed}; not measured -->"
            "</Level-2A_User_Product>",
            encoding="utf-8",
        )
    return safe


def _write_jp2(path: Path, image: NDArray[np.generic], scene: Scene, step: int) -> None:
    """Write one layer (y, x) whose pixels are `step` pixels of the scene wide."""
    height, width = image.shape
    with (
        write_atomically(path) as temporary,
        rasterio.Env(GDAL_PAM_ENABLED="NO"),  # everything into the file itself, as in real products
        rasterio.open(
            temporary, "w", driver="JP2OpenJPEG", dtype=image.dtype, count=1, height=height, width=width,
            crs=scene.grid.crs, transform=scene.grid.transform @ Affine.scale(step),
            # JP2 holds the georeference, whatever the suffix of the temporary file.
            CODEC="JP2", QUALITY="100", REVERSIBLE="YES",
        ) as target,
    ):  # fmt: skip
        target.write(image, 1)


def write_raster(
    path: Path, image: NDArray[np.generic], scene: Scene, names: Sequence[str], module: str,
    band_tags: Sequence[dict[str, str]] = (), **options: Any,
) -> None:  # fmt: skip
    """Write an image (y, x, band) of a scene as GeoTIFF, with tags that say that it is simulated."""
    height, width, count = image.shape
    with rasterio.open(
        path, "w", driver="GTiff", dtype=image.dtype, count=count, height=height, width=width,
        crs=scene.grid.crs, tiled=True, compress="deflate", **options,
    ) as target:  # fmt: skip
        target.write(np.moveaxis(image, -1, 0))
        target.descriptions = tuple(names)
        source = f"simulated by lulc.demo.{module}, seed {scene.seed}; not measured"
        target.update_tags(SOURCE=source, **{SIMULATED_TAG: "YES"})
        for number, tags in enumerate(band_tags, start=1):
            target.update_tags(number, **tags)


def _check(shape: tuple[int, int], labels: Bytes | None) -> None:
    if min(shape) < 32:
        raise InputError(
            f"cannot simulate a scene of {shape[0]} x {shape[1]} pixels, expected at least 32 x 32",
            "Give a larger shape.",
        )
    if labels is None:
        return
    if labels.shape != tuple(shape):
        raise InputError(
            f"cannot simulate a scene of {shape[0]} x {shape[1]} pixels, since the labels have "
            f"{labels.shape[0]} x {labels.shape[1]}",
            "Give labels of the scene's shape.",
        )
    if not labels.any() or labels.max() > CLASSES:
        raise InputError(
            f"cannot simulate a scene, since the labels hold values {labels.min()}..{labels.max()}, "
            f"expected classes 1..{CLASSES}, and 0 for unlabelled",
            "Remap them by the scheme kaakonkulma-13 first.",
        )


def smooth_field(shape: tuple[int, int], length: float, rng: np.random.Generator) -> Floats:
    """Return a Gaussian random field (y, x) of mean 0 and variance 1 with a correlation length in pixels."""
    # White noise is smoothed on a coarser grid, which is a hundred times faster for long correlations.
    step = max(1, int(length / 4))
    margin = 8
    coarse = tuple(-(-n // step) + 2 * margin for n in shape)
    field = cv2.GaussianBlur(
        rng.standard_normal(coarse, dtype=np.float32), (0, 0), length / step, borderType=cv2.BORDER_REFLECT
    )
    inner = field[margin:-margin, margin:-margin]
    rows, cols = inner.shape
    wide = cv2.resize(inner, (cols * step, rows * step), interpolation=cv2.INTER_CUBIC)
    cut = wide[: shape[0], : shape[1]]
    return np.asarray((cut - field.mean()) / field.std(), dtype=np.float32)


def _class_map(shape: tuple[int, int], rng: np.random.Generator) -> Bytes:
    """Return classes 1..13 (y, x): at each pixel the class whose random field is highest."""
    land = [number for number, share in enumerate(_SHARES) if share]
    fields = [smooth_field(shape, _SIZES[number] / 20, rng) for number in land]
    shares = np.array([_SHARES[number] for number in land])
    levels = _levels(np.stack([field[::4, ::4] for field in fields]), shares / shares.sum())
    best = np.full(shape, -np.inf, dtype=np.float32)
    classes = np.zeros(shape, dtype=np.uint8)
    for number, field, level in zip(land, fields, levels, strict=True):
        higher = field + level > best
        best[higher] = (field + level)[higher]
        classes[higher] = number + 1
    to_water = cv2.distanceTransform((classes != 13).astype(np.uint8), cv2.DIST_L2, 5)
    shore = (to_water > 0) & (to_water < 5) & (smooth_field(shape, 8, rng) > 0.2)
    classes[shore] = 12
    return classes


def _levels(fields: Floats, shares: NDArray[np.float64]) -> Floats:
    """Return the offset of each field (class, y, x) that makes it the highest on its share of the pixels."""
    levels = np.zeros((len(fields), 1, 1), dtype=np.float32)
    for _ in range(60):
        winners = np.bincount(np.argmax(fields + levels, axis=0).ravel(), minlength=len(fields))
        fractions = (winners + 1) / (winners.sum() + len(fields))
        levels[:, 0, 0] += 0.3 * np.log(shares / fractions)
    return levels


def _patches(shape: tuple[int, int], rng: np.random.Generator, spacing: int = 14) -> NDArray[np.int32]:
    """Return patch numbers (y, x): the nearest of random points, about `spacing` pixels apart."""
    elsewhere = np.ones(shape, dtype=np.uint8)
    count = max(1, shape[0] * shape[1] // spacing**2)
    elsewhere[rng.integers(0, shape[0], count), rng.integers(0, shape[1], count)] = 0
    _, numbers = cv2.distanceTransformWithLabels(elsewhere, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    return np.asarray(numbers, dtype=np.int32)


def _without_gaps(labels: Bytes) -> Bytes:
    """Return labels with each 0 replaced by the nearest class."""
    nearest = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    return np.asarray(labels[tuple(nearest)], dtype=np.uint8)


def _disturb(classes: Bytes, patches: NDArray[np.int32], rng: np.random.Generator, wrong: float) -> Bytes:
    """Shift the borders of classes by a pixel or two, and give whole patches a similar class."""
    if not wrong:
        return classes.copy()
    shape = classes.shape
    positions = np.indices(shape, dtype=np.float32)
    rows = positions[0] + 1.2 * smooth_field(shape, 6, rng)
    cols = positions[1] + 1.2 * smooth_field(shape, 6, rng)
    shifted = cv2.remap(classes, cols, rows, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
    # One draw for each pair of patch and class, so that an error covers the whole class in a patch.
    table = np.tile(np.arange(CLASSES + 1, dtype=np.uint8), (int(patches.max()) + 1, 1))
    hit = rng.random(table.shape) < wrong
    pick = rng.random(table.shape)
    for number, others in enumerate(_CONFUSED, start=1):
        choice = np.asarray(others, dtype=np.uint8)[(pick[:, number] * len(others)).astype(int)]
        table[hit[:, number], number] = choice[hit[:, number]]
    return np.asarray(table[patches, shifted], dtype=np.uint8)


def _mixtures_of_patches(patches: int, rng: np.random.Generator) -> Floats:
    """Draw mixtures of the materials, (patch, class, material), which sum to 1."""
    materials = list(_SPECTRA)
    mean = np.array([[mixture.get(m, 0.0) for m in materials] for mixture in _MIXTURES], dtype=np.float32)
    factors = np.exp(0.45 * rng.standard_normal((patches, *mean.shape), dtype=np.float32))
    shares = mean * factors
    return np.asarray(shares / shares.sum(axis=-1, keepdims=True), dtype=np.float32)


def _reflectance(
    truth: Bytes, patches: NDArray[np.int32], mixtures: Floats, season: int, rng: np.random.Generator
) -> Floats:
    """Return reflectance x 10000, float32 (y, x, band), of a season (0 summer, 1 spring)."""
    spectra = np.array([both[season] for both in _SPECTRA.values()], dtype=np.float32)
    image = (mixtures @ spectra)[patches, truth.astype(np.intp) - 1]
    # Crown shadows, slopes and density make all bands of a pixel darker or brighter.
    shape = truth.shape
    light = 0.05 * smooth_field(shape, 5, rng) + 0.05 * rng.standard_normal(shape, dtype=np.float32)
    image *= np.exp(light)[..., np.newaxis]
    # The sensor's point spread mixes neighbouring classes within about a pixel of their border.
    image = np.asarray(cv2.GaussianBlur(image, (0, 0), 0.7, borderType=cv2.BORDER_REFLECT), dtype=np.float32)
    for number, name in enumerate(BANDS):
        if name in _COARSE_BANDS:
            image[..., number] = _at_20_m(image[..., number])
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    return np.asarray(image * (1 + 0.02 * noise) + 8 * noise, dtype=np.float32)


def _at_20_m(band: Floats) -> Floats:
    """Average 2 x 2 pixels and repeat the means; odd sizes repeat their last row or column."""
    rows, cols = band.shape
    even = np.pad(band, ((0, rows % 2), (0, cols % 2)), mode="edge")
    means = even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2).mean(axis=(1, 3))
    return np.asarray(means.repeat(2, axis=0).repeat(2, axis=1)[:rows, :cols], dtype=np.float32)


def _clouds(shape: tuple[int, int], share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return True (y, x) under clouds, which cover about `share` of the scene in a few large pieces."""
    field = smooth_field(shape, max(4.0, min(shape) / 20), rng)
    return np.asarray(field > np.quantile(field, 1 - share), dtype=np.bool_)


def _digitise(image: Floats, gaps: NDArray[np.bool_]) -> NDArray[np.uint16]:
    # A measured pixel is never 0, which means no data.
    digits = np.clip(np.rint(image), 1, 65535).astype(np.uint16)
    digits[gaps] = 0
    return digits


def _composite_indices(image: Floats, gaps: NDArray[np.bool_], rng: np.random.Generator) -> Bytes:
    """Return SYKE-coded indices, uint8 (y, x, index), of a top-of-atmosphere composite of other dates."""
    # Haze and other greenness, so that the indices can't be computed from the bands.
    haze = np.array((600, 330, 190, 130, 90, 60, 40, 10, 5), dtype=np.float32)
    gain = 1 + 0.03 * smooth_field(image.shape[:2], 25, rng)[..., np.newaxis]
    composite = image * np.where(np.arange(len(BANDS)) >= BANDS.index("B06"), gain, 1) + haze
    planes = np.rint(compute_indices(composite.astype(np.float32)))
    for number, name in enumerate(INDICES):
        nodata = _INDEX_NODATA[name]
        # A measured index is never the code that means no data.
        lowest = 1 if nodata == 0 else 0
        planes[..., number] = np.where(gaps, nodata, np.maximum(planes[..., number], lowest))
    return planes.astype(np.uint8)
