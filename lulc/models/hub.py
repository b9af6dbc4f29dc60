"""Download of models by their address, with a check of checksums, into a cache.

The card holds the sha256 of the weights. A checksum in the address is compared before the files enter the
cache. Cached files are checked on reading like any other model.
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from lulc.core.claims import claim_outputs
from lulc.core.schema import InputError
from lulc.core.storage import put_folder, temporary_folder
from lulc.models.archive import MAX_BYTES, MAX_JSON_BYTES
from lulc.models.card import ModelCard, load_card
from lulc.models.config import GraphConfig, NetworkConfig

logger = logging.getLogger("lulc")

STEM = "model"
"""Stem of card and weights in a repository: ``model.json``, and ``model.keras``, ``.npz`` or ``.onnx``."""

ENDINGS = (".keras", ".npz", ".onnx")

SECONDS = 60.0
"""Timeout of a download without an answer."""

BLOCK = 2**18

_REPOSITORY = re.compile(r"hf://(\w[\w.-]*/\w[\w.-]*)@(\w[\w.-]*)", re.ASCII)
_ADDRESS = re.compile(r"https://[^\s#?]+/(\w[\w.-]*)(\.\w+)#sha256=([0-9a-f]{64})", re.ASCII)


def is_hub(name: str) -> bool:
    """Return True for the address of a model."""
    return bool(re.match(r"[a-z][a-z0-9+.-]*://", name))


def ending_of(card: ModelCard) -> str:
    """Return the suffix of the weights of a card."""
    if isinstance(card.network, NetworkConfig):
        return ".keras"
    return ".onnx" if isinstance(card.network, GraphConfig) else ".npz"


def cache_folder() -> Path:
    """Return the cache of models: ``lulc/models`` in ``$XDG_CACHE_HOME``, or in ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "lulc", "models")


def fetch(address: str) -> Path:
    """Return the weights file of an address, from the cache or else from the network.

    Raises InputError if the address has another form, a file is missing there, or a checksum differs.

    Parameters
    ----------
    address
        ``hf://OWNER/NAME@REVISION``; or ``https://HOST/PATH/NAME.json#sha256=...`` of a card, or of weights.
    """
    if match := _REPOSITORY.fullmatch(address):
        name, revision = match.groups()
        # A mirror, e.g. within a company, is named by this variable.
        host = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        folder = cache_folder() / "hf" / name / revision
        base, stem, pinned = f"{host}/{name}/resolve/{revision}/", STEM, {}
    elif match := _ADDRESS.fullmatch(address):
        stem, ending, sha256 = match.groups()
        folder = cache_folder() / "https" / sha256
        base, pinned = address.partition("#")[0].removesuffix(f"{stem}{ending}"), {ending: sha256}
        if ending not in (".json", *ENDINGS):
            raise _refused(address, f"'{stem}{ending}' is neither a card nor weights")
    else:
        raise _refused(address, "it is no address of a model")
    weights = _cached(folder)
    if weights is None:
        # Another process may download it at the same time.
        with claim_outputs([folder], wait=True):
            if _cached(folder) is None:
                _download(address, base, stem, pinned, folder)
        weights = _cached(folder)
    assert weights is not None
    return weights


def _cached(folder: Path) -> Path | None:
    return next((path for ending in ENDINGS for path in sorted(folder.glob(f"*{ending}"))), None)


def _refused(address: str, reason: str) -> InputError:
    return InputError(
        f"cannot take the model '{address}', since {reason}",
        "Type hf://OWNER/NAME@REVISION, or https://HOST/PATH/NAME.json#sha256=... with its checksum.",
    )


def _download(address: str, base: str, stem: str, pinned: dict[str, str], target: Path) -> None:
    with temporary_folder(target) as temporary:
        folder = temporary / target.name
        folder.mkdir()
        card_file = folder / f"{stem}.json"
        _fetch_file(address, f"{base}{stem}.json", card_file, MAX_JSON_BYTES, pinned.get(".json"))
        card = load_card(card_file)
        weights = folder / f"{stem}{ending_of(card)}"
        expected = pinned.get(weights.suffix, card.sha256)
        if expected != card.sha256 or not (pinned.keys() <= {".json", weights.suffix}):
            raise _refused(address, f"its card is about other weights (sha256 {card.sha256})")
        if card.bytes > MAX_BYTES:
            raise _refused(address, f"its weights have {card.bytes} bytes, expected at most {MAX_BYTES}")
        _fetch_file(address, f"{base}{weights.name}", weights, card.bytes, expected)
        put_folder(folder, target)
    logger.info("cached in '%s'", target)


def _fetch_file(address: str, url: str, target: Path, most: int, sha256: str | None) -> None:
    """Download a file of at most `most` bytes and with the expected sha256, if it is given."""
    digest, size = hashlib.sha256(), 0
    _check_scheme(url)
    opener = urllib.request.build_opener(_Redirects)
    try:
        with opener.open(url, timeout=SECONDS) as answer, open(target, "wb") as file:
            total = int(answer.headers.get("Content-Length") or 0)
            quiet = not logger.isEnabledFor(logging.INFO)
            with tqdm(total=total or None, unit="B", unit_scale=True, desc=target.name, disable=quiet) as bar:
                while block := answer.read(BLOCK):
                    size += len(block)
                    if size > most:
                        raise _refused(address, f"'{target.name}' has more than the {most} bytes expected")
                    digest.update(block)
                    file.write(block)
                    bar.update(len(block))
        if total and size < total:
            raise ConnectionError(f"it ended after {size} of {total} bytes")
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(
            f"cannot fetch '{url}' for the model '{address}', since {reason}",
            "Check address and connection, then type the same command again, or give a file.",
        ) from error
    if sha256 is not None and digest.hexdigest() != sha256:
        raise _refused(address, f"the sha256 of '{target.name}' is {digest.hexdigest()}, expected {sha256}")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Handler of redirections, which must stay encrypted."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage,
        newurl: str,
    ) -> Any:  # fmt: skip
        _check_scheme(newurl, req.full_url)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_scheme(url: str, before: str | None = None) -> None:
    """Refuse unencrypted addresses of other machines, and redirections from others to this machine."""
    scheme, local = urllib.parse.urlsplit(url).scheme, _is_local(url)
    encrypted = scheme == "https" or (scheme == "http" and local)
    if not encrypted or (local and before is not None and not _is_local(before)):
        raise urllib.error.URLError(f"'{url}' is no encrypted address")


def _is_local(url: str) -> bool:
    host = urllib.parse.urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
