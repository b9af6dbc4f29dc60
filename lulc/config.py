"""Options of every command: one frozen dataclass each, with every default, unit and help text.

The commands derive their options from these fields (`lulc.cli.commandline`), tests tie the two together,
and notebooks build the same objects by hand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

from lulc.core.channels import CHANNEL_SETS, DEFAULT_CHANNELS, channels_text, split_prefix
from lulc.core.config_file import read_settings
from lulc.core.options import FOLDER, Excludes, Needs, Options, Rule, check_ending, is_given, option, take

# Headings of the help.
RUN = "running"
CLUSTER = "several processes and machines"
DEVICES = "several devices"
AUGMENTATION = "data augmentation"

# Each makes the options under one heading.
input_option = partial(option, group="input rasters")
cluster_option = partial(option, group=CLUSTER)
device_option = partial(option, group=DEVICES)
label_option = partial(option, group="labels and their classes")
search_option = partial(option, group="which scenes")
cloud_option = partial(option, group="clouds")
composition_option = partial(option, group="composition")
pretraining_option = partial(option, group="pretraining without labels")
area_option = partial(option, group="areas with intervals, from a sample of points")
report_option = partial(option, group="title page")

FRACTION: Mapping[str, Any] = MappingProxyType({"unit": "0..1", "ge": 0, "le": 1})
"""Unit and limits of an option that holds a fraction or a probability."""

MAP_ENDINGS = (".tif", ".tiff")
STYLE_ENDINGS = (".qml", ".sld", ".aux.xml")
EXPORT_ENDINGS = (*STYLE_ENDINGS, ".json", ".nc", ".zarr", ".tif")
MODEL_ENDINGS = (".json", ".onnx")

PICKS = ("auto", "lowest-val-loss", "best-macro-f1", "highest-val-accuracy", "last", "few-labels", "baseline")
"""Ways to choose the weights of a run folder."""

ORIGINAL: Mapping[str, Any] = MappingProxyType(
    {
        "epochs": 100, "steps": 500, "validation_steps": 50,
        "batch_size": 8, "crop_sizes": (64, 128, 256, 384), "validation_crop_sizes": (128, 256),
        "rare_classes": 0.0, "rare_temperature": 0.1, "balance": "stacks", "batch_from": "one",
        "rotations": 16, "gain": 0.0, "offset_jitter": 0.0,
        "loss": "ce", "optimizer": "nadam", "precision": "float32",
        "learning_rate": 0.001, "warmup": 0, "schedule": "constant",
        "weight_decay": 0.0, "clip_norm": 0.0, "average": 0.0,
        "patience": 0, "calibrate": "none",
        "filters": (32, 64, 128, 256), "bottleneck": 0, "block": "transpose", "dropout": 0.0, "norm": "batch",
    }
)  # fmt: skip
"""Training and network of the original system."""

DEFAULT: Mapping[str, Any] = MappingProxyType(
    {
        # 4,800 batches of 0.03 Mpx, as in the trainings of docs/accuracy.md.
        **ORIGINAL,
        "epochs": 12, "steps": 400, "validation_steps": 30,
        "batch_size": 2, "crop_sizes": (128,), "validation_crop_sizes": (128,),
        "balance": "classes", "batch_from": "any",
        "rotations": 4,
        "loss": "logit-adjusted(tau=0.65)", "optimizer": "adamw",
        "learning_rate": 0.003, "warmup": 100, "schedule": "cosine",
        "weight_decay": 0.01, "clip_norm": 1.0, "average": 0.1,
        "calibrate": "one",
        "filters": (32, 64, 128, 256, 256), "block": "sum", "dropout": 0.3,
    }
)  # fmt: skip
"""The best network and training found that end within half an hour on two processor cores."""

FEW_LABELS: Mapping[str, Any] = MappingProxyType(
    {
        # 600 batches of 0.03 Mpx at half the width: about two minutes on two cores.
        **DEFAULT,
        "epochs": 4, "steps": 150, "validation_steps": 10,
        "batch_size": 8, "crop_sizes": (64,), "validation_crop_sizes": (64,),
        "rare_classes": 1.0, "balance": "pixels",
        "filters": (16, 32, 64, 128), "block": "transpose",
    }
)  # fmt: skip
"""Recipe for so few labels that small models of single pixels usually give the better map."""

WITHOUT_LABELS: Mapping[str, Any] = MappingProxyType(
    {
        "loss": "absolute difference of masked values",
        "rare_classes": 0.0, "rare_temperature": 1.0, "balance": "stacks",
        "calibrate": "none",
    }
)  # fmt: skip
"""Values of the options about labels in a pretraining, which has none."""

MASK_RATIO, MASK_BLOCK = 0.6, 16
"""Fraction of a crop that pretraining masks, and the side of a masked block in pixels."""

RECIPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"default": DEFAULT, "few-labels": FEW_LABELS, "original": ORIGINAL}
)
"""Values of the training options that the user leaves open."""

AUTO = "auto"  # recipe that is chosen by the labels, see `lulc.training.training_plan`


by_recipe = partial(option, None, recipes=RECIPES)
"""Makes an option that is None until `TrainConfig.resolved` takes it from `RECIPES`."""

crop_option = partial(by_recipe, group="which crops are cut")
augmentation_option = partial(by_recipe, group=AUGMENTATION)
optimisation_option = partial(by_recipe, group="optimisation")


def scale() -> Any:
    """Return the option for the scale of bands."""
    text = "reflectance = (DN + offset) x scale (default: from the files' metadata, else 0.0001)"
    return input_option(None, text, unit="reflectance per DN")


def offset() -> Any:
    """Return the option for the offset of bands."""
    text = (
        "added to DN before scaling; -1000 for products of processing baseline 04.00 and later (default: "
        "from the files' metadata, else 0)"
    )
    return input_option(None, text, unit="DN")


@dataclass(frozen=True, kw_only=True)
class VrtConfig(Options):
    """Option of every command that opens rasters by name."""

    allow_vrt: bool = input_option(False, "accept VRT mosaics whose files lie below the folder of the VRT")


@dataclass(frozen=True, kw_only=True)
class MaskConfig(VrtConfig):
    """Options that choose the pixels in use; the same for stacks, maps and reports."""

    resample: bool = input_option(
        False, "resample rasters on another grid (bands bilinear, labels and masks nearest)"
    )
    mask: tuple[str, ...] = input_option(
        (), "cloud masks or scene classifications in the same CRS; DATE=RASTER for one date", metavar="RASTER"
    )
    mask_values: tuple[int, ...] = input_option(
        (), "values of the mask to leave out, such as 3 8 9 10 of a scene classification", metavar="N"
    )
    mask_bits: bool = input_option(
        False,
        "--mask-values are bits, counted from 0; a pixel with any of them set is left out: 1 2 3 4 of "
        "Landsat's QA_PIXEL, 1 3 of HLS' Fmask",
    )
    grow_mask: int = input_option(0, "also leave out pixels this near to a masked pixel", unit="pixels", ge=0)
    bounds: tuple[float, float, float, float] | None = input_option(
        None, "use only pixels inside this box", unit="units of the CRS", metavar="LEFT BOTTOM RIGHT TOP"
    )
    aoi: str | None = input_option(
        None, "use only pixels inside these polygons (GeoPackage, GeoJSON)", metavar="FILE"
    )
    allow_remote: bool = input_option(
        False, "accept remote files (https://..., /vsi...), which open connections"
    )


@dataclass(frozen=True, kw_only=True)
class InputConfig(MaskConfig):
    """Options for reading rasters; the same in preprocessing and classification."""

    layers: tuple[str, ...] = input_option(
        (),
        "further rasters, each on its own grid, with channels of the set such as elevation, backscatter or "
        "embeddings; VV,VH=RASTER names the layers of one",
        metavar="RASTER",
    )
    fill: tuple[str, ...] = input_option(
        (), "mosaics that fill pixels without reflectance, tried in this order", metavar="RASTER"
    )
    scale: float | None = scale()
    offset: float | None = offset()
    band_names: tuple[str, ...] = input_option(
        (), "band names of unnamed rasters, in file order (B02 B03 ... or blue green ...)", metavar="NAME"
    )
    index_names: tuple[str, ...] = input_option(
        (), "layer names of an unnamed index raster (NDVI NDTI ...)", metavar="NAME"
    )
    nodata: float | None = input_option(
        None, "further no-data value of bands and layers; a reflectance stored as 0 is always no data"
    )
    index_nodata: tuple[float, ...] = input_option(
        (), "further no-data value of each index layer, or one for all", metavar="VALUE"
    )
    like: str | None = input_option(
        None, "raster that defines the grid, instead of the 10 m bands", metavar="RASTER"
    )


@dataclass(frozen=True, kw_only=True)
class OutputConfig(Options):
    """Option of every command that writes files."""

    overwrite: bool = option(False, "replace existing outputs", group=RUN)


@dataclass(frozen=True, kw_only=True)
class RunConfig(OutputConfig):
    """Options of every command that resumes interrupted runs."""

    restart: bool = option(False, "delete the partial work of an interrupted run and begin anew", group=RUN)


@dataclass(frozen=True, kw_only=True)
class ClusterConfig(Options):
    """Options for distributing a command over the workers of a cluster."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Needs("workers", "dask", "only these start workers", ("local", "slurm")),
        Needs("worker_wait", "dask", "it is the time to wait for the workers of a cluster"),
    )

    dask: str | None = cluster_option(
        None,
        "run on a Dask cluster: local (processes of this machine), slurm (jobs, configured by jobqueue.slurm "
        "of Dask) or the address of a scheduler; all machines must see the same files under the same paths",
        metavar="CLUSTER",
    )
    workers: int | None = cluster_option(
        None, "worker processes of --dask local, which share the cores, or of --dask slurm (default: 2)", ge=1
    )
    worker_wait: float | None = cluster_option(
        None, "give up after this time without any worker (default: never)", unit="minutes", ge=0
    )


@dataclass(frozen=True, kw_only=True)
class SchemeConfig(Options):
    """Option of every command that turns codes into classes."""

    scheme: str | None = label_option(
        None,
        "meaning of the codes: clc-level1, clc-level2, clc-level3, clc-fi-13, kaakonkulma-13, worldcover, "
        "dynamic-world, esri-10m, or a CSV with the columns code, class, name, color (default: the classes "
        "of the map, of a text field or of the raster's value table)",
    )


@dataclass(frozen=True, kw_only=True)
class LabelConfig(SchemeConfig):
    """Options for reading labels or a reference; the same in preprocessing and evaluation."""

    codes: str = label_option(
        "auto",
        "form of European CORINE codes: grid indices 1..44, or three digits",
        choices=("auto", "grid", "three-digit"),
    )
    label_field: str | None = label_option(
        None, "field of vector labels with the code or name of the class", metavar="NAME"
    )
    label_layer: str | None = label_option(
        None, "layer of vector labels, for files with several", metavar="NAME"
    )
    pine: str | None = label_option(
        None, "raster of pine volume, which splits coniferous forest in clc-fi-13", metavar="RASTER"
    )
    spruce: str | None = label_option(
        None, "raster of spruce volume, which splits coniferous forest in clc-fi-13", metavar="RASTER"
    )


@dataclass(frozen=True, kw_only=True)
class MosaicConfig(RunConfig, ClusterConfig):
    """Region and dates to a mosaic."""

    RULES: ClassVar[tuple[Rule, ...]] = (Needs("near", "rule", "only that rule prefers a day", ("best",)),)

    aoi: str | None = option(None, "polygons of the region (GeoPackage, GeoJSON)", metavar="FILE")
    bounds: tuple[float, float, float, float] | None = option(
        None, "the region as a box instead of --aoi", unit="degrees", metavar="WEST SOUTH EAST NORTH"
    )
    dates: str = option(..., "first and last day, 2024-06-01/2024-08-31, or one day", metavar="DATE/DATE")
    out: str = option(
        ..., "mosaic to write, .tif or .zarr; --every adds the name of each period to it", metavar="OUT",
        endings=(*MAP_ENDINGS, ".zarr"),
    )  # fmt: skip
    catalog: str | None = search_option(
        None,
        "earth-search, cdse, planetary, or the address of a STAC API or static catalogue",
        metavar="NAME",
    )
    collection: tuple[str, ...] = search_option(
        (), "collections to search (default: Sentinel-2 level 2A)", metavar="NAME"
    )
    scenes: tuple[str, ...] = search_option(
        (),
        "instead of --catalog: STAC items, .SAFE products, folders of these, or the list OUT_scenes.json of "
        "an earlier run, which makes the same mosaic again",
        metavar="PATH",
    )
    allow_remote: bool = search_option(
        False, "accept addresses in the items of --scenes, which open connections"
    )
    max_cloud: float = search_option(
        60.0, "leave out scenes with a higher cloud cover", unit="percent", ge=0, le=100
    )
    orbits: tuple[int, ...] = search_option((), "relative orbits (default: all)", metavar="N")
    tiles: tuple[str, ...] = search_option((), "MGRS tiles such as 35VLG (default: all)")
    min_baseline: float = search_option(0.0, "oldest processing baseline to use, such as 5.0", metavar="N.N")
    plan: bool = search_option(False, "print scenes, clear observations, bytes to read and time, then stop")
    band_names: tuple[str, ...] = option(
        ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B11", "B12"), "bands of the mosaic", metavar="BAND"
    )
    scale: float | None = scale()
    offset: float | None = offset()
    crs: str | None = option(None, "CRS of the mosaic (default: the UTM zone of the region)")
    resolution: float = option(10.0, "side of a pixel", unit="units of the CRS", gt=0)
    clouds: tuple[int, ...] = cloud_option(
        (),
        "values of the scene classification or of --masks to leave out (default: 0 1 3 8 9 10, which are no "
        "data, saturated, shadow, clouds and cirrus, or 1 of a mask)",
        metavar="N",
    )
    grow_clouds: int = cloud_option(0, "also leave out pixels this near to a cloud", unit="pixels", ge=0)
    cloud_probability: str | None = cloud_option(
        None, "asset with a cloud probability, used instead of the scene classification", metavar="ASSET"
    )
    cloud_threshold: int = cloud_option(
        40, "leave out pixels with at least this cloud probability", unit="percent", ge=0, le=100
    )
    masks: str | None = cloud_option(
        None,
        "pattern of your own cloud masks, used instead of the scene classification; {id} and {date} are "
        "replaced by those of the scene: 'masks/{id}.tif'",
        metavar="PATTERN",
    )
    rule: str = composition_option(
        "median",
        "how dates are composed; median: of each band; medoid: the date nearest to all others in all bands; "
        "best: the clearest scene, or the nearest to --near; first: the earliest",
        choices=("median", "medoid", "best", "first"),
    )
    near: str | None = composition_option(None, "day that --rule best prefers", metavar="DATE")
    every: str = composition_option(
        "all",
        "write a mosaic for each month, season (March to May, ...) or year",
        choices=("all", "month", "season", "year"),
    )
    fill_from: tuple[str, ...] = composition_option(
        (),
        "fill gaps in this order, from a mosaic (.tif) or from scenes of other dates (2024-04-01/2024-05-31; "
        "spring, summer, autumn or winter of the same year)",
        metavar="WHAT",
    )
    labels: tuple[str, ...] = option(
        (),
        "also write OUT_labels.tif on the same grid: worldcover or corine, then the file or folder with its "
        "tiles, or a catalogue (planetary, the address of a STAC API)",
        metavar="WHAT",
    )
    memory: float = option(
        2.0, "memory for observations, shared by the workers of --dask local", unit="GB", gt=0
    )
    connections: int = option(16, "scenes to read at the same time", ge=1)


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig(InputConfig, LabelConfig, RunConfig, ClusterConfig):
    """Rasters to .npy stacks."""

    bands: tuple[str, ...] = option(
        (),
        "Sentinel-2 bands: files with one or many bands, a .SAFE folder or .SAFE.zip, a STAC item (.json); "
        "for many chips a pattern in quotes ('chips/*_s2.tif'), or a CSV with the columns bands,labels",
        metavar="RASTER",
    )
    scenes: tuple[str, ...] = option(
        (),
        "instead of --bands many scenes on one grid: files, .SAFE folders, STAC items (.json) or folders of "
        "these; where they overlap, the first with data is used",
        metavar="SCENE",
    )
    indices: tuple[str, ...] = option(
        (), "SYKE-coded spectral indices (default: computed from the bands)", metavar="RASTER"
    )
    channels: str = option(
        DEFAULT_CHANNELS,
        "channels of the stacks: kaakonkulma-14 (nine bands, five indices), sentinel2-10 (bands of 10 and 20 "
        "m), sentinel2-12 (all bands of level 2A), landsat-8-9, hls, sentinel1, or a YAML file of a set",
        metavar="SET",
        texts={name: channels_text(channels) for name, channels in CHANNEL_SETS.items()},
    )
    labels: str | None = option(
        None,
        "label raster, or vector file (GeoPackage, GeoJSON, shapefile, FlatGeobuf, GeoParquet); for chips "
        "one file for all, or a pattern whose wildcards stand for the same as those of --bands",
        metavar="FILE",
    )
    out: str = option(..., "folder for the stacks and their manifest", metavar="FOLDER", endings=FOLDER)
    size: int = option(850, "side of a stack; less where the mosaic is smaller", unit="pixels", ge=1)
    stacks: int = option(0, "number of stacks, those with rare classes first; 0 for all that fit", ge=0)
    validation: tuple[str, ...] = option(
        ("0.2",),
        "validation stacks: a fraction (0.2), stack numbers (3 7), a file of polygons that cover them, a "
        "folder that preprocess.py wrote (the area of its validation stacks), none, or all (a folder for "
        "train_model.py --validation-data)",
        metavar="WHICH",
    )
    split: str = option(
        "auto",
        "unit of the split into training and validation: stacks, or patches of labels that touch (polygons, "
        "points), which lose no label to a gap; auto uses patches where less than a quarter of the pixels "
        "has a label, or stacks leave no room for training",
        choices=("auto", "stacks", "patches"),
    )
    gap: int = option(
        76,
        "training labels nearer than this to a validation stack are ignored, and as much of the mosaic lies "
        "around patches; 76 is the receptive radius of the default network",
        unit="pixels",
        ge=0,
    )
    border_ignore: int = option(0, "ignore labels nearer than this to a class border", unit="pixels", ge=0)
    seed: int = option(1, "seed of the random choice of stacks")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """.npy stacks to weights."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Excludes("minutes", "cross_validate", "folds can only be compared if each is trained to its end"),
        Excludes("processes", "cross_validate", "the folds are trained by one process"),
        Needs("process coordinator", "processes", "they connect several processes"),
        Needs("mask_ratio mask_block input_options", "pretrain", "they are for training without labels"),
        Excludes(
            "pretrain", "data validation_data single_class cross_validate already_standardised",
            "it has no labels",
            "Pretrain without it, then train on labels with --init FOLDER and this option.",
        ),
    )  # fmt: skip

    data: tuple[str, ...] = option(
        (), "folders that preprocess.py wrote, or in the original's naming", metavar="DATA", positional=True
    )
    validation_data: tuple[str, ...] = option(
        (), "folders whose stacks all validate, in place of those of DATA", metavar="FOLDER"
    )
    out: str = option(..., "run folder for weights, cards and history", metavar="FOLDER", endings=FOLDER)
    recipe: str = option(
        AUTO,
        "training defaults; auto: few-labels for sparse labels of up to 100,000 pixels, else default",
        choices=(AUTO, *RECIPES),
    )
    plan: bool = option(False, "print what would be trained, and why, then stop")
    epochs: int = by_recipe("number of epochs", ge=1)
    steps: int = by_recipe("batches per epoch", ge=1)
    validation_steps: int = by_recipe(
        "batches per validation; where not given, fewer in short epochs, so that it takes at most a fifth of "
        "the time",
        ge=1,
    )
    batch_size: int = by_recipe("crops per batch", ge=1)
    crop_sizes: tuple[int, ...] = by_recipe("sides of training crops", unit="pixels")
    validation_crop_sizes: tuple[int, ...] = by_recipe(
        "sides of validation crops; where not given, at most the largest of --crop-sizes", unit="pixels"
    )
    rare_classes: float = crop_option(
        "fraction of crops centred on a pixel of a drawn class; raise it for sparse labels", **FRACTION
    )
    rare_temperature: float = crop_option(
        "T of the draw of classes, exp((1 - frequency) / T): 0.01 draws only the rarest, 100 all alike",
        ge=0.001,
    )
    balance: str = crop_option(
        "how often crops come from each stack: all equally, by labelled pixels, or by their classes, rare "
        "ones first (--rare-temperature)",
        choices=("stacks", "pixels", "classes"),
    )
    batch_from: str = crop_option(
        "take all crops of a batch from one stack, or each from any", choices=("one", "any")
    )
    rotations: int = augmentation_option(
        "number of equally spaced rotation angles; 1 for none; others than 1, 2 and 4 interpolate the crops",
        ge=1,
    )
    gain: float = augmentation_option(
        "random factor of each band: standard deviation of its logarithm, e.g. 0.05; computed indices "
        "follow, indices from files stay",
        ge=0,
        le=1,
    )
    offset_jitter: float = augmentation_option(
        "random offset of each band: standard deviation, e.g. 30", unit="reflectance x 10000", ge=0, le=10_000
    )
    date_dropout: float = option(
        0.2, "probability that a crop loses a date that may be missing", group=AUGMENTATION, **FRACTION
    )
    loss: str = optimisation_option(
        "ce, ce(weights=inverse), ce(weights=sqrt) or logit-adjusted(tau=T); a larger T favours rare classes"
    )
    optimizer: str = optimisation_option("optimizer", choices=("nadam", "adamw"))
    learning_rate: float = optimisation_option("highest learning rate", ge=0)
    warmup: int = optimisation_option(
        "batches over which the learning rate rises from 0; at most a tenth of the run", ge=0
    )
    schedule: str = optimisation_option(
        "learning rate after the warm-up; cosine falls to 1 %% of it", choices=("constant", "cosine")
    )
    weight_decay: float = optimisation_option("decoupled weight decay of the kernels", ge=0, le=1)
    clip_norm: float = optimisation_option("largest norm of all gradients together; 0 for no limit", ge=0)
    average: float = optimisation_option(
        "memory of the exponential moving average of the weights, as a fraction of the run; the averaged "
        "weights are validated and saved; 0 for no average",
        **FRACTION,
    )
    precision: str = optimisation_option(
        "precision of the layers; weights are always float32", choices=("float32", "bfloat16", "float16")
    )
    patience: int = optimisation_option(
        "stop after this many epochs without a better loss, accuracy or macro-F1; 0 for never", ge=0
    )
    calibrate: str = optimisation_option(
        "temperature scaling on the validation crops, or with --cross-validate on those of all folds",
        choices=("none", "one", "per-class"),
    )
    cross_validate: str | None = option(
        None,
        "first cross-validate and report each fold (OUT/folds) and class; a fold is one of the stacks, "
        "folders (of DATA) or scenes (images), and takes the time of a run",
        choices=("stacks", "folders", "scenes"),
    )
    filters: tuple[int, ...] = by_recipe("filters of the encoder stages")
    decoder_filters: tuple[int, ...] = option(
        (), "filters of the decoder stages (default: the mirrored encoder filters for block sum, else twice)"
    )
    bottleneck: int = by_recipe("convolutions between encoder and decoder")
    block: str = by_recipe(
        "how the decoder upsamples and joins skips", choices=("transpose", "upsample", "sum")
    )
    dropout: float = by_recipe(
        "dropout rate before the last convolution; raise it where the network overfits"
    )
    norm: str = by_recipe("normalisation after the convolutions", choices=("batch", "none"))
    single_class: str | None = option(
        None, "train this class against the rest (sigmoid, binary cross-entropy)", metavar="NAME"
    )
    init: str | None = option(
        None,
        "fine-tune these weights; options may change their network, other classes its head",
        metavar="MODEL",
    )
    pretrain: tuple[str, ...] = pretraining_option(
        (),
        "instead of training on DATA, pretrain on these band and index rasters without labels (masked "
        "autoencoding); --init starts from the result",
        metavar="RASTER",
    )
    input_options: str | None = pretraining_option(
        None, "file with options for reading these rasters (preprocess.py --print-config)", metavar="FILE"
    )
    mask_ratio: float | None = pretraining_option(
        None, f"fraction of each crop that is masked (default: {MASK_RATIO})", unit="0..1", gt=0, lt=1
    )
    mask_block: int | None = pretraining_option(
        None, f"side of a masked block (default: {MASK_BLOCK})", unit="pixels", ge=1
    )
    minutes: float | None = option(
        None, "stop cleanly after this time; not with --cross-validate", unit="minutes", gt=0
    )
    devices: str = device_option(
        "1", "number of GPUs (or else processors) that share each batch, or all", metavar="N"
    )
    processes: int = device_option(
        1, "processes that train together (JAX only); start each with this command, or all with srun", ge=1
    )
    process: int | None = device_option(None, "number of this process, from 0 (default: SLURM_PROCID)")
    coordinator: str | None = device_option(
        None, "address of process 0 (default: the first node of SLURM_STEP_NODELIST)", metavar="HOST:PORT"
    )
    keep: str = option(
        "best", "models kept besides the best by each score: best (only the last), all, or the last N"
    )
    workers: int = option(1, "threads that cut crops; the batches do not depend on it", ge=1)
    stacks_on: str = device_option(
        "auto",
        "memory that crops are cut from; auto uses the GPU where there is one, the stacks are small and "
        "augmentation only moves pixels; the batches do not depend on it",
        choices=("auto", "host", "device"),
    )
    tensorboard: bool = option(False, "write TensorBoard logs into the run folder")
    already_standardised: bool = option(
        False, "accept standardised stacks in the original's naming that have no statistics"
    )
    seed: int = option(1, "seed of initial weights, crops and augmentation", ge=0)

    def resolved(self) -> TrainConfig:
        """Return the config with every open option filled in from the recipe; auto stands for default."""
        recipe = RECIPES["default" if self.recipe == AUTO else self.recipe]
        values = {name: value for name, value in recipe.items() if getattr(self, name) is None}
        if self.pretrain:
            without = {**WITHOUT_LABELS, "mask_ratio": MASK_RATIO, "mask_block": MASK_BLOCK}
            values |= {name: value for name, value in without.items() if getattr(self, name) is None}
        if self.crop_sizes is not None and "validation_crop_sizes" in values:
            # A network trained on small crops only is not meant for larger ones.
            largest = max(self.crop_sizes, default=0)
            smaller = [side for side in values["validation_crop_sizes"] if side <= largest]
            values["validation_crop_sizes"] = tuple(smaller) or (largest,)
        return dataclasses.replace(self, **values)


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig(InputConfig, RunConfig, ClusterConfig):
    """Mosaic and weights to a map."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Excludes("sieve", "tiles", "it needs all patches of the map at once"),
        Excludes("polygons", "tiles", "they are made from a map in one file"),
        Needs("date", "tiles", "only the STAC collection of tiles has a date"),
        Excludes("share", "dask", "both distribute the parts"),
        Excludes(
            "share", "restart", "that would delete the parts of other shares",
            "To start again remove '{out}.parts', then start all shares.",
        ),
        Excludes(
            "plan", "share dask", "it forecasts a single process on this machine",
            "Leave them out: each process needs that memory, and all together that time.",
        ),
        Excludes("extra", "activations=none", "the further bands describe the activation bands"),
    )  # fmt: skip

    model: str = option(
        ...,
        "weights file, name in weights/, or run folder; or an address, hf://OWNER/NAME@REVISION or "
        "https://.../NAME.json#sha256=..., which is downloaded once",
        metavar="MODEL",
        positional=True,
    )
    inputs: tuple[str, ...] = option(
        ..., "band rasters, and index rasters if there are any", metavar="INPUT", positional=True
    )
    out: str = option(..., "map to write (GeoTIFF), or folder with --tiles", metavar="OUT", positional=True)
    pick: str = option(
        "auto",
        "which weights of a run folder; auto is what the training recommends: the network of the lowest "
        "validation loss or, for few labels, few-labels, the mean of small models; baseline is a random "
        "forest",
        choices=PICKS,
    )
    statistics: str | None = option(
        None,
        "statistics for a legacy .h5 file without a card: FILE (JSON or the original's pickle), mosaic (of "
        "this mosaic, as the original script did), or none (input is standardised)",
    )
    strict: bool = option(
        False, "refuse a mosaic that lies far from the training statistics, or has pixels of another size"
    )
    engine: str = option(
        "auto",
        "program that runs the network; auto chooses the fastest one that is exact on this machine",
        choices=(
            "auto", "keras", "keras-float16", "openvino", "openvino-int8", "onnxruntime", "onnxruntime-cuda",
            "numpy",
        ),
    )  # fmt: skip
    min_agreement: float | None = option(
        None,
        "fraction of pixels on which an engine of lower precision must agree with float32 (default: 0.97 for "
        "openvino-int8, 0.995 for keras-float16)",
        ge=0,
        le=1,
    )
    memory: float | None = option(
        None, "memory budget of the process (default: 2, or with a GPU 8, 3 of these on it)", unit="GB", gt=0
    )
    window: int | tuple[int, int] | None = option(
        None,
        "side, a multiple of the network's stride (default: what fits the memory best)",
        unit="pixels",
        ge=1,
    )
    part: int = option(4096, "side of a part, which is written and resumed as a whole", unit="pixels", ge=1)
    batch_size: int = option(1, "windows per call of the network", ge=1)
    blend: str = option(
        "none",
        "none: windows with halo, which equal one pass over the whole; gaussian: windows that overlap by 50 "
        "%%, for comparison",
        choices=("none", "gaussian"),
    )
    tta: bool = option(False, "average over the 8 flips and rotations of each window (8 times the work)")
    ensemble: tuple[str, ...] = option(
        (), "further weights with the same channels and classes, to average activations", metavar="MODEL"
    )
    extra: tuple[str, ...] = option(
        (),
        "further bands, 0..1: entropy (0 certain, 1 all classes equally likely), margin (difference of the "
        "two highest activations, 1 certain), novelty (out-of-distribution score: fraction of held-out "
        "pixels that were more like the training data; 1 %% of familiar pixels exceed 0.99)",
        choices=("entropy", "margin", "novelty"),
    )
    min_confidence: float = option(
        0.0, "give class 0 to pixels whose highest activation is lower", **FRACTION
    )
    activations: str = option(
        "float32",
        "data type of the activation bands; none writes only the class band",
        choices=("float32", "uint16", "uint8", "none"),
    )
    cog: bool = option(
        False, "declare the cloud-optimised layout of the map, so that GDAL warns before edits in place"
    )
    sieve: int = option(
        0,
        "also write OUT_sieved.tif, in which patches below this size are merged into neighbours; 0 for none",
        unit="pixels",
        ge=0,
        le=2**31 - 1,
    )
    polygons: str | None = option(
        None,
        "also write patches as polygons, cut at the borders of parts",
        metavar="FILE.gpkg",
        endings=(".gpkg",),
    )
    tiles: bool = option(
        False, "write a folder: each part as a cloud-optimised GeoTIFF, with a VRT and a STAC collection"
    )
    date: tuple[str, ...] = option(
        (),
        "day or first and last day of the imagery, for --tiles (default: from file names)",
        metavar="YYYY-MM-DD",
    )
    share: str | None = cluster_option(
        None,
        "make the I-th of N shares of the parts (1/8) while other processes make theirs; afterwards the same "
        "command without --share makes the map",
        metavar="I/N",
    )
    plan: bool = option(False, "print windows, memory, disk and time, then stop")
    reading: str | None = input_option(
        None,
        "file of options for reading rasters, as preprocess.py writes it beside the stacks (reading.yaml); "
        "typed options win",
        metavar="FILE",
        flag="inputs",
    )

    def __post_init__(self) -> None:
        if self.reading is not None:
            self._take_reading_options(read_settings(self.reading, InputConfig))
        super().__post_init__()
        check_ending(self.out, FOLDER if self.tiles else MAP_ENDINGS, "the last argument")

    def _take_reading_options(self, options: dict[str, Any]) -> None:
        """Take the options that are not given; of `layers` only the layer names before the paths."""
        named, given = options.pop("layers", ()), take(self.layers, tuple[str, ...])
        if len(named) == len(given):
            prefixes = [split_prefix(text)[0] for text in named]
            options["layers"] = tuple(
                f"{prefix}={path}" if prefix and not split_prefix(path)[0] else path
                for prefix, path in zip(prefixes, given, strict=True)
            )
        for name, value in options.items():
            if name == "layers" or not is_given(self, name):
                object.__setattr__(self, name, value)
        # Journals and maps record the options, not the file that they came from.
        object.__setattr__(self, "reading", None)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(MaskConfig, LabelConfig, OutputConfig):
    """Map and reference to a report."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Needs(
            "compare regions label_errors label_field label_layer pine spruce resample border", "reference",
            "interpreted points are compared only by class",
        ),
    )  # fmt: skip

    map: str = option(..., "map that make_classifications.py wrote", metavar="MAP", positional=True)
    reference: str | None = option(
        None, "label raster or vector file, if any", metavar="REFERENCE", positional=True
    )
    out: str = option(..., "folder for the report", metavar="FOLDER", endings=FOLDER)
    border: int = option(
        2, "width of the band along label borders that is scored separately", unit="pixels", ge=0
    )
    regions: str | None = option(
        None,
        "score each stack of a manifest.json or each polygon; with a manifest the headline counts only land "
        "that the training did not use",
        metavar="FILE",
    )
    compare: str | None = option(None, "second map: change matrix and McNemar's test", metavar="MAP")
    image: str | None = option(None, "mosaic to show beside the map", metavar="RASTER")
    run: str | None = option(
        None,
        "run folder of the weights; adds training curves, and the headline counts only land that the "
        "training did not use",
        metavar="FOLDER",
    )
    label_errors: float | None = option(
        None,
        "write candidates for wrong labels to OUT/label-errors.tif and .csv: pixels where the activation of "
        "the map's class exceeds that of the label by at least this (0.5)",
        unit="0..1",
        gt=0,
        lt=1,
    )
    design_sample: int = area_option(
        0,
        "draw this many points to interpret into OUT/sample.gpkg, stratified by class, at least 50 in each; "
        "the map's classes are only in sample-strata.csv",
        ge=0,
    )
    sample_error: float | None = area_option(
        None,
        "draw as many points as give the overall accuracy this standard error (0.01); without REFERENCE each "
        "class is expected to have a user's accuracy of 0.75",
        unit="0..1",
        gt=0,
        lt=0.5,
    )
    sample: str | None = area_option(
        None,
        "interpreted points with class numbers or names in the field reference, for areas and accuracies "
        "with 95 %% intervals; points with 0 or nothing are counted and left out",
        metavar="FILE.gpkg",
    )
    seed: int = area_option(1, "seed of the drawing of points")
    title: str | None = report_option(
        None, "title of the report (default: names of map and reference)", metavar="TEXT"
    )
    author: str | None = report_option(None, "author of the report, as printed", metavar="NAME")
    date: str | None = report_option(None, "date of the report, as printed", metavar="TEXT")
    licence: str | None = report_option(None, "licence of map and report, as printed", metavar="TEXT")


@dataclass(frozen=True, kw_only=True)
class ServeConfig(VrtConfig, LabelConfig):
    """A map as tiles for the browser of this machine."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Needs("label_field label_layer pine spruce", "reference", "they describe how to read a reference"),
    )

    map: str = option(..., "map that make_classifications.py wrote", metavar="MAP", positional=True)
    image: str | None = option(None, "mosaic to show below the map", metavar="RASTER")
    reference: str | None = option(
        None, "label raster or vector file, to show with its differences from the map", metavar="FILE"
    )
    port: int = option(8010, "port on 127.0.0.1; 0 for any free one", ge=0, le=65535)


@dataclass(frozen=True, kw_only=True)
class ExportConfig(VrtConfig, SchemeConfig, OutputConfig):
    """A map for other programs."""

    map: str = option(..., "map that make_classifications.py wrote", metavar="MAP", positional=True)
    out: tuple[str, ...] = option(
        (),
        "files to write, by ending: .qml and .sld (styles), .tif.aux.xml (attribute table), .json (STAC "
        "item), .nc (NetCDF), .zarr, or .tif with --level (default: MAP.qml, MAP.sld and MAP.tif.aux.xml, or "
        "MAP_level1.tif with its styles)",
        metavar="OUT",
        endings=EXPORT_ENDINGS,
    )
    level: str | None = option(
        None, "write a map of the groups of this CORINE level, by summed activations", choices=("1", "2")
    )
    date: tuple[str, ...] = option(
        (),
        "day or first and last day of the imagery, for a STAC item (default: from file names)",
        metavar="YYYY-MM-DD",
    )
    model: str | None = option(
        None, "weights of the map; their STAC item is written beside that of the map", metavar="MODEL"
    )


@dataclass(frozen=True, kw_only=True)
class ImportModelConfig(OutputConfig):
    """A network of another toolkit as a model."""

    model: str = option(
        ..., "network of another toolkit (.onnx, or .keras of Keras 3)", metavar="MODEL", positional=True
    )
    channels: tuple[str, ...] = option(
        ..., "channels of its input, in order; or a channel set as for preprocess.py", metavar="NAME"
    )
    legend: str = option(
        ..., "classes of its output, in order: a scheme or CSV as for preprocess.py --scheme", metavar="NAME"
    )
    out: str = option(..., "folder for the network and its card", metavar="FOLDER", endings=FOLDER)
    mean: tuple[float, ...] = option(
        (), "subtracted from the channels, whose reflectance is x 10000: one number, or one for each"
    )
    std: tuple[float, ...] = option(
        (), "then divides the channels: one number, or one for each; 10000 for reflectance 0..1", gt=0
    )
    single_class: str | None = option(
        None, "class of the legend that a network with one output separates from the rest", metavar="NAME"
    )
    output: str | None = option(None, "output to use, where the network has several", metavar="NAME")
    calibrate: str | None = option(
        None, "stacks whose validation labels give temperature and accuracy", metavar="DATA"
    )
    name: str | None = option(None, "name of the model (default: that of the folder)", metavar="TEXT")
    description: str | None = option(None, "description for its card", metavar="TEXT")
    licence: str | None = option(None, "licence of the weights, for its card", metavar="TEXT")
    attribution: str | None = option(
        None, "attribution of training data, for its card and maps", metavar="TEXT"
    )


@dataclass(frozen=True, kw_only=True)
class ExportModelConfig(OutputConfig):
    """Weights for other programs and catalogues."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Excludes("hub", "out format tile pick=all", "it writes a separate folder for one model"),
    )

    model: str = option(
        ..., "weights file, name in weights/, or run folder", metavar="MODEL", positional=True
    )
    out: str | None = option(
        None,
        "file to write (default: NAME.stac.json or NAME.onnx beside the weights)",
        metavar="FILE",
        endings=MODEL_ENDINGS,
    )
    format: str | None = option(
        None,
        "STAC item, or ONNX network (default: by the ending of --out, else stac)",
        choices=("stac", "onnx"),
    )
    tile: int | None = option(
        None,
        "fixed side of windows, for the QGIS plug-in Deepness (default: any size)",
        unit="pixels",
        ge=1,
        metavar="N",
    )
    hub: str | None = option(
        None,
        "folder to write for a repository such as the Hugging Face Hub",
        metavar="FOLDER",
        endings=FOLDER,
    )
    pick: str = option(
        "auto", "which weights of a run folder; all writes a file for each network", choices=(*PICKS, "all")
    )
    date: tuple[str, ...] = option(
        (), "first and last day of suitable imagery (default: the time of Sentinel-2)", metavar="YYYY-MM-DD"
    )


@dataclass(frozen=True, kw_only=True)
class ReproduceConfig(VrtConfig, OutputConfig):
    """Rebuild a map from its recorded inputs and report any difference."""

    map: str = option(..., "map that make_classifications.py wrote", metavar="MAP", positional=True)
    inputs: tuple[str, ...] = option(
        (), "folders to search for the inputs by name (default: the folder of the map)", metavar="FOLDER"
    )
    model: str | None = option(
        None,
        "weights file or a folder with it (default: weights/ and the folders of the inputs)",
        metavar="MODEL",
    )
    check: bool = option(False, "compare weights and inputs with the map's tags, then stop")
    out: str | None = option(
        None, "keep the rebuilt map under this name", metavar="OUT.tif", endings=MAP_ENDINGS
    )
    difference: str | None = option(
        None,
        "raster to write: 1 where classes differ, 0 where they are equal",
        metavar="OUT.tif",
        endings=MAP_ENDINGS,
    )
    memory: float | None = option(
        None, "memory budget of the process (default: as make_classifications.py)", unit="GB", gt=0
    )
