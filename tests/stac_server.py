"""A STAC API with simulated scenes on this machine: stac-fastapi, and files by range requests.

Nothing here was measured. The ground is a smooth function of place, drawn into two tiles of neighbouring UTM
zones; each date has clouds of its own, which the scene classification knows.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import socket
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
    return 1000 + 150 * BANDS.index(band) + 4000 * (lon - 23.9) ** 2 + 6000 * (lat - 61.2)


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
    faults: Callable[[str], int | str | None] = lambda path: None
    requests: list[str] = field(default_factory=list)


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
    from starlette.responses import FileResponse, PlainTextResponse, Response

    served = [_absolute(item, server.address) for item in items]
    collection = {
        "type": "Collection", "id": "sentinel-2-l2a", "stac_version": "1.0.0", "license": "other",
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
            return {"type": "FeatureCollection", "features": found[: search_request.limit or 10], "links": []}

        def get_search(self, **_: Any) -> Any:
            raise NotImplementedError

    settings = ApiSettings(enable_response_models=False)
    app = StacApi(settings=settings, client=Client()).app

    def send(request: Any) -> Any:
        path = folder / request.path_params["path"]
        return FileResponse(path) if path.is_file() else PlainTextResponse("gone", 404)

    app.add_route("/files/{path:path}", send, methods=["GET", "HEAD"])

    @app.middleware("http")
    async def fail(request: Any, call_next: Any) -> Any:
        server.requests.append(request.url.path)
        fault = server.faults(request.url.path)
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
    assets = {key: {**a, "href": f"{address}/files/{a['href']}"} for key, a in item["assets"].items()}
    return {**item, "assets": assets}


def _when(item: dict[str, Any]) -> datetime.datetime:
    return datetime.datetime.fromisoformat(item["properties"]["datetime"])
