"""The same network in PyTorch below MONAI's sliding window: what a user would pick instead.

Run by an interpreter that has both (``pip install '.[benchmarks]'`` in the project's folder), with the
files of bands and indices and that of the map; prints seconds as JSON. Its speed does not depend on its
weights, so these are random, and the batch norms are folded away as in an exported network. As in the
original, the mosaic and the result are in memory, and the map is uncompressed.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import pairwise

import numpy as np
import rasterio
import torch
from monai.inferers import SlidingWindowInferer
from torch import nn

ENCODER, DECODER = (14, 32, 64, 128, 256), (256, 512, 256, 128, 64)


def convolve(*widths: int) -> nn.Sequential:
    """3x3 convolutions, each with a ReLU."""
    layers = ((nn.Conv2d(a, b, 3, padding=1), nn.ReLU()) for a, b in pairwise(widths))
    return nn.Sequential(*(layer for pair in layers for layer in pair))


class UNet(nn.Module):
    """The original network: (n, 14, y, x) to (n, 13, y, x)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(convolve(a, b, b) for a, b in pairwise(ENCODER))
        self.up = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(a, b, 4, stride=2, padding=1), nn.ReLU())
            for a, b in pairwise(DECODER)
        )
        joined = zip(DECODER[1:], reversed(ENCODER[1:]), strict=True)
        self.decoder = nn.ModuleList(convolve(a + skip, a) for a, skip in joined)
        self.final = nn.Conv2d(64, 13, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
            x = nn.functional.max_pool2d(x, 2)
        for rise, stage in zip(self.up, self.decoder, strict=True):
            x = stage(torch.cat([rise(x), skips.pop()], 1))
        result: torch.Tensor = self.final(x).softmax(1)
        return result


def main(bands: str, indices: str, out: str) -> None:
    """Classify a mosaic; one window before it counts as part of the start."""
    network = UNet().eval().to(memory_format=torch.channels_last)
    infer = SlidingWindowInferer(roi_size=256, sw_batch_size=1, overlap=0.5, mode="gaussian")
    with rasterio.open(bands) as b, rasterio.open(indices) as i:
        image = np.concatenate([b.read(), i.read()]).astype(np.float32)
        profile = {k: b.profile[k] for k in ("crs", "transform", "width", "height")}
    image -= image.mean((1, 2), keepdims=True)
    image /= image.std((1, 2), keepdims=True)
    with torch.inference_mode():
        x = torch.from_numpy(image)[None]
        infer(x[..., :256, :256], network)
        started = time.perf_counter()
        y = infer(x, network)[0].numpy()
        predicted = time.perf_counter()
    profile |= {"driver": "GTiff", "count": len(y) + 1, "dtype": "float32"}
    with rasterio.open(out, "w", **profile) as target:
        target.write(y.argmax(0).astype(np.float32) + 1, 1)
        target.write(y, list(range(2, len(y) + 2)))
    stages = {"windows": predicted - started, "finish": time.perf_counter() - predicted}
    print(json.dumps({"pixels": y[0].size, **stages}))


if __name__ == "__main__":
    main(*sys.argv[1:])
