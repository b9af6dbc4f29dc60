"""A map as tiles for the browser of this machine: TiTiler on the loopback interface, and the page of reports.

Only what the page needs is served: tiles of the files named at the start, and the values of a pixel. No
request names a file, a formula or an address.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import socket
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import cv2
import numpy as np
from rasterio.warp import transform as project

from lulc.config import EvaluateConfig, ServeConfig
from lulc.core.schema import IGNORE, InputError, LandCoverClass, Legend
from lulc.core.storage import Resource
from lulc.core.windows import Window
from lulc.evaluation.report.document import Page, Section, render_html
from lulc.evaluation.report.viewer import ACTIVATION_RAMP, UNSURE_RAMP, WRONG_COLOR, Viewer, describe
from lulc.evaluation.report.views import UNCLASSIFIED_COLOR
from lulc.labels.schemes import load_scheme
from lulc.maps.geotiff import MapProfile
from lulc.maps.reader import REST, ClassMap, open_map
from lulc.rasters.sources import RasterSource, open_source

logger = logging.getLogger("lulc")

HOST = "127.0.0.1"
DEGREES = "EPSG:4326"

FEW = 4096
"""Longest side of a map that is read whole while one waits."""

TRUE_COLOR = ("B04", "B03", "B02")

TILE = "tiles/WebMercatorQuad/{z}/{x}/{y}.png?tilesize=256&"

BLANK = cv2.imencode(".png", np.zeros((1, 1, 4), np.uint8))[1].tobytes()
"""A transparent tile, for places beyond the map."""

ENVIRONMENT = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_PAM_ENABLED": "NO", "CPL_LOG_ERRORS": "OFF"}
"""Side-car files are not read: GDAL opens whatever they name."""


class MapServer(Resource):
    """The page of one map at an address of this machine; a context manager.

    Parameters
    ----------
    config
        Which map, which image, which port.

    Attributes
    ----------
    url
        Address of the page.

    Raises
    ------
    InputError
        If the packages that serve tiles are missing, a file can't be served, or the port is taken.
    """

    def __init__(self, config: ServeConfig) -> None:
        self._resources = ExitStack()
        try:
            application = _application(config, self._resources)
            self._socket = self._resources.enter_context(_listen(config.port))
        except BaseException:
            self._resources.close()
            raise
        import uvicorn

        self._server = uvicorn.Server(uvicorn.Config(application, log_level="warning", access_log=False))
        self.url = f"http://{HOST}:{self._socket.getsockname()[1]}/"

    def run(self) -> None:
        """Serve until the user ends it."""
        self._server.run([self._socket])

    def stop(self) -> None:
        """Ask a server that runs in another thread to end."""
        self._server.should_exit = True

    def close(self) -> None:
        """Release the port and the files."""
        self._resources.close()


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        # Who asks before the server runs is answered as soon as it does.
        listener.listen()
    except (OSError, OverflowError) as error:
        listener.close()
        raise InputError(
            f"cannot serve at {HOST}:{port}, since {error}, expected a free port",
            "Type --port 0 for any that is free.",
        ) from error
    return listener


def _application(config: ServeConfig, resources: ExitStack) -> Any:
    """The application: page, pixel, tiles of map, uncertainty and image."""
    try:
        import fastapi
        import uvicorn  # noqa: F401
        from rio_tiler.errors import TileOutsideBounds
        from starlette.middleware.trustedhost import TrustedHostMiddleware
        from starlette.responses import HTMLResponse, JSONResponse, Response
        from titiler.core.factory import TilerFactory  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"cannot serve the map, since the package '{error.name}' is not installed",
            "Install what serves tiles, in the folder of this project: pip install '.[serve]'",
        ) from error
    legend = load_scheme(config.scheme).legend if config.scheme else None
    the_map = resources.enter_context(open_map(config.map, legend, allow_vrt=config.allow_vrt))
    if not the_map.grid.crs:
        raise InputError(
            f"cannot serve '{config.map}', since it has no CRS, expected one", "Tell it: gdal_edit.py -a_srs"
        )
    application = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    # A page elsewhere that resolves its own name to this machine gets nothing.
    application.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    reference = _Reference(config, resources) if config.reference else None
    for prefix, router in _routers(config, the_map, reference).items():
        application.include_router(router, prefix=prefix)
    page = render_html(_page(config, the_map))
    values = Values(the_map, reference)

    @application.get("/")
    def show() -> Any:
        return HTMLResponse(page)

    @application.exception_handler(TileOutsideBounds)
    def blank(request: Any, error: Exception) -> Any:
        return Response(BLANK, media_type="image/png")

    @application.get("/favicon.ico")
    def icon() -> Any:
        return Response(BLANK, media_type="image/png")

    @application.get("/pixel")
    def ask(longitude: float, latitude: float) -> Any:
        return JSONResponse(values.at(longitude, latitude))

    return application


class _Reference:
    """Labels in the map's classes on the map's grid, and where the map differs, as files with overviews.

    Attributes
    ----------
    files
        Prefix of tiles to file.
    """

    def __init__(self, config: ServeConfig, resources: ExitStack) -> None:
        # These take seconds to import, which a map without a reference need not wait for.
        from lulc.evaluation.evaluate import open_inputs
        from lulc.maps.writer import PART, write_map

        named = EvaluateConfig(
            map=config.map, reference=config.reference, out="", scheme=config.scheme,
            label_field=config.label_field, allow_vrt=config.allow_vrt,
        )  # fmt: skip
        self._inputs = open_inputs(named, resources)
        folder = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="lulc-serve-")))
        legend = self._inputs.map.legend
        differs = Legend("difference", (LandCoverClass(1, "differs", WRONG_COLOR),))
        self.files = {}
        logger.info("reading the reference, and where the map differs from it")
        for name, shown, read in (("reference", legend, self.read), ("difference", differs, self._differs)):
            profile = MapProfile(self._inputs.grid, shown, "none", PART)
            self.files[name] = folder / f"{name}.tif"
            write_map(profile, partial(_one_band, read), self.files[name])

    def read(self, window: Window) -> np.ndarray:
        """The map's class numbers of the reference, uint8 (y, x), 255 where there is none."""
        return self._inputs.read_reference(window)

    def _differs(self, window: Window) -> np.ndarray:
        """1 where both have a class and not the same, 255 elsewhere."""
        mapped, labels = self._inputs.map.read(window), self.read(window)
        wrong = (mapped != labels) & (mapped != IGNORE) & (labels != IGNORE)
        return np.where(wrong, 1, IGNORE).astype(np.uint8)


def _one_band(read: Callable[[Window], np.ndarray], window: Window) -> np.ndarray:
    return read(window)[np.newaxis]


def _routers(config: ServeConfig, the_map: ClassMap, reference: _Reference | None) -> dict[str, Any]:
    """Tile routers by prefix; each is bound to one file."""
    from titiler.core.dependencies import BidxParams, DefaultDependency
    from titiler.core.factory import TilerFactory

    formula = _entropy_of(the_map)

    class Tiles(TilerFactory):
        """Tiles and nothing else of what TiTiler offers."""

        def register_routes(self) -> None:
            self.tile()

    @dataclasses.dataclass
    class Entropy(DefaultDependency):
        """The uncertainty, whatever the request says."""

        def as_dict(self, exclude_none: bool = True) -> dict[str, Any]:
            return {"expression": formula}

    def bound(file: str, layers: Any) -> Any:
        path = str(Path(file).resolve())
        return Tiles(
            path_dependency=lambda: path, layer_dependency=layers, environment_dependency=lambda: ENVIRONMENT
        ).router

    routers = {"/map": bound(config.map, BidxParams)}
    if the_map.has_activations:
        routers["/entropy"] = bound(config.map, Entropy)
    if config.image:
        routers["/image"] = bound(config.image, BidxParams)
    for name, file in (reference.files if reference else {}).items():
        routers[f"/{name}"] = bound(str(file), BidxParams)
    return routers


def _alone(the_map: ClassMap) -> bool:
    """True for a map of one class against the rest, whose file has no band of the rest."""
    return the_map.legend.classes[-1] == REST


def _entropy_of(the_map: ClassMap) -> str:
    """Band arithmetic of the uncertainty: activations are bands 2, 3, ...

    The small number keeps the logarithm of 0 finite; its term is 0 all the same.
    """
    count = len(the_map.legend)
    shares = ["b2", "(1-b2)"] if _alone(the_map) else [f"b{k}" for k in range(2, count + 2)]
    terms = "+".join(f"{p}*log({p}+1e-9)" for p in shares)
    return f"-({terms})/{np.log(count):.9f}"


def _page(config: ServeConfig, the_map: ClassMap) -> Page:
    from rio_tiler.io import Reader

    with Reader(config.map) as reader:
        zoom, bounds = reader.maxzoom, reader.get_geographic_bounds(DEGREES)
        if max(the_map.grid.shape) > FEW and not reader.dataset.overviews(1):
            logger.warning(
                "'%s' has no overviews: seen from afar, every pixel of it is read (gdaladdo adds them)",
                config.map,
            )
    data = {
        "source": "served",
        **describe(the_map.grid, the_map.legend, the_map.name),
        "hasLength": True,
        "digits": 3,
        "step": 1,
        "bounds": list(bounds),
        "maxZoom": zoom,
        "layers": _layers(config, the_map),
    }
    viewer = Viewer(data, f"Land-cover map {the_map.name}, as tiles of this machine", live=True)
    text = "Tiles and values come from the server that was started on this machine; nothing else is asked."
    return Page(the_map.name, (), (Section("Map", (text,)),), viewer)


def _layers(config: ServeConfig, the_map: ClassMap) -> list[dict[str, Any]]:
    def layer(key: str, name: str, kind: str, tiles: str, **more: Any) -> dict[str, Any]:
        return {"id": key, "name": name, "kind": kind, "tiles": tiles, "on": False, "group": "layers"} | more

    def ramp(name: str) -> str:
        return urlencode({"rescale": "0,1", "colormap_name": name, "unscale": "true"})

    legend, alone = the_map.legend, _alone(the_map)
    colors = {0: REST.color if alone else UNCLASSIFIED_COLOR}
    colors |= {c.number: c.color for c in legend.classes}
    palette = urlencode({"bidx": 1, "colormap": json.dumps(colors)})
    layers = [layer("map", "Map", "classes", f"map/{TILE}{palette}", on=True)]
    if config.reference:
        wrong = urlencode({"bidx": 1, "colormap": json.dumps({1: WRONG_COLOR})})
        layers.append(layer("reference", "Reference", "classes", f"reference/{TILE}{palette}"))
        name, tiles = "Map differs from reference", f"difference/{TILE}{wrong}"
        layers.append(layer("difference", name, "difference", tiles, color=WRONG_COLOR))
    if config.image:
        layers.insert(0, layer("image", "Image", "picture", f"image/{TILE}{_stretch(config)}", on=True))
    if the_map.has_activations:
        tiles = f"entropy/{TILE}{ramp('inferno')}"
        layers.append(layer("entropy", "Uncertainty", "ramp", tiles, colors=UNSURE_RAMP))
        for c in legend.classes[: 1 if alone else None]:
            tiles = f"map/{TILE}bidx={c.number + 1}&{ramp('viridis')}"
            more = {"colors": ACTIVATION_RAMP, "group": "activations"}
            layers.append(layer(f"activation{c.number}", f"{c.number} {c.name}", "ramp", tiles, **more))
    return layers


def _stretch(config: ServeConfig) -> str:
    """Bands and stretch of the image's tiles: 2 % of each end saturated, seen in its overviews."""
    from rio_tiler.io import Reader

    image = config.image or ""
    with open_source(image, allow_vrt=config.allow_vrt) as source:
        if not isinstance(source, RasterSource):
            raise InputError(
                f"cannot show '{image}', since tiles are made of GeoTIFF, .img and JPEG 2000",
                "Convert it: gdal_translate IN OUT.tif",
            )
        names = list(source.names)
    known = set(TRUE_COLOR) <= set(names)
    bands = [names.index(n) + 1 for n in TRUE_COLOR] if known else [min(k, len(names)) for k in (1, 2, 3)]
    with Reader(image) as reader:
        small = reader.preview(indexes=bands, max_size=512).array
    limits = []
    for plane in small:
        values = plane.compressed()
        low, high = np.percentile(values[values != 0], (2, 98)) if (values != 0).any() else (0, 1)
        limits.append(("rescale", f"{low:g},{max(high, low + 1e-6):g}"))
    return urlencode([*(("bidx", str(b)) for b in bands), *limits])


class Values:
    """What a map says about a place.

    Parameters
    ----------
    the_map, reference
        Open; they are read by one thread at a time.
    """

    def __init__(self, the_map: ClassMap, reference: _Reference | None = None) -> None:
        self._map, self._reference = the_map, reference
        self._lock = threading.Lock()

    def at(self, longitude: float, latitude: float) -> dict[str, Any] | None:
        """Class and activations of the pixel at a place, JSON-ready; None outside the map."""
        grid = self._map.grid
        xs, ys = project(DEGREES, grid.crs, [longitude], [latitude])
        col, row = ~grid.transform @ (xs[0], ys[0])
        if not (0 <= row < grid.height and 0 <= col < grid.width):
            return None
        pixel = Window(int(row), int(col), 1, 1)
        with self._lock:
            number = int(self._map.read(pixel)[0, 0])
            shares = self._map.read_activations(pixel)[0, 0] if self._map.has_activations else None
            labels = {"reference": int(self._reference.read(pixel)[0, 0])} if self._reference else {}
        x, y = grid.transform @ (pixel.col + 0.5, pixel.row + 0.5)
        answer: dict[str, Any] = {"row": pixel.row, "col": pixel.col, "x": x, "y": y, "map": number}
        if shares is not None:
            answer["activations"] = [float(v) if np.isfinite(v) else None for v in shares]
        return answer | labels | {"corners": self._corners(pixel)}

    def _corners(self, pixel: Window) -> list[list[float]]:
        """(latitude, longitude) of two opposite corners of a pixel."""
        grid = self._map.grid
        ends = [grid.transform @ (pixel.col, pixel.row), grid.transform @ (pixel.col + 1, pixel.row + 1)]
        longitudes, latitudes = project(grid.crs, DEGREES, [x for x, _ in ends], [y for _, y in ends])
        return [[b, a] for a, b in zip(longitudes, latitudes, strict=True)]
