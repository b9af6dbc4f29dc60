"""A STAC API with simulated scenes on this machine: stac-fastapi, and files by range requests.

``python stac_server.py FOLDER PORT`` serves the items of a folder in a process of its own, which a test may
kill. What goes wrong there says FOLDER/faults.json: pattern of a path to a status, "cut", or seconds to wait.

Nothing here was measured. The ground is a smooth function of place, drawn into two tiles of neighbouring UTM
zones; each date has clouds of its own, which the scene classification knows.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import transform_bounds

TEN, TWENTY = ("B02", "B03", "B04", "B08"), ("B05", "B06", "B07", "B11", "B12")
BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B11", "B12")

TILES = {"34VFM": (32634, Affine(10, 0, 660000, 0, -10, 6802000)),
         "35VLG": (32635, Affine(10, 0, 339400, 0, -10, 6802000))}  # fmt: skip
"""EPSG code and upper left corner of each tile: both reach over the border of their zones."""


def ground(band: str, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """Reflectance x 10000 at a place, smooth to a few digital numbers a pixel."""
    slope = np.minimum(4000 * (lon - 23.9) ** 2, 300) + 6000 * np.minimum(lat - 61.2, 0.2)
    return 1000 + 150 * BANDS.index(band) + slope


def write(path: Path, array: np.ndarray, epsg: int, transform: Affine) -> None:
    """Write one layer (y, x) as a tiled GeoTIFF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "height": array.shape[0], "width": array.shape[1], "count": 1}
    block = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
    with rasterio.open(
        path,
        "w",
        **profile,
        **block,
        dtype=array.dtype,
        crs=CRS.from_epsg(epsg),
        transform=transform,
        nodata=0,
    ) as data:
        data.write(array, 1)


def positions(epsg: int, transform: Affine, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Longitude and latitude of the pixel centres of a square."""
    cols, rows = np.meshgrid(np.arange(side) + 0.5, np.arange(side) + 0.5)
    x, y = transform.c + transform.a * cols, transform.f + transform.e * rows
    return pyproj.Transformer.from_crs(epsg, 4326, always_xy=True).transform(x, y)


def make_item(
    folder: Path, tile: str, day: str, *, side: int = 192, clouds: Sequence[tuple[int, int, int]] = (),
    baseline: str = "05.11", add: float = 0.0, cover: float = 5.0,
) -> dict[str, Any]:  # fmt: skip
    """Write the files of one scene and return its item.

    Parameters
    ----------
    clouds
        Row, column and side of each square cloud, in pixels of 10 m.
    baseline
        From 04.00 on, digital numbers have the offset of 1000, which the item declares.
    add
        Reflectance x 10000 that this date has above the ground.
    """
    epsg, corner = TILES[tile]
    offset = 1000 if baseline >= "04.00" else 0
    name = f"S2A_{tile}_{day.replace('-', '')}_0_L2A"
    assets: dict[str, Any] = {}
    classes = np.full((side // 2, side // 2), 4, "uint8")
    for row, col, size in clouds:
        classes[row // 2 : (row + size) // 2, col // 2 : (col + size) // 2] = 9
    for band in BANDS:
        step = 2 if band in TWENTY else 1
        transform = corner @ Affine.scale(step)
        lon, lat = positions(epsg, transform, side // step)
        values = np.rint(ground(band, lon, lat) + add)
        cloudy = classes == 9
        values[np.kron(cloudy, np.ones((2, 2), bool)) if step == 1 else cloudy] = 9000
        write(folder / name / f"{band}.tif", (values + offset).astype("uint16"), epsg, transform)
        said = {"nodata": 0, "data_type": "uint16", "scale": 0.0001, "offset": -offset / 10000}
        assets[band] = {"href": f"{name}/{band}.tif", "type": "image/tiff", "roles": ["data"],
                        "eo:bands": [{"name": band}], "raster:bands": [said]}  # fmt: skip
    write(folder / name / "SCL.tif", classes, epsg, corner @ Affine.scale(2))
    probability = np.where(classes == 9, 95, 3).astype("uint8")
    write(folder / name / "CLD.tif", probability, epsg, corner @ Affine.scale(2))
    assets["scl"] = {"href": f"{name}/SCL.tif", "type": "image/tiff"}
    assets["cloud"] = {"href": f"{name}/CLD.tif", "type": "image/tiff"}
    left, top = corner.c, corner.f
    w, s, e, n = transform_bounds(CRS.from_epsg(epsg), 4326, left, top - 10 * side, left + 10 * side, top)
    ring = [[w, s], [e, s], [e, n], [w, n], [w, s]]
    return {
        "type": "Feature", "stac_version": "1.0.0", "id": name, "collection": "sentinel-2-l2a",
        "stac_extensions": ["https://stac-extensions.github.io/projection/v1.1.0/schema.json",
                            "https://stac-extensions.github.io/raster/v1.1.0/schema.json",
                            "https://stac-extensions.github.io/eo/v1.1.0/schema.json"],
        "geometry": {"type": "Polygon", "coordinates": [ring]}, "bbox": [w, s, e, n],
        "properties": {"datetime": f"{day}T09:50:31Z", "eo:cloud_cover": cover, "platform": "sentinel-2a",
                       "s2:processing_baseline": baseline, "grid:code": f"MGRS-{tile}", "proj:epsg": epsg,
                       "description": "simulated, not measured"},
        "assets": assets, "links": [],
    }  # fmt: skip


def save_items(folder: Path, items: Sequence[dict[str, Any]]) -> Path:
    """Write items as files, beside what they name."""
    for item in items:
        (folder / f"{item['id']}.json").write_text(json.dumps(item))
    return folder


@dataclass
class Server:
    """The running API.

    Parameters
    ----------
    address
        Of its landing page.
    faults
        Called with the path of each request; returns a status to answer with, ``"cut"`` for half an answer,
        or None. A test sets it.
    """

    address: str
    faults: Callable[[str], int | str | float | None] = lambda path: None
    requests: list[str] = field(default_factory=list)
    page: int = 100
    token: str = ""
    """Where there is one, files below ``/signed`` are sent to those alone who have it in the address."""


@contextlib.contextmanager
def serve(folder: Path, items: Sequence[dict[str, Any]]) -> Iterator[Server]:
    """Serve items through stac-fastapi and their files by range requests, in a thread."""
    import uvicorn

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    server = Server(f"http://127.0.0.1:{port}")
    running = uvicorn.Server(
        uvicorn.Config(_application(folder, items, server), host="127.0.0.1", port=port, log_level="critical")
    )
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    try:
        yield server
    finally:
        running.should_exit = True
        running.force_exit = True
        thread.join(10)


def _application(folder: Path, items: Sequence[dict[str, Any]], server: Server) -> Any:
    """Return stac-fastapi's application with a back end that searches the list, and the files below it."""
    import attr
    from shapely.geometry import box, shape
    from stac_fastapi.api.app import StacApi
    from stac_fastapi.types.config import ApiSettings
    from stac_fastapi.types.core import BaseCoreClient
    from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response

    folder_of = "signed" if server.token else "files"
    served = [_absolute(item, f"{server.address}/{folder_of}") for item in items]
    name = (items[0] if items else {}).get("collection", "sentinel-2-l2a")
    collection = {
        "type": "Collection", "id": name, "stac_version": "1.0.0", "license": "other",
        "links": [], "description": "simulated", "extent": {"spatial": {"bbox": [[-180, -90, 180, 90]]},
                                               "temporal": {"interval": [[None, None]]}},
    }  # fmt: skip

    @attr.s
    class Client(BaseCoreClient):
        def all_collections(self, **_: Any) -> Any:
            return {"collections": [collection], "links": []}

        def get_collection(self, collection_id: str, **_: Any) -> Any:
            return collection

        def get_item(self, item_id: str, collection_id: str, **_: Any) -> Any:
            return next(item for item in served if item["id"] == item_id)

        def item_collection(self, collection_id: str, **_: Any) -> Any:
            return {"type": "FeatureCollection", "features": served, "links": []}

        def post_search(self, search_request: Any, **_: Any) -> Any:
            found = list(served)
            if search_request.intersects is not None:
                region = shape(search_request.intersects.model_dump())
                found = [item for item in found if shape(item["geometry"]).intersects(region)]
            if search_request.bbox:
                found = [i for i in found if shape(i["geometry"]).intersects(box(*search_request.bbox))]
            first, last = search_request.start_date, search_request.end_date
            found = [i for i in found if (not first or first <= _when(i)) and (not last or _when(i) <= last)]
            found.sort(key=_when)
            most = min(search_request.limit or 10, server.page)
            page = [item for item in found if _when(item) <= _when(found[:most][-1])]
            links = []
            if len(page) < len(found):
                # The next page begins a second later.
                begin = (_when(page[-1]) + datetime.timedelta(seconds=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
                end = last.strftime("%Y-%m-%dT%H:%M:%SZ") if last else ".."
                links.append({"rel": "next", "href": f"{server.address}/search", "method": "POST",
                              "merge": True, "body": {"datetime": f"{begin}/{end}"}})  # fmt: skip
            return {"type": "FeatureCollection", "features": page, "links": links}

        def get_search(self, **_: Any) -> Any:
            raise NotImplementedError

    settings = ApiSettings(enable_response_models=False)
    app = StacApi(settings=settings, client=Client()).app

    def send(request: Any) -> Any:
        path = folder / request.path_params["path"]
        return FileResponse(path) if path.is_file() else PlainTextResponse("gone", 404)

    app.add_route("/files/{path:path}", send, methods=["GET", "HEAD"])

    def send_signed(request: Any) -> Any:
        given = request.url.query == server.token
        return send(request) if given else PlainTextResponse("not signed", 403)

    def token(request: Any) -> Any:
        return JSONResponse({"msft:expiry": "2999-01-01T00:00:00Z", "token": server.token})

    app.add_route("/signed/{path:path}", send_signed, methods=["GET", "HEAD"])
    # As https://planetarycomputer.microsoft.com/docs/concepts/sas/ describes it.
    app.add_route("/api/sas/v1/token/{collection}", token, methods=["GET"])

    @app.middleware("http")
    async def fail(request: Any, call_next: Any) -> Any:
        server.requests.append(request.url.path)
        fault = server.faults(request.url.path)
        if isinstance(fault, float):
            await asyncio.sleep(fault)
        if isinstance(fault, int):
            return PlainTextResponse("simulated fault", fault, headers={"Retry-After": "0"})
        answer = await call_next(request)
        if fault != "cut":
            return answer
        body = b"".join([chunk async for chunk in answer.body_iterator])

        async def half() -> Any:
            yield body[: len(body) // 2]

        from starlette.responses import StreamingResponse

        kept = {k: v for k, v in answer.headers.items() if k.lower() != "content-length"}
        return (
            StreamingResponse(half(), answer.status_code, kept) if body else Response(b"", answer.status_code)
        )

    return app


def _absolute(item: dict[str, Any], address: str) -> dict[str, Any]:
    assets = {key: {**a, "href": f"{address}/{a['href']}"} for key, a in item["assets"].items()}
    place = f"{address.rpartition('/')[0]}/collections/{item.get('collection')}/items/{item['id']}"
    return {**item, "assets": assets, "links": [{"rel": "self", "href": place}]}


def _when(item: dict[str, Any]) -> datetime.datetime:
    return datetime.datetime.fromisoformat(item["properties"]["datetime"])


@contextlib.contextmanager
def spawn(folder: Path, port: int = 0, token: str = "") -> Iterator[Spawned]:
    """Serve the items of a folder in a process of its own."""
    command = [sys.executable, __file__, str(folder), str(port), token]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        address = process.stdout.readline().strip()
        assert address, "the server did not start"
        try:
            yield Spawned(address, process, folder)
        finally:
            process.kill()


@dataclass
class Spawned:
    """A server in a process of its own."""

    address: str
    process: subprocess.Popen[str]
    folder: Path

    def fail(self, **faults: int | str | float) -> None:
        """Set what goes wrong from now on: pattern of a path to a status, "cut", or seconds."""
        (self.folder / "faults.json.new").write_text(json.dumps(faults))
        (self.folder / "faults.json.new").rename(self.folder / "faults.json")

    @property
    def requests(self) -> list[str]:
        """Method, path with query and range of all requests."""
        return (self.folder / "requests.txt").read_text().splitlines()


def main() -> None:
    """Serve until killed."""
    import uvicorn

    folder, port, token = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", port))
    listening.listen(64)
    items = [json.loads(path.read_text()) for path in sorted(folder.glob("S2*.json"))]

    def faults(path: str) -> int | str | float | None:
        with contextlib.suppress(FileNotFoundError):
            said = json.loads((folder / "faults.json").read_text())
            return next((what for pattern, what in said.items() if re.search(pattern, path)), None)
        return None

    server = Server(f"http://127.0.0.1:{listening.getsockname()[1]}", faults, token=token)
    app = _application(folder, items, server)

    @app.middleware("http")
    async def note(request: Any, call_next: Any) -> Any:
        with open(folder / "requests.txt", "a") as file:
            url = f"{request.url.path}?{request.url.query}"
            print(request.method, url, request.headers.get("range", ""), file=file)
        return await call_next(request)

    print(server.address, flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="critical")).run([listening])


if __name__ == "__main__":
    main()
