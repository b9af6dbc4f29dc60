"""A map as tiles for the browser of this machine: a server on the loopback interface, and its page.

It serves only tiles of the files named at the start, and the values of a pixel. A request consists of a few
bounded numbers and names no file, formula or address. Side-car files are not read, since GDAL opens any file
that they name (`lulc.rasters.sources`).
"""

from __future__ import annotations

import logging
import re
import socket
import tempfile
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.errors import RasterioError
from rasterio.warp import transform as project

from lulc.config import EvaluateConfig, ServeConfig
from lulc.core.packages import require
from lulc.core.schema import IGNORE, InputError, LandCoverClass, Legend
from lulc.core.storage import Resource
from lulc.core.windows import Window
from lulc.evaluation.report.document import Page, Section, render_html
from lulc.evaluation.report.viewer import WRONG_COLOR, Viewer, describe
from lulc.evaluation.tiles import BLANK, READERS, TILE_SIZE, TileFile, TileLayer, layers_of
from lulc.labels.schemes import load_scheme
from lulc.maps.geotiff import MapProfile
from lulc.maps.reader import ClassMap, open_map

logger = logging.getLogger("lulc")

HOST = "127.0.0.1"
NAMES = (HOST, "localhost")
DEGREES = "EPSG:4326"

MAX_SIDE = 4096  # longest side of a map that is fast without overviews

TILE_SIZES = (str(TILE_SIZE), str(2 * TILE_SIZE))
MAX_ZOOM = 24

CONNECTIONS = 64  # concurrent connections; a browser opens six

TILE_SECONDS, EXCHANGE_SECONDS, SHUTDOWN_SECONDS = 30, 60, 3
"""Time limits for reading a tile, for a request with its answer, and for open answers at shutdown."""


class MapServer(Resource):
    """The page of one map at an address of this machine; a context manager.

    Raises InputError if the packages that serve tiles are missing, a file can't be served, or the port is
    taken.

    Attributes
    ----------
    url
        Address of the page.
    """

    def __init__(self, config: ServeConfig) -> None:
        self._resources = ExitStack()
        try:
            application = _application(config, self._resources)
            self._socket = self._resources.enter_context(_listen(config.port))
        except BaseException:
            self._resources.close()
            raise
        self._server = _server_of(application)
        self.url = f"http://{HOST}:{self._socket.getsockname()[1]}/"

    def run(self) -> None:
        """Serve until the user ends it."""
        self._server.run([self._socket])

    def stop(self) -> None:
        """Ask a server that runs in another thread to end."""
        self._server.should_exit = True

    def close(self) -> None:
        self._resources.close()


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        # Early requests wait until the server runs.
        listener.listen()
    except OSError as error:
        listener.close()
        raise InputError(
            f"cannot serve at {HOST}:{port}, since {error}, expected a free port",
            "Type --port 0 for any free one.",
        ) from error
    return listener


def _server_of(application: Any) -> Any:
    """Return a server that closes slow connections."""
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Bounded(H11Protocol):
        """A connection with a time limit for each request and its answer."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._end = self.loop.call_later(EXCHANGE_SECONDS, transport.abort)

        def on_response_complete(self) -> None:
            self._end.cancel()
            self._end = self.loop.call_later(EXCHANGE_SECONDS, self.transport.abort)
            super().on_response_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._end.cancel()
            super().connection_lost(exc)

    options: dict[str, Any] = {"log_level": "critical", "access_log": False, "ws": "none", "lifespan": "off"}
    limits: dict[str, Any] = {"limit_concurrency": CONNECTIONS, "timeout_graceful_shutdown": SHUTDOWN_SECONDS}
    return uvicorn.Server(uvicorn.Config(application, http=Bounded, **options, **limits))


def _application(config: ServeConfig, resources: ExitStack) -> Any:
    """Return the application: page, pixel values, and tiles of every layer."""
    require(("rio_tiler", "starlette", "uvicorn"), "serve the map", "serve")
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import HTMLResponse, JSONResponse, Response
    from starlette.routing import Route

    legend = load_scheme(config.scheme).legend if config.scheme else None
    the_map = resources.enter_context(open_map(config.map, legend, allow_vrt=config.allow_vrt))
    if not the_map.grid.crs:
        raise InputError(
            f"cannot serve '{config.map}', since it has no CRS, expected one",
            f"Assign it, for example: gdal_edit.py -a_srs EPSG:3067 {config.map}",
        )
    reference = _Reference(config, resources) if config.reference else None
    file = TileFile(config.map, resources, allow_vrt=config.allow_vrt)
    image = TileFile(config.image, resources, allow_vrt=config.allow_vrt) if config.image else None
    layers = layers_of(the_map, file, image, reference.files(resources) if reference else None)
    page = render_html(_page(the_map, layers))
    values = Values(the_map, reference)
    readers = _Readers()

    async def show(request: Any) -> Any:
        _parameters(request, ())
        return HTMLResponse(page)

    async def icon(request: Any) -> Any:
        _parameters(request, ())
        return Response(BLANK, media_type="image/png")

    async def pixel(request: Any) -> Any:
        parameters = _parameters(request, ("longitude", "latitude"))
        place = [_number(parameters, name, limit) for name, limit in (("longitude", 180), ("latitude", 90))]
        return JSONResponse(await readers.run(values.at, *place))

    async def tile(request: Any) -> Any:
        layer = next((layer for layer in layers if layer.id == request.path_params["layer"]), None)
        z, x, y = (_index(request.path_params[name]) for name in "zxy")
        if layer is None or z > MAX_ZOOM or max(x, y) >= 2**z:
            raise _refusal(404, "there is no such tile")
        image = await readers.run(layer.tile, x, y, z, *_style_of(request, layer))
        return Response(image, media_type="image/png")

    return Starlette(
        routes=[
            Route("/", show),
            Route("/favicon.ico", icon),
            Route("/pixel", pixel),
            Route("/{layer}/tiles/WebMercatorQuad/{z}/{x}/{y}.png", tile),
        ],
        # Refuses pages of other hosts whose name resolves to this machine, and pages that embed tiles.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(NAMES)), Middleware(_SameOrigin)],
    )


class _SameOrigin:
    """Middleware that refuses requests from other origins and forbids embedding of the answers."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.datastructures import Headers, MutableHeaders
        from starlette.responses import PlainTextResponse

        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_POLICY)
            await send(message)

        headers = Headers(scope=scope)
        foreign = headers.get("origin", f"http://{headers.get('host')}") != f"http://{headers.get('host')}"
        embedded = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        if foreign or (embedded and headers.get("sec-fetch-mode") != "navigate"):
            refusal = PlainTextResponse("only requests from the page of this server are answered", 403)
            await refusal(scope, receive, send_with_policy)
        else:
            await self._app(scope, receive, send_with_policy)


_POLICY = {"cross-origin-resource-policy": "same-origin", "x-content-type-options": "nosniff"}


class _Readers:
    """A few threads that read for requests, with a time limit."""

    def __init__(self) -> None:
        self._limit: Any = None

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function in a thread."""
        import anyio

        self._limit = self._limit or anyio.CapacityLimiter(READERS)
        try:
            with anyio.fail_after(TILE_SECONDS):
                # An abandoned thread reads to its end, and counts as busy until then.
                return await anyio.to_thread.run_sync(
                    partial(function, *arguments), abandon_on_cancel=True, limiter=self._limit
                )
        except TimeoutError as error:
            raise _refusal(503, f"that takes longer than {TILE_SECONDS} seconds") from error
        except (InputError, RasterioError) as error:
            logger.warning("cannot answer a request: %s", error)
            raise _refusal(500, "the file can't be read there") from error


def _refusal(status: int, why: str) -> Exception:
    from starlette.exceptions import HTTPException

    return HTTPException(status, why)


def _parameters(request: Any, known: Iterable[str]) -> dict[str, str]:
    """Return the parameters of a request; refuse unknown and repeated ones."""
    items = request.query_params.multi_items()
    if not {name for name, _ in items} <= set(known) or len(dict(items)) < len(items):
        raise _refusal(400, f"expected no parameters but {', '.join(known) or 'none'}, each once")
    return dict(items)


def _number(parameters: dict[str, str], name: str, limit: float) -> float:
    """Return a number from -`limit` to `limit`."""
    text = parameters.get(name, "")
    if not re.fullmatch(r"-?\d{1,3}(\.\d{1,40})?(e-\d{1,2})?", text) or abs(float(text)) > limit:
        raise _refusal(400, f"expected {name} as a number from -{limit} to {limit}")
    return float(text)


def _index(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,8}", text):
        raise _refusal(404, "there is no such tile")
    return int(text)


def _style_of(request: Any, layer: TileLayer) -> tuple[int, int | None]:
    """Return the side of the tile and the single class to show, if any."""
    parameters = _parameters(request, ("tilesize", "alone") if layer.kind == "classes" else ("tilesize",))
    size, alone = parameters.get("tilesize", TILE_SIZES[0]), parameters.get("alone")
    if size not in TILE_SIZES:
        raise _refusal(400, f"expected tilesize as one of {', '.join(TILE_SIZES)}")
    if alone is not None and not re.fullmatch(r"[0-9]{1,3}", alone):
        raise _refusal(400, "expected alone as a class number")
    return int(size), None if alone is None else int(alone)


class _Reference:
    """Reference on the map's grid in the map's classes, and its differences from the map, with overviews."""

    def __init__(self, config: ServeConfig, resources: ExitStack) -> None:
        # A map without a reference need not wait for these slow imports.
        from lulc.evaluation.evaluate import open_inputs
        from lulc.maps.writer import PART, write_map

        names = {f.name for f in fields(EvaluateConfig)} & {f.name for f in fields(ServeConfig)} - {"image"}
        values = {name: getattr(config, name) for name in names}
        self._inputs = open_inputs(EvaluateConfig(out="", **values), resources)
        folder = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="lulc-serve-")))
        legend = self._inputs.map.legend
        differs = Legend("difference", (LandCoverClass(1, "differs", WRONG_COLOR),))
        self._files = []
        logger.info("reading the reference and its differences from the map")
        for name, shown, read in (("reference", legend, self.read), ("difference", differs, self._differs)):
            profile = MapProfile(self._inputs.grid, shown, "none", PART)
            self._files.append(folder / f"{name}.tif")
            write_map(profile, partial(_one_band, read), self._files[-1])

    def files(self, resources: ExitStack) -> tuple[TileFile, TileFile]:
        """Open the files of the reference and of the differences."""
        labels, wrong = (TileFile(str(path), resources) for path in self._files)
        return labels, wrong

    def read(self, window: Window) -> np.ndarray:
        """Read the map's class numbers of the reference, uint8 (y, x), 255 = none."""
        return self._inputs.read_reference(window)

    def _differs(self, window: Window) -> np.ndarray:
        """Return 1 where map and reference have different classes, 255 elsewhere."""
        mapped, labels = self._inputs.map.read(window), self.read(window)
        wrong = (mapped != labels) & (mapped != IGNORE) & (labels != IGNORE)
        return np.where(wrong, 1, IGNORE).astype(np.uint8)


def _one_band(read: Callable[[Window], np.ndarray], window: Window) -> np.ndarray:
    return read(window)[np.newaxis]


def _page(the_map: ClassMap, layers: list[TileLayer]) -> Page:
    file = next(layer.file for layer in layers if layer.id == "map")
    zoom, bounds, reduced = file.read(
        lambda reader: (reader.maxzoom, reader.get_geographic_bounds(DEGREES), reader.dataset.overviews(1))
    )
    if max(the_map.grid.shape) > MAX_SIDE and not reduced:
        logger.warning(
            "'%s' has no overviews, so that small scales are slow; gdaladdo adds overviews", the_map.name
        )
    data = {
        "source": "served",
        **describe(the_map.grid, the_map.legend, the_map.name),
        "hasLength": True, "digits": 3, "step": 1, "bounds": list(bounds), "maxZoom": zoom,
        "layers": [layer.described() for layer in layers],
    }  # fmt: skip
    viewer = Viewer(data, f"Land-cover map {the_map.name}, as tiles of this machine", live=True)
    text = "Tiles and values come from the server on this machine; the page opens no other connection."
    return Page(the_map.name, (), (Section("Map", (text,)),), viewer)


class Values:
    """Values of an open map and reference at a point, read by one thread at a time."""

    def __init__(self, the_map: ClassMap, reference: _Reference | None = None) -> None:
        self._map, self._reference = the_map, reference
        self._lock = threading.Lock()

    def at(self, longitude: float, latitude: float) -> dict[str, Any] | None:
        """Return class and activations of the pixel at a point, JSON-ready; None outside the map."""
        grid = self._map.grid
        try:
            xs, ys = project(DEGREES, grid.crs, [longitude], [latitude])
        except RasterioError:  # a point that the projection of the map can't represent
            return None
        col, row = ~grid.transform @ (xs[0], ys[0])
        if not (0 <= row < grid.height and 0 <= col < grid.width):
            return None
        pixel = Window(int(row), int(col), 1, 1)
        with self._lock:
            number = int(self._map.read(pixel)[0, 0])
            activations = self._map.read_activations(pixel)[0, 0] if self._map.has_activations else None
            labels = {"reference": int(self._reference.read(pixel)[0, 0])} if self._reference else {}
        x, y = grid.transform @ (pixel.col + 0.5, pixel.row + 0.5)
        answer: dict[str, Any] = {"row": pixel.row, "col": pixel.col, "x": x, "y": y, "map": number}
        if activations is not None:
            answer["activations"] = [float(v) if np.isfinite(v) else None for v in activations]
        return answer | labels | {"corners": self._corners(pixel)}

    def _corners(self, pixel: Window) -> list[list[float]]:
        """Return (latitude, longitude) of two opposite corners of a pixel."""
        grid = self._map.grid
        ends = [grid.transform @ (pixel.col, pixel.row), grid.transform @ (pixel.col + 1, pixel.row + 1)]
        longitudes, latitudes = project(grid.crs, DEGREES, [x for x, _ in ends], [y for _, y in ends])
        return [[b, a] for a, b in zip(longitudes, latitudes, strict=True)]
