"""What a typed program may write; `make lint` checks it, nobody runs it."""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

import lulc
from lulc.inference.classify import ClassificationResult, Forecast
from lulc.maps.reader import ClassMap
from lulc.training.train import TrainingResult


def use() -> None:
    config = lulc.TrainConfig(data=("stacks",), out="run", epochs=2)
    assert_type(lulc.train(config, epochs=3), TrainingResult)
    assert_type(lulc.train(data=["stacks", Path("more")], out=Path("run"), crop_sizes=[64]), TrainingResult)
    assert_type(lulc.classify(model="run", inputs=("a.tif",), out="map.tif"), ClassificationResult)
    assert_type(lulc.forecast(model="run", inputs="a.tif", out="map.tif"), Forecast)
    with lulc.open_map(Path("map.tif"), scheme="clc-level1") as land_cover:
        assert_type(land_cover, ClassMap)
    lulc.open_map(5)  # type: ignore[arg-type]
    lulc.load_scheme("clc-level1", codes=3)  # type: ignore[arg-type]
