"""Shapes of models as plain data, with the variables and geometry of a network; needs no framework."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated

from lulc.core.codec import REQUIRED, Jsonable, limits, schema_of
from lulc.core.documents import schema_problem
from lulc.core.schema import MAX_CLASSES, InputError

MAX_STAGES = 8

BLOCKS = ("transpose", "upsample", "sum")
"""Ways to upsample and to join the skip connection in a decoder stage."""

Count = Annotated[int, limits(minimum=1)]
Classes = Annotated[int, limits(minimum=1, maximum=MAX_CLASSES)]
Channels = Annotated[int, limits(minimum=1, maximum=1024)]
Widths = Annotated[tuple[Annotated[int, limits(minimum=1, maximum=4096)], ...], limits(maxItems=MAX_STAGES)]
Radii = Annotated[tuple[Annotated[int, limits(minimum=1, maximum=64)], ...], limits(maxItems=MAX_STAGES)]
Hidden = Annotated[tuple[Annotated[int, limits(minimum=1, maximum=1024)], ...], limits(maxItems=8)]


@dataclass(frozen=True)
class _Classifier(Jsonable):
    classes: Classes
    channels: Channels

    @property
    def activation(self) -> str:
        """Activation of the last layer, or applied to its logits."""
        return "sigmoid" if self.classes == 1 else "softmax"


@dataclass(frozen=True)
class PixelConfig(_Classifier):
    """Model of single pixels: a forest and dense networks.

    Parameters
    ----------
    classes
        Outputs; 1 for one class against the rest.
    radii
        Radii in pixels of the squares for mean and deviation of the channels.
    dense
        Outputs of the hidden layers of each dense network; empty for a forest alone.
    forests
        Weight of the forest, in dense networks.
    """

    radii: Radii
    parameters: Count
    dense: Annotated[tuple[Hidden, ...], limits(maxItems=32)] = ()
    forests: Annotated[int, limits(minimum=1, maximum=100)] = 1

    @property
    def features(self) -> int:
        """Features of a pixel."""
        return self.channels * (1 + 2 * len(self.radii))


@dataclass(frozen=True)
class GraphConfig(_Classifier):
    """Imported network, stored as an ONNX graph.

    Parameters
    ----------
    classes
        Outputs; 1 for one class against the rest.
    image_last, scores_last
        True if channels and classes are the last axis, False if the second.
    logits
        True if its output is logits, not probabilities.
    takes_nan
        True if it handles NaN (no data) itself; otherwise NaN is replaced by the mean.
    batch
        Images of a call; 0 for any number.
    side
        Rows and columns of its only size of image; empty for any size.
    reason
        Reason why no halo makes windows exact, so that they are blended; empty if one does.
    values
        Largest number of values in memory per pixel.
    """

    parameters: Count
    image_last: bool
    scores_last: bool
    logits: bool
    takes_nan: bool
    batch: Annotated[int, limits(minimum=0, maximum=1)]
    side: Annotated[tuple[Annotated[int, limits(minimum=1, maximum=2**14)], ...], limits(maxItems=2)]
    reason: Annotated[str, limits(maxLength=400)]
    values: Count

    @property
    def exact(self) -> bool:
        """True if windows with the halo give the result of the whole image."""
        return not self.reason


@dataclass(frozen=True)
class NetworkConfig(Jsonable):
    """Shape of a U-Net; the default is the original network.

    Raises InputError if the fields contradict each other or lie outside their range.

    Parameters
    ----------
    classes
        Outputs; 1 for one class against the rest (sigmoid).
    filters
        Filters of the encoder stages, from full resolution downwards; their number is the depth.
    decoder_filters
        Filters of the decoder stages, from the coarsest upwards; by default the mirrored encoder filters
        for block sum, else twice these.
    bottleneck
        3x3 convolutions between encoder and decoder, each with twice the last encoder filters.
    block
        Decoder stage: transpose (transposed convolution, concatenation, convolution), upsample (repetition,
        concatenation, two convolutions), or sum (1x1 convolution to the channels of the skip connection,
        repetition, sum, convolution; the last convolution is 1x1).
    dropout
        Rate before the last convolution, 0..1.
    norm
        Normalisation after each convolution: batch, or none (the convolutions then have a bias).
    activation
        softmax, sigmoid for a single class, or linear for a pretrained network, which fills in masked values
        of its channels.
    """

    classes: Annotated[Classes, REQUIRED] = 13
    channels: Annotated[Channels, REQUIRED] = 14
    filters: Annotated[Widths, limits(minItems=1), REQUIRED] = (32, 64, 128, 256)
    decoder_filters: Widths = ()
    bottleneck: Annotated[int, limits(minimum=0, maximum=16)] = 0
    block: Annotated[str, limits(enum=BLOCKS)] = "transpose"
    dropout: Annotated[float, limits(minimum=0, exclusiveMaximum=1)] = 0.0
    norm: Annotated[str, limits(enum=("batch", "none"))] = "batch"
    activation: Annotated[str, limits(enum=("softmax", "sigmoid", "linear"))] = "softmax"

    def __post_init__(self) -> None:
        if not self.decoder_filters:
            factor = 1 if self.block == "sum" else 2
            object.__setattr__(self, "decoder_filters", tuple(factor * f for f in reversed(self.filters)))
        if problem := schema_problem(self.to_json(), schema_of(NetworkConfig)) or self._contradiction():
            raise InputError(f"cannot build the network, since {problem}", "Change the network's options.")

    def _contradiction(self) -> str:
        stages, decoder = len(self.filters), len(self.decoder_filters)
        if stages != decoder:
            return f"it has {decoder} decoder and {stages} encoder stages, expected as many of each"
        if self.activation not in ("linear", "sigmoid" if self.classes == 1 else "softmax"):
            return (
                f"its activation is '{self.activation}' with {self.classes} classes, expected sigmoid "
                "with 1 class or softmax with more"
            )
        return ""

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(math.prod(shape) for shape in self.variable_shapes().values())

    @property
    def depth(self) -> int:
        """Number of times that the resolution is halved."""
        return len(self.decoder_filters)

    @property
    def bottleneck_filters(self) -> int:
        """Filters of the convolutions between encoder and decoder."""
        return 2 * self.filters[-1]

    @property
    def head_side(self) -> int:
        """Side in pixels of the kernel of the last convolution."""
        return 1 if self.block == "sum" else 3

    @property
    def multiplications(self) -> dict[str, float]:
        """Multiplications of each convolution per pixel of the image, in the order of computation."""
        kernels = {n: s for n, s in self.variable_shapes().items() if n.endswith("/kernel")}
        return {
            name.removesuffix("/kernel"): math.prod(shape) / 4 ** self._halvings(name)
            for name, shape in kernels.items()
        }

    def _halvings(self, name: str) -> int:
        """Return how often the resolution of the input of the kernel `name` is halved."""
        depth = len(self.filters)
        if name.startswith("final_conv"):
            return 0
        if name.startswith("bottleneck"):
            return depth
        stage = int(re.findall(r"stage(\d+)_", name)[0])
        if name.startswith("encoder"):
            return stage
        coarse = name.endswith("_up/kernel") or (self.block == "sum" and name.endswith("_conv1/kernel"))
        return depth - 1 - stage + coarse

    def variable_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each variable by ``layer/variable``, as in weights files."""
        shapes: dict[str, tuple[int, ...]] = {
            "standardization/mean": (self.channels,),
            "standardization/std": (self.channels,),
        }
        wide = self.channels
        for s, filters in enumerate(self.filters):
            shapes |= self._convolution(f"encoder_stage{s}", 1, wide, filters)
            shapes |= self._convolution(f"encoder_stage{s}", 2, filters, filters)
            wide = filters
        for i in range(1, self.bottleneck + 1):
            shapes |= self._convolution("bottleneck", i, wide, self.bottleneck_filters)
            wide = self.bottleneck_filters
        for s, (filters, skip) in enumerate(zip(self.decoder_filters, reversed(self.filters), strict=True)):
            stage = f"decoder_stage{s}"
            if self.block == "transpose":
                shapes[f"{stage}_up/kernel"] = (4, 4, filters, wide)
                shapes |= self._after(f"{stage}_up", f"{stage}_bn1", filters)
                shapes |= self._convolution(stage, 2, filters + skip, filters)
            elif self.block == "sum":
                shapes |= self._convolution(stage, 1, wide, skip, side=1)
                shapes |= self._convolution(stage, 2, skip, filters)
            else:
                shapes |= self._convolution(stage, 1, wide + skip, filters)
                shapes |= self._convolution(stage, 2, filters, filters)
            wide = filters
        kernel = (self.head_side, self.head_side, wide, self.classes)
        return shapes | {"final_conv/kernel": kernel, "final_conv/bias": (self.classes,)}

    def _convolution(
        self, stage: str, i: int, wide: int, filters: int, side: int = 3
    ) -> dict[str, tuple[int, ...]]:
        kernel = {f"{stage}_conv{i}/kernel": (side, side, wide, filters)}
        return kernel | self._after(f"{stage}_conv{i}", f"{stage}_bn{i}", filters)

    def _after(self, layer: str, norm: str, filters: int) -> dict[str, tuple[int, ...]]:
        if self.norm == "none":
            return {f"{layer}/bias": (filters,)}
        return {f"{norm}/{v}": (filters,) for v in ("gamma", "beta", "moving_mean", "moving_variance")}


@dataclass(frozen=True)
class Geometry:
    """Alignment and context of the windows of a network, in pixels.

    Parameters
    ----------
    stride
        Window origins and sizes are multiples of this.
    halo
        Width of the input around a window that its result depends on, a multiple of the stride.
    radius
        Largest distance between a pixel of the output and a pixel of the input that it depends on.
    """

    stride: int
    halo: int
    radius: int


Span = tuple[int, int]
"""First and last index along one axis, both included."""


def geometry(network: NetworkConfig) -> Geometry:
    """Return stride, halo and radius of a network, exactly.

    The span of the input that a span of the output depends on is followed backwards through the layers. The
    halo covers the receptive field of the outermost cell of one stride.
    """
    stride = 2 ** len(network.filters)
    first, last = _needed(network, (0, stride - 1))
    halo = max(-first, last - (stride - 1))
    spans = [_needed(network, (pixel, pixel)) for pixel in range(stride)]
    radius = max(max(pixel - a, b - pixel) for pixel, (a, b) in enumerate(spans))
    return Geometry(stride, -(-halo // stride) * stride, radius)


def _needed(network: NetworkConfig, output: Span) -> Span:
    """Return the input pixels that the output pixels `output` depend on, along one axis."""
    span = _widened(output, network.head_side // 2)
    skips: list[Span] = []
    for _ in network.decoder_filters:
        # In upsample two convolutions of 3 x 3 follow the joint, else one.
        joined = _widened(span, 2 if network.block == "upsample" else 1)
        skips.append(joined)
        # A transposed convolution of 4 x 4 reaches one pixel further on both sides than repetition.
        first, last = _widened(joined, 1 if network.block == "transpose" else 0)
        span = first // 2, last // 2
    span = _widened(span, network.bottleneck)
    for skip in reversed(skips):
        pooled = 2 * span[0], 2 * span[1] + 1
        span = _widened((min(pooled[0], skip[0]), max(pooled[1], skip[1])), 2)
    return span


def _widened(span: Span, pixels: int) -> Span:
    return span[0] - pixels, span[1] + pixels
