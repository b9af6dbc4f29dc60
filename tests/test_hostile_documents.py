"""Cards, manifests, lists, arrays and tables from strangers are refused before anything is done with them."""

from __future__ import annotations

import csv
import hashlib
import json
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lulc
from lulc.cli.train_model import main as train_model
from lulc.core.documents import MAX_BYTES, MAX_VALUES, read_document
from lulc.core.schema import InputError, LandCoverClass, Legend
from lulc.core.statistics import Statistics, read_statistics
from lulc.datasets.loading import load_manifest
from lulc.labels.schemes import load_scheme
from lulc.models.card import CARD_SCHEMA, Channel, ModelCard, load_card, write_card
from lulc.models.config import NetworkConfig
from lulc.models.weights import find_model

pytestmark = pytest.mark.integration

ANY = {"type": "object"}
FIXTURES = [HealthCheck.function_scoped_fixture]

BOMBS = {
    "deep lists": "[" * 200_000,
    "deep objects": '{"a":' * 200_000,
    "millions of lists": '{"a": [' + "[]," * MAX_VALUES + "[]]}",
    "millions of numbers": '{"a": [' + "0," * MAX_VALUES + "0]}",
    "not a number": '{"a": NaN}',
    "infinity": '{"a": -Infinity}',
    "a number beyond floats": '{"a": 1e999}',
    "a number beyond integers": '{"a": ' + "9" * 4000 + "}",
    "a terminal's escape": '{"a": "\\u001b[2J"}',
    "a terminal's escape, bare": '{"a": "\x9b2J"}',
    "an end of string": '{"a": "x\\u0000y"}',
    "half a character": '{"a": "\\ud800"}',
    "a list": "[1, 2]",
    "a word": '"card"',
    "nothing": "",
    "half an object": '{"format_version": 1, "na',
    "two objects": "{}{}",
}


@pytest.mark.parametrize("name", list(BOMBS))
def test_json_that_is_more_or_less_than_a_document_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "document.json"
    path.write_text(BOMBS[name], encoding="utf-8")
    start = time.process_time()
    with pytest.raises(InputError, match=r"document\.json"):
        read_document(path, ANY, "document", 1)
    assert time.process_time() - start < 2


LARGEST = {
    "list.json": '{"a": [' + "1," * (MAX_VALUES - 9) + "1]}",
    "keys.json": "{" + ",".join(f'"{i:050d}":1' for i in range(900_000)) + "}",
    "text.json": '{"a": "' + "x" * (MAX_BYTES - 99) + '\U0001f600"}',
    "escapes.json": '{"a": "' + "\\u20ac" * (MAX_BYTES // 6 - 99) + '"}',
    "list.yaml": "bands: [" + "a," * 99_000 + "]",
    "longer list.yaml": "bands: [" + "a," * 500_000 + "]",
    "names.yaml": "".join(f"a{i}: 1\n" for i in range(49_000)),
    "nested.yaml": "bands: " + "[" * 400_000,
    "aliases.yaml": "a: &a [x]\n"
    + "".join(f"b{i}: &b{i} [*{f'b{i - 1}' if i else 'a'}, *a]\n" for i in range(9000)),
    "rows.csv": "code,class,name,color\n" + "1,1,a,#000000\n" * 480_000,
    "columns.csv": "code,class,name,color" + ",x" * 4_000_000 + "\n",
    "short rows.csv": "code,class,name,color" + ",x" * 90 + "\n" + "1\n" * 4_000_000,
    "quote.csv": 'code,class,name,color\n1,1,"' + "x" * 900_000,
    "elements.xml": "<a>" + "<b/>" * (MAX_VALUES - 9) + "</a>",
    "attributes.xml": "<a " + " ".join(f'a{i}=""' for i in range(1_200_000)) + "/>",
    "nested.xml": "<a>" * 900_000 + "</a>" * 900_000,
    "entities.xml": '<!DOCTYPE a [<!ENTITY x "yyyy">]><a>&x;</a>',
}
"""Documents as large as the limits admit, or larger."""

READ = """
import resource, sys
from pathlib import Path
from lulc.core.config_file import read_nested
from lulc.core.documents import read_document
from lulc.core.schema import InputError
from lulc.labels.schemes import load_scheme
from lulc.rasters.guards import read_xml
path = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_CPU, (10, 10))
try:
    {".json": lambda: read_document(path, {"type": "object"}, "document", 1),
     ".yaml": lambda: read_nested(path, "the options", ""),
     ".csv": lambda: load_scheme(str(path)),
     ".xml": lambda: read_xml(path, "the document")}[path.suffix]()
except InputError:
    pass
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(1024 * int(peak.split()[1]))
"""


@pytest.mark.parametrize("name", list(LARGEST))
def test_a_document_at_the_limits_takes_ten_seconds_and_a_gigabyte_at_most(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(LARGEST[name], encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2**30


PARSERS = re.compile(
    r"json\.loads?\((?!json\.dumps)|csv\.(Dict)?[Rr]eader\(|ElementTree\.(parse|fromstring)\(|yaml\.(compose|load)"
)
GATES = {
    "core/documents.py", "core/config_file.py", "rasters/guards.py",
    # Their own messages and locks.
    "core/reader_process.py", "core/claims.py", "training/devices.py",
    # What a deep-learning framework wrote a moment ago.
    "models/weights.py",
}  # fmt: skip


def test_documents_are_parsed_behind_their_limits_alone() -> None:
    package = Path(lulc.__file__).parent
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if PARSERS.search(path.read_text(encoding="utf-8"))
    }
    assert found == GATES


@pytest.mark.parametrize("content", [b"\xff\xfe\x00\x00", b"\x80abc", b"PK\x03\x04", bytes(1000)])
def test_bytes_that_are_no_text_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "document.json").write_bytes(content)
    with pytest.raises(InputError, match=r"document\.json"):
        read_document(tmp_path / "document.json", ANY, "document", 1)


def test_a_document_that_is_too_large_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "document.json"
    with open(path, "wb") as file:
        file.truncate(2**40)
    with pytest.raises(InputError, match="1099511627776 bytes"):
        read_document(path, ANY, "document", 1)


def card() -> ModelCard:
    return ModelCard(
        name="honest", channels=(Channel("B02"), Channel("B03")),
        legend=Legend("t", tuple(LandCoverClass(i, f"c{i}", "#000000") for i in (1, 2))),
        statistics=Statistics((0.0, 1.0), (1.0, 2.0)), stride=2, halo=8, sha256="0" * 64, bytes=4,
        network=NetworkConfig(classes=2, channels=2, filters=(3,)),
    )  # fmt: skip


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def replaced(data: st.DataObject, document: Any) -> Any:
    """The document with the value at one random place replaced, removed or doubled."""
    holder: Any = {"": document}
    key: Any = ""
    while isinstance(holder[key], dict | list) and holder[key] and data.draw(st.integers(0, 4)):
        holder = holder[key]
        key = data.draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
    if holder.get("") is document if isinstance(holder, dict) else False:
        return data.draw(json_values)
    if data.draw(st.booleans()):
        del holder[key]
    else:
        holder[key] = data.draw(json_values)
    return document


@settings(max_examples=300, deadline=None, suppress_health_check=FIXTURES, derandomize=True)
@given(st.data())
def test_a_card_with_any_value_anywhere_is_a_card_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "model.json"
    path.write_text(json.dumps(replaced(data, json.loads(json.dumps(card().to_json())))))
    try:
        found = load_card(path)
    except InputError as error:
        assert "model.json" in str(error)
    else:
        assert ModelCard.from_json(json.loads(json.dumps(found.to_json()))) == found


@settings(max_examples=200, deadline=None, suppress_health_check=FIXTURES, derandomize=True)
@given(st.binary(max_size=60), st.integers(0, 10**6))
def test_a_card_with_any_bytes_anywhere_is_a_card_or_refused(tmp_path: Path, junk: bytes, where: int) -> None:
    path = tmp_path / "model.json"
    write_card(card(), path)
    content = path.read_bytes()
    place = where % len(content)
    path.write_bytes(content[:place] + junk + content[place + len(junk) :])
    try:
        load_card(path)
    except InputError as error:
        assert "model.json" in str(error)


def sealed(document: dict[str, Any]) -> dict[str, Any]:
    """What a stranger can do, too: a seal is against accidents, not against intent."""
    rest = {k: v for k, v in document.items() if k != "seal"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return rest | {"seal": hashlib.sha256(text.encode()).hexdigest()}


@pytest.fixture
def stacks(tmp_path: Path, write_stacks: Callable[..., Path]) -> Path:
    return write_stacks(tmp_path / "stacks", side=32)


@settings(max_examples=300, deadline=None, suppress_health_check=FIXTURES, derandomize=True)
@given(st.data())
def test_a_manifest_with_any_value_anywhere_is_a_manifest_or_refused(
    stacks: Path, data: st.DataObject
) -> None:
    path = stacks / "manifest.json"
    honest = path.read_bytes()
    changed = replaced(data, json.loads(honest))
    try:
        path.write_text(json.dumps(sealed(changed) if isinstance(changed, dict) else changed))
        manifest = load_manifest(stacks)
        assert all(stack.image.resolve().parent == stacks.resolve() for stack in manifest.stacks)
    except InputError:
        pass
    except ValueError as error:
        assert "surrogates" in str(error) or "JSON compliant" in str(error)  # raised by this test's own seal
    finally:
        path.write_bytes(honest)


def grid_of(document: dict[str, Any]) -> dict[str, Any]:
    return document["stacks"][0]["grid"]


ESCAPES: dict[str, Callable[[dict[str, Any], Path], object]] = {
    "a parent": lambda d, c: d["stacks"][0]["image"].update(file=f"../{c.name}"),
    "an absolute path": lambda d, c: d["stacks"][0]["image"].update(file=str(c)),
    "a hidden file": lambda d, c: d["stacks"][0]["masks"].update(file=".lock"),
    "a Windows path": lambda d, c: d["stacks"][0]["masks"].update(file="C:\\x.npy"),
    "a URL": lambda d, c: d["stacks"][0]["image"].update(file="http://127.0.0.1/x.npy"),
    "a CRS that is none": lambda d, c: grid_of(d).update(crs="http://127.0.0.1/x"),
    "a CRS that is a file": lambda d, c: grid_of(d).update(crs=str(c)),
    "pixels without area": lambda d, c: grid_of(d).update(transform=[0, 0, 0, 0, 0, 0]),
    "a grid without end": lambda d, c: grid_of(d).update(height=2**62),
    "a window elsewhere": lambda d, c: d["stacks"][0].update(window=[0, 0, 7, 7]),
    "no stack": lambda d, c: d["stacks"].clear(),
    "254 classes and one": lambda d, c: d["legend"]["classes"].extend(d["legend"]["classes"] * 100),
    "counts below nothing": lambda d, c: d["stacks"][0].update(class_counts=[-1, 0, 0]),
    "a newer version": lambda d, c: d.update(format_version=99),
}


@pytest.mark.parametrize("name", list(ESCAPES))
def test_a_manifest_that_leads_elsewhere_or_lies_is_refused_by_the_command(
    name: str, stacks: Path, tmp_path: Path, unread: Callable, capfd: pytest.CaptureFixture[str]
) -> None:
    canary = tmp_path / "canary.npy"
    np.save(canary, np.zeros((32, 32, 3), np.float32))
    document = json.loads((stacks / "manifest.json").read_text())
    ESCAPES[name](document, canary)
    (stacks / "manifest.json").write_text(json.dumps(sealed(document)))
    with unread(canary):
        start = time.process_time()
        assert train_model([str(stacks), "--out", str(tmp_path / "run"), "-q"]) == 1
        assert time.process_time() - start < 2
    message = capfd.readouterr().err
    assert message.count("error: cannot ") == 1 and "Traceback" not in message
    assert not (tmp_path / "run").exists()


def test_a_link_in_a_manifests_folder_is_not_followed_out_of_it(
    stacks: Path, tmp_path: Path, unread: Callable, capfd: pytest.CaptureFixture[str]
) -> None:
    canary = tmp_path / "canary.npy"
    (stacks / "train_image_0.npy").rename(canary)
    (stacks / "train_image_0.npy").symlink_to(canary)
    with unread(canary):
        assert train_model([str(stacks), "--out", str(tmp_path / "run"), "-q"]) == 1
    assert "leads out" in capfd.readouterr().err


class Runs:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def npy(text: str, version: bytes = b"\x01\x00", size: int | None = None) -> bytes:
    size = len(text) if size is None else size
    length = size.to_bytes(2 if version[0] == 1 else 4, "little")
    return b"\x93NUMPY" + version + length + text.encode() + bytes(64)


def header(dtype: str, shape: str) -> str:
    return f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}"


ARRAYS: dict[str, Callable[[Path], bytes]] = {
    "a pickle": lambda made: pickle.dumps(Runs(made)),
    "objects": lambda made: npy(header("|O", "(1,)")) + pickle.dumps(Runs(made)),
    "a shape beyond the file": lambda made: npy(header("<f4", "(99999999999,)")),
    "a negative shape": lambda made: npy(header("<f4", "(-4, -4, 3)")),
    "code in the header": lambda made: npy(f"__import__('pathlib').Path({str(made)!r}).touch()"),
    "a deep header": lambda made: npy("(" * 9000),
    "a header of 4 GB": lambda made: npy("{", b"\x02\x00", 2**32 - 1),
    "a type of 2 GB": lambda made: npy(header("|V2147483647", "(1,)")),
    "text": lambda made: npy(header("<U9", "(2,)")),
    "another format": lambda made: b"\x93NUMPY\x09\x09" + bytes(99),
    "a zip": lambda made: b"PK\x03\x04" + bytes(99),
    "nothing": lambda made: b"",
}  # fmt: skip


@pytest.mark.parametrize("name", list(ARRAYS))
def test_an_array_that_is_more_or_less_than_numbers_is_refused_by_the_command(
    name: str, stacks: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "made"
    (stacks / "train_image_0.npy").write_bytes(ARRAYS[name](made))
    start = time.process_time()
    assert train_model([str(stacks), "--out", str(tmp_path / "run"), "-q"]) == 1
    assert time.process_time() - start < 2
    message = capfd.readouterr().err
    assert "train_image_0.npy" in message and "Traceback" not in message
    assert not made.exists()


@settings(max_examples=200, deadline=None, suppress_health_check=FIXTURES, derandomize=True)
@given(st.binary(max_size=200))
def test_statistics_of_any_bytes_run_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "statistics.obj"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"statistics\.obj"):
        read_statistics(path)


def test_a_pickle_of_statistics_runs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "statistics.obj"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(([1.0], [Runs(tmp_path / "made")]), protocol))
        with pytest.raises(InputError, match=r"statistics\.obj"):
            read_statistics(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "name", ["../model.keras", "/tmp/model.keras", ".keras", "a\\b.keras", "model.h5", ""]
)
def test_a_list_of_models_names_none_outside_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.keras").write_bytes(b"outside")
    folder = tmp_path / "run"
    folder.mkdir()
    picks = {"format_version": 1, "picks": {"lowest-val-loss": name}}
    (folder / "models.json").write_text(json.dumps(picks))
    with pytest.raises(InputError, match=r"models\.json"):
        find_model(str(folder))


cells = st.text(alphabet=st.characters(codec="utf-8"), max_size=12) | st.integers(-300, 300).map(str)


@settings(max_examples=300, deadline=None, suppress_health_check=FIXTURES, derandomize=True)
@given(st.lists(st.lists(cells, min_size=1, max_size=6), max_size=8), st.booleans())
def test_a_table_of_any_cells_is_a_scheme_or_refused(
    tmp_path: Path, rows: list[list[str]], header: bool
) -> None:
    path = tmp_path / "scheme.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([["code", "class", "name", "color"], *rows] if header else rows)
    try:
        scheme = load_scheme(str(path))
    except InputError as error:
        assert "scheme.csv" in str(error)
    else:
        assert 1 <= len(scheme.legend) <= 254


def test_the_schema_of_a_card_admits_nothing_that_it_does_not_name() -> None:
    assert CARD_SCHEMA["additionalProperties"] is False
