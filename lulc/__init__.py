"""Land-cover maps from Sentinel-2 mosaics: stacks, training, classification, accuracy.

Every name in ``__all__`` is loaded when it is first used, so that ``import lulc`` costs nothing.

Examples
--------
>>> import lulc
>>> lulc.make_stacks(bands="mosaic.tif", labels="labels.tif", out="stacks")  # doctest: +SKIP
>>> lulc.train(data="stacks", out="run")  # doctest: +SKIP
>>> lulc.classify(model="run", inputs="mosaic.tif", out="map.tif")  # doctest: +SKIP
>>> lulc.evaluate(map="map.tif", reference="labels.tif", out="report")  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lulc.core.version import __version__

if TYPE_CHECKING:
    from lulc.api import (
        classify,
        classify_array,
        classify_share,
        estimate_areas,
        evaluate,
        evaluate_in_memory,
        export_map,
        export_model,
        forecast,
        import_model,
        load_model,
        load_scheme,
        make_mosaic,
        make_stacks,
        open_map,
        open_stack,
        reproduce,
        train,
        train_arrays,
    )
    from lulc.config import (
        ClassifyConfig,
        EvaluateConfig,
        ExportConfig,
        ExportModelConfig,
        ImportModelConfig,
        InputConfig,
        MosaicConfig,
        PreprocessConfig,
        ReproduceConfig,
        TrainConfig,
    )
    from lulc.core.schema import InputError

__all__ = [
    "ClassifyConfig", "EvaluateConfig", "ExportConfig", "ExportModelConfig", "ImportModelConfig",
    "InputConfig", "InputError", "MosaicConfig", "PreprocessConfig", "ReproduceConfig", "TrainConfig",
    "__version__", "classify", "classify_array", "classify_share", "estimate_areas", "evaluate",
    "evaluate_in_memory", "export_map", "export_model", "forecast", "import_model", "load_model",
    "load_scheme", "make_mosaic", "make_stacks", "open_map", "open_stack", "reproduce", "train",
    "train_arrays",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'lulc' has no attribute '{name}'")
    import lulc.api

    value = getattr(lulc.api, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
