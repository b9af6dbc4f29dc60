"""Bytes that are flipped, cut off or emptied at random places: found and redone, or refused, never used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lulc.cli.make_classifications import main as make_classifications
from lulc.cli.preprocess import main as preprocess
from lulc.cli.train_model import main as train_model
from lulc.core.schema import InputError
from lulc.engines.registry import Engine, EngineRequest
from lulc.inference import job
from lulc.models.card import load_card
from lulc.preprocessing import preprocess as preprocess_module
from lulc.training import loop

pytestmark = pytest.mark.integration

WriteBands = Callable[..., Path]


class Stopped(BaseException):
    """Ends a run as a power cut does: nothing catches it."""


def damage(path: Path, rng: np.random.Generator) -> str:
    """Damage a file at a random place; returns how."""
    content = bytearray(path.read_bytes())
    how = str(rng.choice(["flipped", "truncated", "emptied", "zeroed", "doubled", "gone"]))
    place = int(rng.integers(len(content)))
    if how == "flipped":
        content[place] ^= 1 << int(rng.integers(8))
    elif how == "truncated":
        del content[place:]
    elif how == "emptied":
        content.clear()
    elif how == "zeroed":
        content[place : place + 64] = bytes(len(content[place : place + 64]))
    elif how == "doubled":
        content[place:place] = content[place : place + 16]
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(content)
    return how


def stop_after(calls: int) -> Callable[[], None]:
    left = calls

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Stopped

    return count


def engine_with(before: Callable[[], None]) -> Callable[[str, EngineRequest], Engine]:
    def build(name: str, request: EngineRequest) -> Engine:
        def network(x: np.ndarray) -> np.ndarray:
            before()
            powers = np.exp(np.nan_to_num(x[..., :3]) / 1000)
            return np.asarray(powers / powers.sum(-1, keepdims=True), np.float32)

        return Engine("keras", request.shape, {"precision": "float32"}, network)

    return build


def test_a_damaged_part_journal_or_key_never_makes_another_map(
    tmp_path: Path, tiny_model: Path, write_bands: WriteBands, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    mosaic, out = write_bands(tmp_path / "mosaic.tif", 500, 520), tmp_path / "map.tif"
    line = [str(tiny_model), str(mosaic), str(out), "-q", "--window", "128", "--part", "256"]
    line += ["--scale", "0.0001", "--offset", "0"]
    monkeypatch.setattr(job, "build_engine", engine_with(lambda: None))
    assert make_classifications(line) == 0
    expected, printed = out.read_bytes(), capfd.readouterr().out
    out.unlink()
    monkeypatch.setattr(job, "build_engine", engine_with(stop_after(20)))
    with pytest.raises(Stopped):
        make_classifications(line)
    monkeypatch.setattr(job, "build_engine", engine_with(lambda: None))
    parts, kept = tmp_path / "map.tif.parts", tmp_path / "kept"
    parts.rename(kept)
    rng = np.random.default_rng(0)
    refused = 0
    for trial in range(24):
        shutil.copytree(kept, parts)
        # Locks are empty.
        files = sorted(p for p in parts.iterdir() if p.stat().st_size)
        for path in rng.choice(files, 1 + trial % 2, replace=False):
            damage(path, rng)
        if make_classifications(line) == 1:
            assert "--restart" in capfd.readouterr().err
            assert not out.exists()
            assert make_classifications([*line, "--restart"]) == 0
            refused += 1
        assert out.read_bytes() == expected
        # Counts come from the journal, seconds do not.
        assert capfd.readouterr().out.split("Mpx")[0].split() == printed.split("Mpx")[0].split()
        out.unlink()
        assert not parts.exists()
    assert refused < 8


def test_a_damaged_stack_or_record_of_progress_never_makes_another_folder(
    tmp_path: Path, write_bands: WriteBands, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    bands = write_bands(tmp_path / "bands.tif", 160, 224)
    labels = write_bands(tmp_path / "labels.tif", 160, 224, labels=True)
    out, kept = tmp_path / "stacks", tmp_path / "kept"
    line = ["--bands", str(bands), "--labels", str(labels), "--out", str(out), "--size", "64", "-q"]
    line += ["--gap", "4", "--scheme", "kaakonkulma-13"]

    def contents() -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in out.iterdir() if not p.name.startswith(".lulc-")}

    assert preprocess(line) == 0
    expected = contents()
    shutil.rmtree(out)
    write, count = preprocess_module.cut, stop_after(4)

    def counted(*arguments: Any) -> Any:
        count()
        return write(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(preprocess_module, "cut", counted)
        preprocess(line)
    out.rename(kept)
    rng = np.random.default_rng(1)
    for _ in range(20):
        shutil.copytree(kept, out)
        damage(rng.choice(sorted(p for p in out.iterdir() if not p.name.startswith(".lulc-"))), rng)
        code = preprocess(line)
        if code == 1:
            assert "--" in capfd.readouterr().err
            assert not (out / "manifest.json").exists()
            assert preprocess([*line, "--overwrite", "--restart"]) == 0
        assert contents() == expected
        shutil.rmtree(out)


def test_a_finished_folder_with_damage_is_refused_before_it_is_trained_on(
    tmp_path: Path, write_stacks: Callable[..., Path], capfd: Any
) -> None:
    honest = write_stacks(tmp_path / "honest", side=48)
    stacks = tmp_path / "stacks"
    rng = np.random.default_rng(2)
    for _ in range(30):
        shutil.copytree(honest, stacks)
        damage(rng.choice(sorted(p for p in stacks.iterdir() if p.suffix in (".npy", ".json"))), rng)
        assert train_model([str(stacks), "--out", str(tmp_path / "run"), "-q"]) == 1
        message = capfd.readouterr().err
        assert message.count("error: ") == 1 and str(stacks) in message
        shutil.rmtree(stacks)
    assert not (tmp_path / "run").exists()


def test_a_damaged_card_is_refused_or_equal(tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "model.json"
    expected = load_card(tiny_model)
    rng = np.random.default_rng(3)
    refused = 0
    for _ in range(300):
        shutil.copy(tiny_model.with_suffix(".json"), path)
        damage(path, rng)
        try:
            # White space may be doubled without harm.
            assert load_card(path) == expected
        except InputError:
            refused += 1
    assert refused > 250


def test_damage_to_checkpoints_and_history_never_makes_other_weights(
    tmp_path: Path, write_stacks: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    stacks = write_stacks(tmp_path / "stacks", side=64)
    out, kept = tmp_path / "run", tmp_path / "kept"
    line = [str(stacks), "--out", str(out), "--epochs", "2", "--steps", "3", "--validation-steps", "1"]
    line += ["--batch-size", "1", "--crop-sizes", "32", "--validation-crop-sizes", "32", "--filters", "2"]
    line += ["--workers", "1", "-q"]
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    assert train_model(line) == 0
    expected = {p.name: p.read_bytes() for p in out.glob("??-*.*")}
    shutil.rmtree(out)
    check, count = loop.Loop._check_finite, stop_after(5)

    def counted(*arguments: Any) -> None:
        count()
        check(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(loop.Loop, "_check_finite", counted)
        train_model(line)
    out.rename(kept)
    rng = np.random.default_rng(4)
    for _ in range(6):
        shutil.copytree(kept, out)
        files = [*out.glob("checkpoints/*"), out / "run.json", out / "history.csv"]
        damage(rng.choice(sorted(files)), rng)
        if train_model(line) == 1:
            assert "--" in capfd.readouterr().err
            assert train_model([*line, "--overwrite"]) == 0
        assert {p.name: p.read_bytes() for p in out.glob("??-*.*")} == expected
        assert json.loads((out / "run.json").read_text())["finished"]
        shutil.rmtree(out)
