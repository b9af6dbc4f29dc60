"""The commands of the page "Choose your channels" run as they are written, on small files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio

from lulc.datasets.manifest import read_manifest
from lulc.demo.further import write_further
from lulc.demo.landscape import simulate, write_scene

from .test_channel_sets import tif
from .test_documents import ROOT, blocks

pytestmark = pytest.mark.documents

PAGE = "docs/howto/channels.md"
SMALL = "--epochs 1 --steps 2 --validation-steps 1 --batch-size 2 --crop-sizes 32 --validation-crop-sizes 32 "
SMALL += "--filters 4 -q"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the page names, where its bash blocks were run."""
    folder = tmp_path_factory.mktemp("channels")
    scene = simulate((96, 96), 1)
    write_scene(scene, folder / "demo")
    write_further(scene, folder / "demo")
    side, rng = 128, np.random.default_rng(1)
    classes = (np.indices((side, side)).sum(0) // 16 % 3 + 1).astype(np.uint8)
    for name in ("landsat", "embedding"):
        (folder / name).mkdir()
        tif(folder / name / "labels.tif", classes[None], meters=30 if name == "landsat" else 10)
    for number in range(1, 8):
        stored = (7500 + 2000 * classes.astype(int) + rng.integers(0, 900, (1, side, side))).astype(np.uint16)
        file = folder / "landsat" / f"LC08_L2SP_190017_20200714_20200912_02_T1_SR_B{number}.TIF"
        tif(file, stored, meters=30, nodata=0)
    clear, cloud = 21824, 22280
    quality = np.full((1, side, side), clear, np.uint16)
    quality[0, :, np.arange(side) // 32 % 2 == 1] = cloud
    tif(folder / "landsat" / "LC08_L2SP_190017_20200714_20200912_02_T1_QA_PIXEL.TIF",
        quality, meters=30, nodata=1)  # fmt: skip
    tif(
        folder / "embedding" / "a.tif", rng.integers(-127, 128, (64, side, side)).astype(np.int8), nodata=-128
    )
    for script in ("preprocess", "train_model", "make_classifications"):
        (folder / f"{script}.py").symlink_to(ROOT / f"{script}.py")
    return folder


def test_every_command_of_the_page_runs(workplace: Path) -> None:
    script = "\n".join(blocks(PAGE, "bash"))
    # The page cuts and trains as one does with a scene of its own size, which takes longer than a test may.
    script = script.replace("--size 256", "--size 48 --gap 0")
    script = re.sub(r"^(python train_model\.py .*)$", rf"\1 {SMALL}", script, flags=re.MULTILINE)
    (workplace / "channels.yaml").unlink(missing_ok=True)
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    env = os.environ | {"PYTHONPATH": str(ROOT), "PATH": path}
    before, printed, after = script.partition("> channels.yaml\n")
    assert printed
    own = next(text for text in blocks(PAGE, "yaml") if "NDWI" in text)
    for part in (before + printed, None, after):
        if part is None:
            # As the reader does who changes the list of the printed file.
            (workplace / "channels.yaml").write_text(own, encoding="utf-8")
            continue
        done = subprocess.run(
            ["bash", "-e", "-c", part], cwd=workplace, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
    expected = {"own": 4, "seasons": 28, "radar": 5, "terrain": 7, "landsat": 7, "embedding": 64}
    found = {name: len(read_manifest(workplace / name / "stacks").channels) for name in expected}
    assert found == expected
    stacks = read_manifest(workplace / "landsat" / "stacks").stacks
    share = np.mean([np.isnan(np.load(s.image)).mean() for s in stacks])
    assert 0.4 < share < 0.6
    for name in ("seasons", "radar"):
        with rasterio.open(workplace / name / "map.tif") as file:
            assert (file.read(1) > 0).any()
