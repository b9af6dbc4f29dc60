"""Encoders of `keras.applications` in words: where each halves the resolution, and its variables.

Plain data, from which the variables of a network are known without a framework, so that a weights file is
compared before anything is allocated for it. Names of layers are those of Keras.

References
----------
He et al. 2016, doi:10.1109/CVPR.2016.90, table 1 (ResNet); Tan and Le 2021, arXiv:2104.00298, section 3.3
(EfficientNetV2); Liu et al. 2022, doi:10.1109/CVPR52688.2022.01167, section 3 (ConvNeXt).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

Shapes = dict[str, tuple[int, ...]]
"""Shapes by ``layer/variable``."""

LEVELS = 5
"""How often an encoder halves the resolution; fewer where the decoder has fewer stages."""


@dataclass(frozen=True)
class Level:
    """What an encoder computes at one resolution.

    Parameters
    ----------
    width
        Channels of its result; 0 where the encoder passes this resolution over.
    entry
        Name of the layer that takes the result further; empty where it is the application's own output.
    shapes
        Its variables.
    """

    width: int
    entry: str
    shapes: Shapes


@dataclass(frozen=True)
class Backbone:
    """One encoder.

    Parameters
    ----------
    application
        Its name in `keras.applications`.
    first
        Name of its first convolution, which takes the channels of the image.
    order
        Order of the colours that its ImageNet weights expect.
    deviation
        Standard deviation of each colour of ImageNet in the units that these weights expect.
    describe
        Channels of the image to its levels, at strides 2, 4, 8, 16 and 32.
    holder
        Name of a layer to the name of the layer that Keras nests it in, which may be the same.
    """

    application: str
    first: str
    order: str
    deviation: tuple[float, float, float]
    describe: Callable[[int], tuple[Level, ...]]
    holder: Callable[[str], str] = str

    @property
    def shallowest(self) -> int:
        """Fewest levels that can be taken: those down to its first result."""
        return next(i for i, level in enumerate(self.describe(3), 1) if level.width)

    def widths(self, channels: int, levels: int) -> tuple[int, ...]:
        """Channels at strides 1, 2, 4, ..., the image first; 0 where there is no result."""
        return (channels, *(level.width for level in self.describe(channels)[:levels]))

    def variable_shapes(self, channels: int, levels: int = LEVELS) -> Shapes:
        """Shape of each variable of the first `levels` levels."""
        return {n: s for level in self.describe(channels)[:levels] for n, s in level.shapes.items()}

    def groups(self) -> dict[str, list[str]]:
        """Variables by the layers that a weights file has, those nested within one together."""
        found: dict[str, list[str]] = {}
        for name in self.variable_shapes(len(self.order)):
            found.setdefault(self.holder(name.split("/")[0]), []).append(name)
        return found


def _convolution(name: str, *kernel: int, bias: bool = True) -> Shapes:
    return {f"{name}/kernel": kernel} | ({f"{name}/bias": (kernel[-1],)} if bias else {})


def _batch_norm(name: str, width: int) -> Shapes:
    return {f"{name}/{v}": (width,) for v in ("gamma", "beta", "moving_mean", "moving_variance")}


def _layer_norm(name: str, width: int) -> Shapes:
    return {f"{name}/{v}": (width,) for v in ("gamma", "beta")}


def _resnet(blocks: tuple[int, ...], channels: int) -> tuple[Level, ...]:
    stem = _convolution("conv1_conv", 7, 7, channels, 64) | _batch_norm("conv1_bn", 64)
    levels = [Level(64, "pool1_pad", stem)]
    wide = 64
    for stage, count in enumerate(blocks, 2):
        narrow = 64 * 2 ** (stage - 2)
        shapes: Shapes = {}
        for block in range(1, count + 1):
            name = f"conv{stage}_block{block}"
            if block == 1:
                shapes |= _convolution(f"{name}_0_conv", 1, 1, wide, 4 * narrow)
                shapes |= _batch_norm(f"{name}_0_bn", 4 * narrow)
            sizes = ((1, wide, narrow), (3, narrow, narrow), (1, narrow, 4 * narrow))
            for i, (side, before, after) in enumerate(sizes, 1):
                shapes |= _convolution(f"{name}_{i}_conv", side, side, before, after)
                shapes |= _batch_norm(f"{name}_{i}_bn", after)
            wide = 4 * narrow
        # The shortcut reads the same result as the first convolution of the next stage.
        levels.append(Level(wide, f"conv{stage + 1}_block1_1_conv" if stage < LEVELS else "", shapes))
    return tuple(levels)


_Stage = tuple[int, int, int, int, bool]
"""Repetitions, channels, expansion, stride, and whether it squeezes and excites."""

_B: tuple[_Stage, ...] = (
    (1, 16, 1, 1, False), (2, 32, 4, 2, False), (2, 48, 4, 2, False),
    (3, 96, 4, 2, True), (5, 112, 6, 1, True), (8, 192, 6, 2, True),
)  # fmt: skip
_S: tuple[_Stage, ...] = (
    (2, 24, 1, 1, False), (4, 48, 4, 2, False), (4, 64, 4, 2, False),
    (6, 128, 4, 2, True), (9, 160, 6, 1, True), (15, 256, 6, 2, True),
)  # fmt: skip


def _efficientnet(
    stages: tuple[_Stage, ...], stem: int, width: float, depth: float, channels: int
) -> tuple[Level, ...]:
    def scaled(filters: int) -> int:
        return max(8, int(filters * width + 4) // 8 * 8)

    wide = scaled(stem)
    shapes = _convolution("stem_conv", 3, 3, channels, wide, bias=False) | _batch_norm("stem_bn", wide)
    levels = []
    for number, (count, filters, expansion, stride, squeezes) in enumerate(stages, 1):
        if stride == 2:
            levels.append(Level(wide, f"block{number}a_expand_conv", shapes))
            shapes = {}
        for i in range(math.ceil(depth * count)):
            name = f"block{number}{chr(ord('a') + i)}_"
            build = _inverted if squeezes else _fused
            shapes |= build(name, wide, scaled(filters), expansion)
            wide = scaled(filters)
    return (*levels, Level(wide, "top_conv", shapes))


def _fused(name: str, wide: int, filters: int, expansion: int) -> Shapes:
    """Variables of a block whose expansion is a 3x3 convolution."""
    inner, side, shapes = wide * expansion, 3, Shapes()
    if expansion > 1:
        shapes |= _convolution(f"{name}expand_conv", 3, 3, wide, inner, bias=False)
        shapes |= _batch_norm(f"{name}expand_bn", inner)
        side = 1
    shapes |= _convolution(f"{name}project_conv", side, side, inner, filters, bias=False)
    return shapes | _batch_norm(f"{name}project_bn", filters)


def _inverted(name: str, wide: int, filters: int, expansion: int) -> Shapes:
    """Variables of a block with a depthwise convolution between two of 1x1."""
    inner, squeezed = wide * expansion, max(1, wide // 4)
    shapes = _convolution(f"{name}expand_conv", 1, 1, wide, inner, bias=False)
    shapes |= _batch_norm(f"{name}expand_bn", inner)
    shapes |= {f"{name}dwconv2/kernel": (3, 3, inner, 1)} | _batch_norm(f"{name}bn", inner)
    shapes |= _convolution(f"{name}se_reduce", 1, 1, inner, squeezed)
    shapes |= _convolution(f"{name}se_expand", 1, 1, squeezed, inner)
    shapes |= _convolution(f"{name}project_conv", 1, 1, inner, filters, bias=False)
    return shapes | _batch_norm(f"{name}project_bn", filters)


def _convnext(
    name: str, blocks: tuple[int, ...], widths: tuple[int, ...], channels: int
) -> tuple[Level, ...]:
    shapes = _convolution(f"{name}_stem_conv", 4, 4, channels, widths[0])
    shapes |= _layer_norm(f"{name}_stem_layernorm", widths[0])
    levels = [Level(0, "", {})]
    for stage, (count, wide) in enumerate(zip(blocks, widths, strict=True)):
        if stage:
            before = widths[stage - 1]
            shapes = _layer_norm(f"{name}_downsampling_layernorm_{stage - 1}", before)
            shapes |= _convolution(f"{name}_downsampling_conv_{stage - 1}", 2, 2, before, wide)
        for i in range(count):
            block = f"{name}_stage_{stage}_block_{i}"
            shapes |= _convolution(f"{block}_depthwise_conv", 7, 7, 1, wide)
            shapes |= _layer_norm(f"{block}_layernorm", wide)
            shapes |= _convolution(f"{block}_pointwise_conv_1", wide, 4 * wide)
            shapes |= _convolution(f"{block}_pointwise_conv_2", 4 * wide, wide)
            shapes[f"{block}_layer_scale/gamma"] = (wide,)
        entry = f"{name}_downsampling_block_{stage}" if stage < len(blocks) - 1 else ""
        levels.append(Level(wide, entry, shapes))
    return tuple(levels)


def _holder(layer: str) -> str:
    """Keras nests ConvNeXt's convolutions that lower the resolution with their normalisations."""
    stem = re.sub(r"_stem_(conv|layernorm)$", "_stem", layer)
    return re.sub(r"_downsampling_(conv|layernorm)(_\d)$", r"_downsampling_block\2", stem)


_DEVIATION = (0.229, 0.224, 0.225)
"""Of red, green and blue over ImageNet, 0..1."""


def _backbones() -> dict[str, Backbone]:
    units = (1.0, 1.0, 1.0)
    found = {}
    for depth, blocks in ((50, (3, 4, 6, 3)), (101, (3, 4, 23, 3)), (152, (3, 8, 36, 3))):
        # Weights that come from Caffe: blue first, 0..255 without a division.
        scale = tuple(255 * s for s in _DEVIATION)
        found[f"resnet{depth}"] = Backbone(
            f"ResNet{depth}", "conv1_conv", "BGR", (scale[0], scale[1], scale[2]), partial(_resnet, blocks)
        )
    for number, (width, deep) in enumerate(((1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4))):
        describe = partial(_efficientnet, _B, 32, width, deep)
        found[f"efficientnetv2-b{number}"] = Backbone(
            f"EfficientNetV2B{number}", "stem_conv", "RGB", units, describe
        )
    scale = tuple(255 / 128 * s for s in _DEVIATION)
    found["efficientnetv2-s"] = Backbone(
        "EfficientNetV2S", "stem_conv", "RGB", (scale[0], scale[1], scale[2]),
        partial(_efficientnet, _S, 24, 1.0, 1.0),
    )  # fmt: skip
    for size, third, widths in (
        ("tiny", 9, (96, 192, 384, 768)),
        ("small", 27, (96, 192, 384, 768)),
        ("base", 27, (128, 256, 512, 1024)),
    ):
        name = f"convnext_{size}"
        found[f"convnext-{size}"] = Backbone(
            f"ConvNeXt{size.capitalize()}", f"{name}_stem_conv", "RGB", units,
            partial(_convnext, name, (3, 3, third, 3), widths),
            _holder,
        )  # fmt: skip
    return found


BACKBONES = _backbones()
"""Encoders by the names that options and cards use."""
