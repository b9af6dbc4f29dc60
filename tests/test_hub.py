"""Models from a server: fetched once, and never other than what the address pins."""

from __future__ import annotations

import contextlib
import datetime
import functools
import http.server
import ipaddress
import json
import shutil
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lulc
from lulc.core.storage import sha256_of
from lulc.models.card import load_card
from lulc.models.weights import find_model

pytestmark = pytest.mark.integration

REVISION = "0" * 40


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and counts what it is asked for."""

    asked: list[str]
    moved = ""

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.moved and self.path.endswith(".keras"):
            self.send_response(302)
            self.send_header("Location", self.moved)
            self.end_headers()
            return
        super().do_GET()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def served(folder: Path, context: ssl.SSLContext | None = None) -> Iterator[tuple[str, type[Handler]]]:
    handler = type("Own", (Handler,), {"asked": []})
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(folder))
    )
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http{'s' if context else ''}://127.0.0.1:{server.server_port}", handler
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def repository(tiny_model: Path, tmp_path: Path) -> Path:
    """A folder served as a hub serves a repository, made by --hub."""
    from lulc.cli.export_model import main

    assert main([str(tiny_model), "--hub", str(tmp_path / "made")]) == 0
    folder = tmp_path / "served" / "someone" / "land-cover" / "resolve" / REVISION
    shutil.copytree(tmp_path / "made", folder)
    return folder


@pytest.fixture
def hub(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Handler]]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with served(tmp_path / "served") as (address, handler):
        monkeypatch.setenv("HF_ENDPOINT", address)
        yield handler


NAME = f"hf://someone/land-cover@{REVISION}"


def test_a_model_of_a_hub_is_fetched_once_and_is_the_same(tiny_model: Path, hub: type[Handler]) -> None:
    found = find_model(NAME)
    assert found.read_bytes() == tiny_model.read_bytes()
    assert load_card(found) == load_card(tiny_model)
    assert len(hub.asked) == 2
    assert find_model(NAME) == found and len(hub.asked) == 2


def test_a_model_of_a_hub_makes_the_map_of_its_file(
    tiny_model: Path, hub: type[Handler], write_bands: Any, tmp_path: Path
) -> None:
    mosaic = write_bands(tmp_path / "mosaic.tif", 40, 50)
    made = [
        lulc.classify(model, mosaic, tmp_path / f"{k}.tif", engine="openvino").path.read_bytes()
        for k, model in enumerate((NAME, tiny_model))
    ]
    assert made[0] == made[1]


@pytest.mark.parametrize("file", ["model.keras", "model.json"])
def test_what_is_not_what_the_card_says_is_refused_and_not_kept(
    repository: Path, hub: type[Handler], tmp_path: Path, file: str
) -> None:
    content = bytearray((repository / file).read_bytes())
    content[len(content) // 2] ^= 1
    (repository / file).write_bytes(content)
    with pytest.raises(lulc.InputError, match=r"sha256|cannot read the model card"):
        find_model(NAME)
    assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file()] == []


def test_a_longer_or_a_missing_file_is_refused(repository: Path, hub: type[Handler], tmp_path: Path) -> None:
    with open(repository / "model.keras", "ab") as file:
        file.write(b"x" * 1000)
    with pytest.raises(lulc.InputError, match="has more than the"):
        find_model(NAME)
    (repository / "model.keras").unlink()
    with pytest.raises(lulc.InputError, match=r"cannot fetch .*model.keras.* since File not found"):
        find_model(NAME)
    assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file()] == []


@pytest.mark.parametrize("target", ["http://192.0.2.1/model.keras", "file:///etc/passwd", "ftp://h/x"])
def test_a_redirection_to_what_is_not_encrypted_is_not_followed(hub: type[Handler], target: str) -> None:
    hub.moved = target
    with pytest.raises(lulc.InputError, match="cannot fetch"):
        find_model(NAME)


def test_without_a_server_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(lulc.InputError, match=r"cannot fetch 'http://127.0.0.1:9/someone"):
        find_model(NAME)


@pytest.mark.parametrize(
    "address",
    [
        "hf://someone/land-cover", "hf://land-cover@main", "hf://../..@x", "hf://a/b@../../c",
        "https://host/model.keras", "https://host/model.keras#sha256=12",
        "https://host/model.zip#sha256=" + "0" * 64,
        "http://host/model.keras#sha256=" + "0" * 64, "ftp://host/m.keras", "file:///etc/passwd",
    ],
)  # fmt: skip
def test_an_address_that_pins_nothing_is_refused_before_anything_is_asked(address: str) -> None:
    with pytest.raises(lulc.InputError, match="cannot take the model"):
        find_model(address)


def _certificate(folder: Path) -> ssl.SSLContext:
    """A server's context, with a certificate for 127.0.0.1 in ``cert.pem``."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - datetime.timedelta(1))
        .not_valid_after(now + datetime.timedelta(1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(key.private_bytes(*plain))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


@pytest.mark.parametrize("pinned", ["model.json", "model.keras"])
def test_an_address_with_a_checksum_gives_that_file_or_none(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pinned: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    context = _certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    with served(repository, context) as (server, handler):
        address = f"{server}/{pinned}#sha256={sha256_of(repository / pinned)}"
        found = find_model(address)
        assert sha256_of(found) == load_card(found).sha256
        count = len(handler.asked)
        assert find_model(address) == found and len(handler.asked) == count
        with pytest.raises(lulc.InputError, match="sha256"):
            find_model(f"{server}/{pinned}#sha256={'0' * 64}")
        monkeypatch.delenv("SSL_CERT_FILE")
        with pytest.raises(lulc.InputError, match=r"cannot fetch .*certificate"):
            find_model(f"{server}/{pinned}#sha256={'1' * 64}")


def test_the_folder_of_a_repository_is_whole_and_describes_itself(repository: Path, tmp_path: Path) -> None:
    names = {path.name for path in repository.iterdir()}
    assert names == {"README.md", "LICENSE", ".gitattributes", "model.keras", "model.json", "model.stac.json"}
    page = (repository / "README.md").read_text()
    card = load_card(repository / "model.keras")
    assert page.startswith("---\nlicense: ") and card.sha256 in page
    assert all(c.name in page for c in card.channels) and all(n in page for n in card.legend.names)
    item = json.loads((repository / "model.stac.json").read_text())
    assert item["assets"]["weights"]["href"].endswith("model.keras")


def test_a_repository_is_replaced_only_on_request_and_never_with_other_files(
    tiny_model: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"model": tiny_model, "hub": tmp_path / "made"}
    lulc.export_model(**given)
    with pytest.raises(lulc.InputError, match="exists already"):
        lulc.export_model(**given)
    lulc.export_model(**given, overwrite=True)
    (tmp_path / "made" / "notes.txt").write_text("mine")
    with pytest.raises(lulc.InputError, match=r"it holds 'notes.txt'"):
        lulc.export_model(**given, overwrite=True)
    with pytest.raises(lulc.InputError, match="separate folder for one model"):
        lulc.export_model(**given, format="onnx")
