"""Model files that run code, read other files, fill memory or lie are refused with the reason."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from lulc.core.schema import InputError, LandCoverClass, Legend
from lulc.core.statistics import Statistics
from lulc.models.archive import CONFIG, METADATA, WEIGHTS, read_archive
from lulc.models.backend import keras
from lulc.models.card import Channel, ModelCard
from lulc.models.legacy import read_legacy
from lulc.models.unet import NetworkConfig, build_unet, geometry
from lulc.models.weights import arrays_of, load_model, save_model

pytestmark = pytest.mark.integration

SECRET = "the canary's bytes"
KERNEL = "layers/conv2d/vars/0"

Members = dict[str, bytes]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = NetworkConfig(classes=2, channels=2, filters=(3,))
    windows = geometry(network)
    card = ModelCard(
        name="honest",
        channels=(Channel("B02"), Channel("B03")),
        network=network,
        legend=Legend("t", tuple(LandCoverClass(i, f"c{i}", "#000000") for i in (1, 2))),
        statistics=Statistics((0.0, 0.0), (1.0, 1.0)),
        stride=windows.stride,
        halo=windows.halo,
    )
    path = tmp_path_factory.mktemp("original") / "model.keras"
    save_model(build_unet(network), card, path)
    return path


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    path = tmp_path / "canary.h5"
    with h5py.File(path, "w") as file:
        file["secret"] = np.frombuffer(SECRET.encode(), "uint8").astype("float32")
    return path


def members_of(path: Path) -> Members:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(folder: Path, original: Path, members: Members, *, compression: int = zipfile.ZIP_STORED) -> Path:
    """The members as a model file, with a card that vouches for it: a hash is no proof of good will."""
    path = folder / "model.keras"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    vouch(path, original)
    return path


def vouch(path: Path, original: Path, **changes: Any) -> None:
    content = path.read_bytes()
    card = json.loads(original.with_suffix(".json").read_text())
    del card["seal"]
    card |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)} | changes
    path.with_suffix(".json").write_text(json.dumps(card))


def change_weights(members: Members, change: Callable[[h5py.File], object]) -> Members:
    buffer = io.BytesIO(members[WEIGHTS])
    with h5py.File(buffer, "r+") as file:
        change(file)
    return members | {WEIGHTS: buffer.getvalue()}


def change_config(members: Members, change: Callable[[dict], object]) -> Members:
    config = json.loads(members[CONFIG])
    change(config)
    return members | {CONFIG: json.dumps(config).encode()}


def refuse(path: Path, reason: str) -> None:
    started = time.monotonic()
    with pytest.raises(InputError, match=reason) as caught:
        load_model(path)
    assert time.monotonic() - started < 2
    assert path.name in str(caught.value) and SECRET not in str(caught.value)


def test_the_honest_original_loads(original: Path) -> None:
    load_model(original)


@pytest.mark.parametrize(
    "name",
    [
        "Lambda",
        "TFSMLayer",
        "TorchModuleWrapper",
        "JaxLayer",
        "Embedding",
        "evil>Layer",
        "function",
    ],
)
def test_classes_that_no_network_here_has_are_refused(tmp_path: Path, original: Path, name: str) -> None:
    def change(config: dict) -> None:
        config["config"]["layers"][3]["class_name"] = name

    path = write(tmp_path, original, change_config(members_of(original), change))
    refuse(path, "Lambda layer" if name == "Lambda" else f"the class '{name}'")


def test_classes_deep_in_a_configuration_are_refused(tmp_path: Path, original: Path) -> None:
    def change(config: dict) -> None:
        config["config"]["layers"][2]["config"]["kernel_initializer"] = [
            {"x": {"class_name": "function", "config": "os.system", "module": "builtins"}}
        ]

    refuse(write(tmp_path, original, change_config(members_of(original), change)), "the class 'function'")


def external_link(file: h5py.File, canary: Path) -> None:
    del file[KERNEL]
    file[KERNEL] = h5py.ExternalLink(str(canary), "/secret")


def soft_link(file: h5py.File, canary: Path) -> None:
    file["layers/again"] = h5py.SoftLink("/layers/conv2d")


def hard_link(file: h5py.File, canary: Path) -> None:
    file["layers/again"] = file["layers/conv2d"]


def cycle(file: h5py.File, canary: Path) -> None:
    file["layers/conv2d/up"] = file["layers"]


def external_storage(file: h5py.File, canary: Path) -> None:
    shape = file[KERNEL].shape
    del file[KERNEL]
    file.create_dataset(KERNEL, shape, "float32", external=[(str(canary), 0, h5py.h5f.UNLIMITED)])


def virtual(file: h5py.File, canary: Path) -> None:
    layout = h5py.VirtualLayout((18,), "float32")
    layout[:] = h5py.VirtualSource(str(canary), "secret", (18,))
    del file[KERNEL]
    file.create_virtual_dataset(KERNEL, layout)


def shape_bomb(file: h5py.File, canary: Path) -> None:
    del file[KERNEL]
    file.create_dataset(KERNEL, (3, 3, 2, 2**33), "float32", chunks=(1, 1, 1, 1024))


def late_allocation(file: h5py.File, canary: Path) -> None:
    del file[KERNEL]
    file.create_dataset(KERNEL, (3, 3, 2, 2**40), "float32")


def compressed(file: h5py.File, canary: Path) -> None:
    del file[KERNEL]
    file.create_dataset(KERNEL, data=np.zeros((3, 3, 2, 100_000), "float32"), compression="gzip")


def objects(file: h5py.File, canary: Path) -> None:
    del file[KERNEL]
    file.create_dataset(KERNEL, (3,), h5py.string_dtype())


def references(file: h5py.File, canary: Path) -> None:
    file.create_dataset("layers/references", (3,), h5py.ref_dtype)


def compound(file: h5py.File, canary: Path) -> None:
    del file[KERNEL]
    file.create_dataset(KERNEL, data=np.zeros(3, [("a", "f4"), ("b", "f4")]))


def integers(file: h5py.File, canary: Path) -> None:
    shape = file[KERNEL].shape
    del file[KERNEL]
    file[KERNEL] = np.ones(shape, "int32")


def not_a_number(file: h5py.File, canary: Path) -> None:
    file[KERNEL][0, 0, 0, 0] = np.nan


def infinite(file: h5py.File, canary: Path) -> None:
    file[KERNEL][0, 0, 0, 0] = -np.inf


def negative_variance(file: h5py.File, canary: Path) -> None:
    file["layers/batch_normalization/vars/3"][0] = -1


def zero_deviation(file: h5py.File, canary: Path) -> None:
    file["layers/standardization/vars/1"][0] = 0


def other_mean(file: h5py.File, canary: Path) -> None:
    file["layers/standardization/vars/0"][0] = 7


def other_shape(file: h5py.File, canary: Path) -> None:
    kernel = file[KERNEL][()]
    del file[KERNEL]
    file[KERNEL] = kernel[..., :2]


def missing(file: h5py.File, canary: Path) -> None:
    del file[KERNEL]


def renamed(file: h5py.File, canary: Path) -> None:
    file["layers/conv2d/vars"].attrs["name"] = "another"


def more(file: h5py.File, canary: Path) -> None:
    file["layers/conv2d/vars/2"] = np.zeros(3, "float32")


def twice(file: h5py.File, canary: Path) -> None:
    file["layers/conv2d_1/vars"].attrs["name"] = file["layers/conv2d/vars"].attrs["name"]


def optimizer(file: h5py.File, canary: Path) -> None:
    file["optimizer/vars/0"] = np.zeros(3, "float32")


def many_groups(file: h5py.File, canary: Path) -> None:
    deep = file
    for _ in range(40):
        deep = deep.create_group("g")


@pytest.mark.parametrize(
    "change, reason",
    [
        (external_link, "external link"),
        (soft_link, "soft link"),
        (hard_link, "linked twice"),
        (cycle, "linked twice"),
        (external_storage, "another file"),
        (virtual, "another file"),
        (shape_bomb, "shape bomb"),
        (late_allocation, "shape bomb"),
        (compressed, "compressed"),
        (objects, "expected numbers"),
        (references, "expected numbers"),
        (compound, "expected numbers"),
        (integers, "floating-point"),
        (not_a_number, "NaN or infinite"),
        (infinite, "NaN or infinite"),
        (negative_variance, "positive"),
        (zero_deviation, "positive"),
        (other_mean, "as their card says"),
        (other_shape, "shapes differ"),
        (missing, "lacks encoder_stage0_conv1/kernel"),
        (renamed, "no variable of a layer"),
        (more, "no variable of a layer"),
        (twice, "twice"),
        (optimizer, "no variable"),
        (many_groups, "too deep"),
    ],
)
def test_weights_that_are_more_or_less_than_arrays_are_refused(
    tmp_path: Path, original: Path, canary: Path, change: Callable, reason: str
) -> None:
    members = change_weights(members_of(original), lambda file: change(file, canary))
    refuse(write(tmp_path, original, members), reason)


@pytest.mark.parametrize(
    "name", ["../../escape.py", "/etc/cron.d/x", "assets/run.sh", "C:\\x", WEIGHTS + " "]
)
def test_members_beside_the_three_are_refused(tmp_path: Path, original: Path, name: str) -> None:
    refuse(write(tmp_path, original, members_of(original) | {name: b"x"}), "holds the members")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.keras"]


def test_missing_and_doubled_members_are_refused(tmp_path: Path, original: Path) -> None:
    members = members_of(original)
    del members[METADATA]
    refuse(write(tmp_path, original, members), "holds the members")
    members = members_of(original)
    path = write(tmp_path, original, members)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr(CONFIG, b"{}")
    vouch(tmp_path / "model.keras", original)
    refuse(tmp_path / "model.keras", "holds the members")


def test_zip_bombs_are_refused(tmp_path: Path, original: Path) -> None:
    bomb = members_of(original) | {WEIGHTS: bytes(300 * 2**20)}
    refuse(write(tmp_path, original, bomb, compression=zipfile.ZIP_DEFLATED), "zip bomb")
    bomb = members_of(original) | {CONFIG: b" " * 10**7}
    refuse(write(tmp_path, original, bomb, compression=zipfile.ZIP_DEFLATED), "zip bomb")


def test_members_packed_by_bzip2_or_lzma_are_refused_unread(tmp_path: Path, original: Path) -> None:
    for compression in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        packed = write(tmp_path, original, members_of(original), compression=compression)
        refuse(packed, "compressed in a way that Keras does not use")


@pytest.mark.parametrize("number", range(5))
def test_weights_that_crash_or_hang_hdf5_are_refused_by_a_process_that_dies_alone(
    number: int, tmp_path: Path, original: Path, shared: Path
) -> None:
    cases = sorted((shared / "cases" / "damaged").glob("*.hdf*")) + sorted(
        (shared / "cases" / "damaged").glob("*.h5")
    )
    if number >= len(cases):
        pytest.skip("needs the damaged weights beside the checkout")
    path = tmp_path / "model.keras"
    if cases[number].suffix == ".h5":
        path = path.with_suffix(".h5")
        path.write_bytes(cases[number].read_bytes())
    else:
        write(tmp_path, original, members_of(original) | {WEIGHTS: cases[number].read_bytes()})
    started = time.monotonic()
    with pytest.raises(InputError) as caught:
        read_archive(path)
    assert time.monotonic() - started < 20
    assert str(path) in caught.value.problem


def test_a_member_that_lies_about_its_size_is_refused(tmp_path: Path, original: Path) -> None:
    path = write(tmp_path, original, members_of(original))
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = struct.pack("<I", 2**31)
    path.write_bytes(bytes(content))
    vouch(path, original)
    refuse(path, "zip bomb|damaged")


def test_deeply_nested_configurations_are_refused(tmp_path: Path, original: Path) -> None:
    members = members_of(original) | {CONFIG: b"[" * 10**6 + b"]" * 10**6}
    refuse(write(tmp_path, original, members), "damaged|Lambda|class")


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"not a zip at all" * 100, b"\x89HDF\r\n\x1a\n" + bytes(100)]
)
def test_files_that_are_no_archive_are_refused(tmp_path: Path, original: Path, content: bytes) -> None:
    path = tmp_path / "model.keras"
    path.write_bytes(content or b"x")
    vouch(path, original)
    refuse(path, "damaged or no weights file")


def test_flipped_and_truncated_files_are_refused(tmp_path: Path, original: Path) -> None:
    rng = np.random.default_rng(4)
    honest = original.read_bytes()
    path = tmp_path / "model.keras"
    path.with_suffix(".json").write_bytes(original.with_suffix(".json").read_bytes())
    for _ in range(20):
        flipped = bytearray(honest)
        flipped[rng.integers(len(honest))] ^= 1 << int(rng.integers(8))
        for content in (bytes(flipped), honest[: rng.integers(1, len(honest))]):
            path.write_bytes(content)
            refuse(path, "sha256")


def test_damaged_files_without_a_hash_never_give_other_arrays(tmp_path: Path, original: Path) -> None:
    rng = np.random.default_rng(4)
    honest, expected = original.read_bytes(), read_archive(original)
    path = tmp_path / "model.keras"
    for _ in range(200):
        flipped = bytearray(honest)
        flipped[rng.integers(len(honest))] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(flipped))
        try:
            arrays = read_archive(path)
        except InputError:
            continue
        assert arrays.keys() == expected.keys()
        assert all((arrays[n] == expected[n]).all() for n in arrays)


def test_a_card_that_asks_for_a_giant_network_is_refused_before_it_is_built(
    tmp_path: Path, original: Path
) -> None:
    path = tmp_path / "model.keras"
    path.write_bytes(original.read_bytes())
    giant = {"classes": 2, "channels": 2, "filters": [2048] * 8}
    vouch(path, original, network=giant)
    refuse(path, "not those of this network")


def test_a_card_of_another_network_is_refused(tmp_path: Path, original: Path) -> None:
    path = tmp_path / "model.keras"
    path.write_bytes(original.read_bytes())
    vouch(path, original, network={"classes": 2, "channels": 2, "filters": [3], "norm": "none"})
    refuse(path, "lacks encoder_stage0_conv1/bias")


def test_a_model_without_its_card_is_refused(tmp_path: Path, original: Path) -> None:
    path = tmp_path / "model.keras"
    path.write_bytes(original.read_bytes())
    with pytest.raises(InputError, match="model card"):
        load_model(path)


@pytest.fixture
def legacy(tmp_path: Path) -> Path:
    """A Keras 2 file of the original architecture, narrow, as its weights-only files are laid out."""
    path = tmp_path / "legacy.h5"
    model = build_unet(NetworkConfig(classes=13, channels=14, filters=(2, 3)))
    with h5py.File(path, "w") as file:
        for name, array in arrays_of(model).items():
            layer, variable = name.split("/")
            if layer != "standardization":
                file[f"{layer}/{layer}/{variable}:0"] = array
    return path


def test_legacy_files_of_any_width_and_block_are_read(legacy: Path, tmp_path: Path) -> None:
    assert read_legacy(legacy)[0].filters == (2, 3)
    config = NetworkConfig(
        classes=1,
        channels=9,
        filters=(4, 5, 6),
        decoder_filters=(3, 2, 7),
        block="upsample",
        activation="sigmoid",
    )
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        for name, array in arrays_of(build_unet(config)).items():
            layer, variable = name.split("/")
            if layer != "standardization":
                file[f"model_weights/{layer}/{layer}/{variable}:0"] = array
    assert read_legacy(other)[0] == config


def change_legacy(legacy: Path, change: Callable[[h5py.File], object]) -> Path:
    with h5py.File(legacy, "r+") as file:
        change(file)
    return legacy


CONV = "encoder_stage0_conv1/encoder_stage0_conv1/kernel:0"


def lambda_config(file: h5py.File) -> None:
    file.attrs["model_config"] = json.dumps(
        {
            "class_name": "Model",
            "config": {
                "layers": [
                    {"class_name": "Lambda", "config": {"name": "x", "function": ["Y29kZQ==", None, None]}}
                ]
            },
        }
    )


def link_outside(file: h5py.File) -> None:
    file["extra"] = h5py.ExternalLink("/etc/passwd", "/")


def unknown_layer(file: h5py.File) -> None:
    file["bottleneck_conv1/bottleneck_conv1/kernel:0"] = np.zeros((3, 3, 3, 6), "float32")


def wrong_width(file: h5py.File) -> None:
    del file["encoder_stage0_conv2"]
    file["encoder_stage0_conv2/encoder_stage0_conv2/kernel:0"] = np.zeros((3, 3, 2, 5), "float32")


def no_head(file: h5py.File) -> None:
    del file["final_conv"]


def nan_weight(file: h5py.File) -> None:
    file[CONV][0] = np.nan


def strings(file: h5py.File) -> None:
    del file[CONV]
    file[CONV] = "text"


def flat_kernel(file: h5py.File) -> None:
    del file[CONV]
    file[CONV] = np.zeros(3, "float32")


def giant_filters(file: h5py.File) -> None:
    del file["final_conv"]
    file["final_conv/final_conv/kernel:0"] = np.zeros((1, 1, 1, 300), "float32")


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda_config, "Lambda layer"),
        (link_outside, "external link"),
        (unknown_layer, "has also bottleneck"),
        (wrong_width, "shapes differ"),
        (no_head, "final_conv"),
        (nan_weight, "NaN"),
        (strings, "expected numbers"),
        (flat_kernel, "fitting variable"),
        (giant_filters, "300 is greater than the maximum of 254"),
    ],
)
def test_legacy_files_with_more_or_less_than_the_original_are_refused(
    legacy: Path, change: Callable, reason: str
) -> None:
    refuse(change_legacy(legacy, change), reason)


def test_a_lambda_saved_by_keras_itself_never_runs(tmp_path: Path, original: Path) -> None:
    x = keras.Input((None, None, 2))
    model = keras.Model(x, keras.layers.Lambda(lambda v: v + 1)(x))
    model.save(tmp_path / "model.keras")
    vouch(tmp_path / "model.keras", original)
    refuse(tmp_path / "model.keras", "Lambda layer")
