/* The map of a page: layers painted from packed values, or tiles of a server; a click names the pixel. */
"use strict";

(() => {
  const host = document.getElementById("viewer");
  const data = JSON.parse(document.getElementById("viewer-data").textContent);
  const find = (name) => host.querySelector(`.viewer-${name}`);

  /* An element with text or children; attributes that are null are left out. */
  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== null) element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  }

  const rgb = (color) => [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16));
  const PALE = 38; /* alpha of classes that are not the one looked at */
  const opaque = ([r, g, b], alpha = 255) => ((alpha << 24) | (b << 16) | (g << 8) | r) >>> 0;

  /* 256 colours at equal steps between the given ones. */
  function ramp(colors) {
    const stops = colors.map(rgb);
    return Array.from({ length: 256 }, (_, i) => {
      const at = (i / 255) * (stops.length - 1);
      const k = Math.min(Math.floor(at), stops.length - 2);
      return opaque(stops[k].map((v, c) => Math.round(v + (stops[k + 1][c] - v) * (at - k))));
    });
  }

  function swatch(color) {
    const box = make("span", { class: "viewer-swatch", "aria-hidden": "true" });
    box.style.backgroundColor = color;
    return box;
  }

  const nameOf = (number, classes = data.classes) =>
    number === 255 ? "no data" : number === 0 ? "unclassified" : classes[number - 1].name;
  const colorOf = (number, classes = data.classes) => (number ? classes[number - 1].color : data.unclassified);

  /* The legend of a layer of classes: its own, or that of the map. */
  const legendOf = (layer) => layer.classes ?? data.classes;

  /* Everything inside the page: rows and columns of the map, metres on the ground. */
  function embedded() {
    const [height, width] = data.size;
    const [down, across] = data.pixel;
    const void_ = data.digits === 3 ? 65535 : 255;
    const full = 10 ** data.digits;
    const unpacked = new Map();

    function plane(key) {
      if (!unpacked.has(key)) unpacked.set(key, unpack(data.planes[key]));
      return unpacked.get(key);
    }

    async function unpack(packed) {
      const text = atob(packed.data);
      const bytes = new Uint8Array(text.length);
      for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
      const raw = new Uint8Array(await new Response(stream).arrayBuffer());
      if (packed.bytes === 1) return raw;
      const count = raw.length / 2;
      const values = new Uint16Array(count);
      for (let i = 0; i < count; i++) values[i] = (raw[i] << 8) | raw[count + i];
      return values;
    }

    const activations = () => Promise.all(data.classes.map((c) => plane(`activation${c.number}`)));

    /* What one value adds to the entropy, so that no logarithm is taken per pixel. */
    const terms = Float32Array.from({ length: full + 1 }, (_, v) =>
      v ? (-(v / full) * Math.log(v / full)) / Math.log(data.classes.length) : 0);

    async function entropy() {
      const planes = await activations();
      const result = new Float32Array(height * width);
      for (const values of planes) {
        for (let i = 0; i < result.length; i++) {
          result[i] += values[i] === void_ ? NaN : terms[Math.min(values[i], full)];
        }
      }
      return result;
    }

    /* Reduced levels are made here, of what the page holds already: n x n pixels become one. */
    function reduce(n, each) {
      const [rows, columns] = [Math.ceil(height / n), Math.ceil(width / n)];
      for (let row = 0, k = 0; row < rows; row++) {
        for (let column = 0; column < columns; column++, k++) {
          const [bottom, right] = [Math.min(height, (row + 1) * n), Math.min(width, (column + 1) * n)];
          each(k, (see) => {
            for (let i = row * n; i < bottom; i++) {
              for (let j = column * n; j < right; j++) see(i * width + j);
            }
          });
        }
      }
    }

    /* The commonest class of n x n pixels, the lowest number of several. */
    function commonest(values, n) {
      if (n === 1) return values;
      const result = new Uint8Array(Math.ceil(height / n) * Math.ceil(width / n));
      const counts = new Uint32Array(256);
      reduce(n, (k, visit) => {
        let best = 255;
        visit((i) => (counts[values[i]] += 1));
        visit((i) => {
          const v = values[i];
          if (counts[v] > counts[best] || (counts[v] === counts[best] && v < best)) best = v;
        });
        visit((i) => (counts[values[i]] = 0));
        result[k] = best;
      });
      return result;
    }

    /* The mean of what n x n pixels hold, NaN where `value` gives none for any. */
    function means(value, n) {
      if (n === 1) return Float32Array.from({ length: height * width }, (_, i) => value(i));
      const result = new Float32Array(Math.ceil(height / n) * Math.ceil(width / n));
      reduce(n, (k, visit) => {
        let sum = 0;
        let count = 0;
        visit((i) => {
          const v = value(i);
          if (Number.isNaN(v)) return;
          sum += v;
          count += 1;
        });
        result[k] = sum / count;
      });
      return result;
    }

    async function paint(layer, pixels, n) {
      if (layer.kind === "classes") {
        const alone = (number) => layer.alone === undefined || layer.alone === number;
        const colors = layer.palette.map((c, number) => opaque(rgb(c), alone(number) ? 255 : PALE));
        const values = commonest(await plane(layer.id), n);
        for (let i = 0; i < pixels.length; i++) pixels[i] = colors[values[i]] ?? 0;
      } else if (layer.kind === "difference") {
        const [mapped, reference] = await Promise.all([plane("map"), plane("reference")]);
        const shares = means((i) =>
          mapped[i] === 255 || reference[i] === 255 ? NaN : Number(mapped[i] !== reference[i]), n);
        for (let i = 0; i < pixels.length; i++) {
          pixels[i] = shares[i] ? opaque(rgb(layer.color), Math.round(255 * shares[i])) : 0;
        }
      } else {
        const colors = ramp(layer.colors);
        const unsure = layer.id === "entropy";
        const values = unsure ? await entropy() : await plane(layer.id);
        const share = unsure ? (i) => values[i] : (i) => (values[i] === void_ ? NaN : values[i] / full);
        const shares = means(share, n);
        for (let i = 0; i < pixels.length; i++) {
          pixels[i] = Number.isNaN(shares[i]) ? 0 : colors[Math.min(255, Math.round(255 * shares[i]))];
        }
      }
    }

    const pictures = new Map();

    function picture(layer, n) {
      if (layer.kind === "picture") return layer.source;
      const key = `${layer.id} ${n} ${layer.alone}`;
      if (!pictures.has(key)) pictures.set(key, draw(layer, n));
      return pictures.get(key);
    }

    async function draw(layer, n) {
      const size = { width: Math.ceil(width / n), height: Math.ceil(height / n) };
      const canvas = make("canvas", size);
      const context = canvas.getContext("2d");
      const image = context.createImageData(size.width, size.height);
      await paint(layer, new Uint32Array(image.data.buffer), n);
      context.putImageData(image, 0, 0);
      return URL.createObjectURL(await new Promise((done) => canvas.toBlob(done)));
    }

    const corner = (row, col) => L.latLng(-row * down, col * across);
    const bounds = L.latLngBounds(corner(0, 0), corner(...data.shape));
    const rectangle = ([row, col, rows, cols]) => L.latLngBounds(corner(row, col), corner(row + rows, col + cols));

    /* What the pixels of level n cover: whole blocks, at the lower and right edge beyond the map. */
    const covered = (n) => L.latLngBounds(corner(0, 0),
      corner(...[height, width].map((side) => Math.ceil(side / n) * n * data.step)));

    /* How many held pixels, 1, 2, 4, ... to a side, one pixel of the screen has room for. */
    function reduction() {
      const side = map.options.crs.scale(map.getZoom()) * across * data.step * window.devicePixelRatio;
      return 2 ** Math.max(0, Math.floor(Math.log2(1 / side)));
    }

    return {
      bounds,
      rectangle,
      reduction,
      options: { crs: L.CRS.Simple, maxZoom: Math.log2(32 / across), minZoom: -40 },
      layer: async (layer, zIndex) => {
        const className = layer.kind === "picture" ? "" : "viewer-pixels";
        const n = reduction();
        const shown = covered(layer.kind === "picture" ? 1 : n);
        return L.imageOverlay(await picture(layer, n), shown, { zIndex, className, alt: layer.name });
      },
      refresh: async (layer, overlay) => {
        const [n, alone] = [reduction(), layer.alone];
        const url = await picture(layer, n);
        if (layer.kind === "picture" || n !== reduction() || alone !== layer.alone) return;
        if (overlay._url !== url) overlay.setUrl(url).setBounds(covered(n));
      },
      inspect: async (point) => {
        const at = [Math.floor(-point.lat / down), Math.floor(point.lng / across)];
        if (at.some((v, axis) => v < 0 || v >= data.shape[axis])) return null;
        const [i, j] = at.map((v) => Math.floor(v / data.step));
        const [row, col] = [i * data.step, j * data.step];
        const index = i * width + j;
        const [a, b, c, d, e, f] = data.transform;
        const answer = {
          row, col,
          x: a * (col + 0.5) + b * (row + 0.5) + c,
          y: d * (col + 0.5) + e * (row + 0.5) + f,
          map: (await plane("map"))[index],
          reference: data.planes.reference && (await plane("reference"))[index],
          groups: await Promise.all(data.layers.filter((layer) => layer.classes).map(async (layer) =>
            [layer, (await plane(layer.id))[index]])),
          outline: rectangle([row, col, data.step, data.step]),
        };
        if (data.hasActivations) {
          const values = (await activations()).map((p) => p[index]);
          answer.activations = values.map((v) => (v === void_ ? null : v / full));
        }
        return answer;
      },
    };
  }

  /* Tiles and values of the server that gave this page. */
  function served() {
    /* Tiles of a class alone: the server paints the others as pale as the pages do. */
    const tiles = (layer) => layer.tiles + (layer.alone === undefined ? "" : `&alone=${layer.alone}`);

    const [west, south, east, north] = data.bounds;
    const bounds = L.latLngBounds([south, west], [north, east]);
    return {
      bounds,
      options: { maxZoom: data.maxZoom + 4, minZoom: 0 },
      layer: async (layer, zIndex) =>
        L.tileLayer(tiles(layer), { zIndex, bounds, maxNativeZoom: data.maxZoom, maxZoom: data.maxZoom + 4,
          className: layer.kind === "picture" ? "" : "viewer-pixels" }),
      reduction: () => 1,
      refresh: async (layer, overlay) => {
        if (layer.kind !== "classes" || overlay._url === tiles(layer)) return;
        /* Leaflet's own redraw asks for tiles of a zoom between two levels; a layer that is new doesn't. */
        overlay.setUrl(tiles(layer), true).remove().addTo(map);
      },
      inspect: async (point) => {
        const { lng, lat } = point.wrap();
        const asked = await fetch(`pixel?longitude=${lng}&latitude=${lat}`);
        if (!asked.ok) return null;
        const answer = await asked.json();
        return answer && { ...answer, outline: L.latLngBounds(answer.corners) };
      },
    };
  }

  if (data.source === "embedded" && !window.DecompressionStream) {
    const text = "This browser is too old for the map that can be moved; the pictures below show the same.";
    host.replaceChildren(make("p", { class: "viewer-old" }, text));
    return;
  }
  const source = data.source === "embedded" ? embedded() : served();
  const map = L.map(find("map"), {
    ...source.options, attributionControl: false, zoomSnap: 0, zoomDelta: 1, wheelPxPerZoomLevel: 100,
    maxBoundsViscosity: 0.8, zoomControl: false,
  });
  L.control.zoom({ position: "topleft", zoomInTitle: "Nearer", zoomOutTitle: "Farther" }).addTo(map);
  if (data.hasLength) L.control.scale({ imperial: false, maxWidth: 140 }).addTo(map);
  const home = () => map.fitBounds(source.bounds, { animate: false, padding: [8, 8] });
  home();
  map.setMinZoom(map.getZoom() - 1).setMaxBounds(source.bounds.pad(0.5));
  find("home").addEventListener("click", home);

  /* Layers */
  const overlays = new Map(); /* layer id to the promise of its overlay */
  let loading = 0;

  /* Layers are made one beside the other, and a box may be clicked again meanwhile: its last state counts. */
  async function busy(work) {
    loading += 1;
    host.setAttribute("aria-busy", "true");
    try {
      await work();
    } finally {
      loading -= 1;
      if (!loading) host.removeAttribute("aria-busy");
    }
  }

  function show(layer, box) {
    return busy(async () => {
      if (box.checked && !overlays.has(layer.id)) {
        const index = data.layers.indexOf(layer);
        overlays.set(layer.id, Promise.resolve(source.layer(layer, layer.kind === "difference" ? 900 : index + 1)));
      }
      const overlay = await overlays.get(layer.id);
      if (overlay && box.checked) overlay.addTo(map).setOpacity(layer.opacity);
      else overlay?.remove();
      await refresh(layer);
    });
  }

  /* What is shown of a layer follows the zoom, and the class that is looked at alone. */
  async function refresh(layer) {
    const overlay = await overlays.get(layer.id);
    if (overlay && map.hasLayer(overlay)) await source.refresh(layer, overlay);
  }

  function tellLevel() {
    const n = source.reduction();
    find("level-shown").textContent = n > 1
      ? `Level 1:${n * data.step} is shown: of each ${n} × ${n} pixels of this page the commonest class, the ` +
        "mean value, or the share that differs. Nearer, it shows them one by one."
      : data.step > 1 ? `Level 1:${data.step} is shown: rows and columns that are multiples of ${data.step}.` : "";
  }

  map.on("zoomend", () => {
    tellLevel();
    busy(() => Promise.all(data.layers.map(refresh)));
  });
  tellLevel();

  function row(layer) {
    layer.opacity = 1;
    const box = make("input", { type: "checkbox", id: `layer-${layer.id}` });
    const fade = make("input", { type: "range", min: 0, max: 100, value: 100, step: 5,
      id: `fade-${layer.id}`, "aria-label": `Opacity of ${layer.name}` });
    const key = layer.colors ? gradient(layer.colors) : layer.color ? swatch(layer.color) : "";
    const item = make("li", {}, make("label", { for: box.id }, box, key, make("span", {}, layer.name)), fade);
    const update = () => {
      keys.get(layer.id)?.toggleAttribute("hidden", !box.checked);
      item.classList.toggle("viewer-on", box.checked);
      fade.disabled = !box.checked;
      return show(layer, box);
    };
    box.checked = layer.on;
    box.addEventListener("change", update);
    fade.addEventListener("input", () => {
      layer.opacity = fade.value / 100;
      overlays.get(layer.id)?.then((overlay) => overlay.setOpacity(layer.opacity));
    });
    update();
    return item;
  }

  function gradient(colors) {
    const bar = make("span", { class: "viewer-gradient", title: "from 0 to 1", "aria-hidden": "true" });
    bar.style.backgroundImage = `linear-gradient(to right, ${colors.join(",")})`;
    return bar;
  }

  /* Legends: that of the map, and those of the levels that are switched on. A class can be looked at alone. */
  const keys = new Map();
  const percent = (share) => (share < 0.0005 ? "<0.1 %" : `${(100 * share).toFixed(1)} %`);

  function legend(layers, numbers, shares) {
    const classes = legendOf(layers[0]);
    const buttons = new Map(numbers.map((n) => [n, make("button",
      { type: "button", class: "viewer-class", "aria-pressed": "false" },
      swatch(colorOf(n, classes)), make("span", {}, `${n} ${nameOf(n, classes)}`))]));
    for (const [number, button] of buttons) {
      button.addEventListener("click", () => {
        const alone = layers[0].alone === number ? undefined : number;
        for (const [n, other] of buttons) other.setAttribute("aria-pressed", String(n === alone));
        for (const layer of layers) layer.alone = alone;
        busy(() => Promise.all(layers.map(refresh)));
      });
    }
    return [...buttons].map(([n, button]) => make("li", {}, button,
      shares ? make("span", { class: "viewer-share" }, percent(shares[n])) : ""));
  }

  const numbers = [...data.classes.map((c) => c.number), ...(data.shares?.[0] ? [0] : [])];
  find("legend").append(...legend(
    data.layers.filter((layer) => layer.kind === "classes" && !layer.classes),
    numbers.filter((n) => !data.shares || data.shares[n]), data.shares));
  for (const layer of data.layers.filter((layer) => layer.classes)) {
    const list = make("ul", { class: "viewer-legend" });
    list.append(...legend([layer], layer.classes.filter((c) => c.share).map((c) => c.number),
      [0, ...layer.classes.map((c) => c.share)]));
    keys.set(layer.id, make("div", { hidden: "" }, make("h3", {}, layer.name), list));
  }
  find("legend").after(...keys.values());

  for (const group of ["layers", "activations"]) {
    const rows = data.layers.filter((layer) => layer.group === group).map(row);
    find(group).append(...rows);
    if (!rows.length) find(group).closest("details, fieldset").hidden = true;
  }

  const ramped = data.layers.find((layer) => layer.group === "activations");
  if (ramped) {
    const key = make("p", { class: "viewer-scale" }, "0", gradient(ramped.colors), "1");
    find("activations").before(key);
  }

  /* The pixel under a click, or under the cross when Enter is pressed. */
  const output = find("pixel");
  const frame = { className: "viewer-outline", fill: false, interactive: false };
  const outline = L.rectangle(source.bounds, frame);
  const ring = L.circleMarker(source.bounds.getCenter(), { ...frame, radius: 10 });

  function fact(name, ...value) {
    return [make("dt", {}, name), make("dd", { "data-fact": name.toLowerCase() }, ...value)];
  }

  function classFact(name, number, classes) {
    return number === 255 ? fact(name, "no data")
      : fact(name, swatch(colorOf(number, classes)), `${number} ${nameOf(number, classes)}`);
  }

  function describe(answer) {
    const digits = data.geographic ? 6 : 1;
    const place = data.crs ? fact(data.crs, `${answer.x.toFixed(digits)}, ${answer.y.toFixed(digits)}`) : [];
    const parts = [make("dl", {}, ...classFact("Map", answer.map),
      ...(answer.reference === undefined ? [] : classFact("Reference", answer.reference)),
      ...(answer.groups ?? []).flatMap(([layer, number]) => classFact(layer.name, number, layer.classes)),
      ...fact("Pixel", `row ${answer.row}, column ${answer.col}`), ...place)];
    const n = source.reduction();
    if (data.step > 1 || n > 1) {
      const held = `the page holds rows and columns that are multiples of ${data.step}.`;
      parts.push(make("p", { class: "viewer-level" }, `Level 1:${data.step} of the pyramid` +
        (n > 1 ? ` (level 1:${n * data.step} is shown)` : "") + ". The values are those of this pixel of the map" +
        (data.step > 1 ? `; ${held}` : ".")));
    }
    const values = answer.activations;
    if (values?.every((v) => v !== null)) {
      const unsure = -values.reduce((sum, v) => sum + (v > 0 ? v * Math.log(v) : 0), 0) / Math.log(values.length);
      parts[0].append(...fact("Uncertainty", Math.max(0, unsure).toFixed(2)));
      parts.push(bars(values));
    }
    return parts;
  }

  function bars(values) {
    const order = values.map((_, k) => k).sort((a, b) => values[b] - values[a] || a - b);
    const rows = order.map((k) => {
      const { number, name, color } = data.classes[k];
      const bar = make("span", { class: "viewer-bar", "aria-hidden": "true" });
      bar.style.width = `${100 * values[k]}%`;
      bar.style.backgroundColor = color;
      const value = values[k].toFixed(data.digits);
      return make("tr", { "data-class": number }, make("th", { scope: "row" }, `${number} ${name}`, bar),
        make("td", {}, value));
    });
    return make("table", {}, make("caption", {}, "Activations"), make("tbody", {}, ...rows));
  }

  async function inspect(point) {
    const answer = await source.inspect(point);
    outline.remove();
    ring.remove();
    if (!answer) {
      output.replaceChildren(make("p", {}, "Outside the map."));
      return;
    }
    outline.setBounds(answer.outline).addTo(map);
    ring.setLatLng(answer.outline.getCenter()).addTo(map);
    output.replaceChildren(...describe(answer));
  }

  map.on("click", (event) => inspect(event.latlng));
  /* The cross marks what Enter asks for; whoever points needs none. */
  const container = map.getContainer();
  container.addEventListener("keydown", (event) => {
    container.classList.add("viewer-keys");
    if (event.key === "Enter" && event.target === container) inspect(map.getCenter());
  });
  for (const event of ["pointerdown", "blur"]) {
    container.addEventListener(event, () => container.classList.remove("viewer-keys"));
  }

  /* Least certain places */
  for (const [k, place] of (data.places ?? []).entries()) {
    const button = make("button", { type: "button" }, `${k + 1}`, make("span", {}, place.words));
    button.addEventListener("click", () => {
      const box = source.rectangle(place.window);
      ring.remove();
      outline.setBounds(box).addTo(map);
      map.fitBounds(box.pad(0.6));
    });
    find("places").append(make("li", {}, button));
  }
  find("places").closest("section").hidden = !data.places?.length;
  new ResizeObserver(() => map.invalidateSize({ animate: false })).observe(find("map"));
  host.classList.add("viewer-ready");
})();
