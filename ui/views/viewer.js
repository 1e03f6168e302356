// A slide in OpenSeadragon: a click gives a point, a drawn rectangle a region, both in level-0 pixels.
const viewers = new WeakMap();
const COLOURS = { query: "#d9480f", hit: "#0b57d0", chosen: "#7b1fa2" };
const SHAPES = {
  closer: "M12 5v14M5 12h14",
  farther: "M5 12h14",
  whole: "M4 9V4h5M20 9V4h-5M4 15v5h5M20 15v5h-5",
  region: "M4 4h4M12 4h3M20 4v4M20 12v3M20 20h-4M12 20H9M4 20v-4M4 12V9",
};

export default function ({ data, parentElement, setTriggerValue, setStateValue }) {
  const root = parentElement.querySelector(".hs-viewer");
  let one = viewers.get(root);
  if (!one) {
    one = framed(root);
    viewers.set(root, one);
  }
  one.tell = (name, value) => setTriggerValue(name, value);
  one.keep = (name, value) => setStateValue(name, value);
  show(one, data);
}

function framed(root) {
  const part = (kind, name) => {
    const made = document.createElement(kind);
    made.className = name;
    root.append(made);
    return made;
  };
  const one = {
    root,
    stage: part("div", "hs-stage"),
    marks: part("canvas", "hs-marks"),
    tools: part("div", "hs-tools"),
    scale: part("div", "hs-scale"),
    notice: part("div", "hs-notice"),
    busy: part("div", "hs-busy"),
    cutting: false,
    drawn: null,
    pending: null,
  };
  one.busy.textContent = "Searching …";
  one.busy.setAttribute("role", "status");
  one.notice.setAttribute("role", "status");
  one.scale.hidden = true;
  tool(one, "closer", "Zoom in", () => one.osd.viewport.zoomBy(2).applyConstraints());
  tool(one, "farther", "Zoom out", () => one.osd.viewport.zoomBy(0.5).applyConstraints());
  tool(one, "whole", "Show the whole slide", () => one.osd.viewport.goHome());
  one.cut = tool(one, "region", "Draw a region (or hold Shift and drag)", () => cutting(one, !one.cutting));
  one.cut.setAttribute("aria-pressed", "false");
  new ResizeObserver(() => redraw(one)).observe(root);
  return one;
}

function tool(one, name, words, act) {
  const made = document.createElement("button");
  made.type = "button";
  made.title = words;
  made.setAttribute("aria-label", words);
  made.innerHTML = `<svg viewBox="0 0 24 24" aria-hidden="true"><path d="${SHAPES[name]}"/></svg>`;
  made.onclick = () => one.osd && one.osd.isOpen() && act();
  one.tools.append(made);
  return made;
}

function cutting(one, on) {
  one.cutting = on;
  one.root.dataset.cut = String(on);
  one.cut.setAttribute("aria-pressed", String(on));
}

async function show(one, data) {
  const before = one.data;
  one.data = data;
  one.root.style.height = data.height;
  if (!before || before.events !== data.events) {
    one.root.dataset.busy = "false";
    one.pending = null;
  }
  if (!before || before.route !== data.route || before.version !== data.version) await open(one, data);
  else {
    if (before.window_token !== data.window_token) look(one, data.window);
    layered(one);
    redraw(one);
  }
}

async function open(one, data) {
  one.notice.textContent = "";
  const library = await openSeadragon(data.assets);
  const known = await told(`${data.route}/info.json?v=${data.version}`);
  if (one.data.route !== data.route) return; // another slide was chosen meanwhile
  if (!known.readable) one.notice.textContent = known.reason;
  if (!library) {
    one.notice.textContent = "The slide viewer is not installed on the server (make viewer). The overview is shown.";
    plain(one, data);
    return;
  }
  if (!one.osd) one.osd = started(library, one, data);
  one.library = library;
  const overview = { type: "image", url: `${data.route}/overview.jpg?v=${data.version}`, buildPyramid: false };
  one.osd.open(known.readable ? tileSource(data, known) : overview);
}

function tileSource(data, known) {
  return {
    width: known.width0,
    height: known.height0,
    tileSize: known.tile_px,
    tileOverlap: 0,
    minLevel: Math.min(8, known.max_level),
    maxLevel: known.max_level,
    getTileUrl: (level, column, row) => `${data.route}/tiles/${level}/${column}_${row}.jpg?v=${data.version}`,
  };
}

function started(library, one, data) {
  const osd = library({
    element: one.stage,
    prefixUrl: `${data.assets}/images/`,
    showNavigationControl: false,
    showNavigator: true,
    navigatorPosition: "BOTTOM_RIGHT",
    navigatorWidth: "150px",
    navigatorHeight: "112px",
    navigatorAutoFade: false,
    navigatorBackground: "#fff",
    navigatorBorderColor: "#c3c9d1",
    navigatorDisplayRegionColor: "#d9480f",
    navigatorOpacity: 0.95,
    gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: false },
    gestureSettingsTouch: { dblTapToZoom: false },
    animationTime: 0.5,
    maxZoomPixelRatio: 3,
    minZoomImageRatio: 0.7,
    visibilityRatio: 0.3,
    timeout: 60000,
    imageLoaderLimit: 6,
    drawer: "canvas",
    crossOriginPolicy: false,
  });
  osd.canvas.setAttribute("role", "application");
  osd.canvas.setAttribute("aria-label", "Slide. Arrow keys move it, plus and minus zoom, Enter searches at the cross.");
  osd.addHandler("open", () => {
    one.root.dataset.shown = one.data.slide_id;
    look(one, one.data.window, true);
    layered(one);
    redraw(one);
  });
  osd.addHandler("open-failed", () => {
    one.notice.textContent = "This slide has no overview in the store, and its file cannot be read here.";
  });
  osd.addHandler("tile-load-failed", () => {
    one.notice.textContent = "Parts of this slide cannot be read.";
  });
  osd.addHandler("update-viewport", () => redraw(one));
  osd.addHandler("animation-finish", () => moved(one));
  osd.addHandler("canvas-click", (event) => {
    if (!event.quick || event.originalEvent.shiftKey) return;
    clicked(one, place(one, event.position));
  });
  osd.addHandler("canvas-key", (event) => {
    if (event.originalEvent.key !== "Enter") return;
    event.preventDefaultAction = true;
    const middle = osd.viewport.getCenter(true);
    clicked(one, { x: middle.x * one.data.width0, y: middle.y * one.data.width0 });
  });
  osd.addHandler("canvas-drag", (event) => {
    if (!one.cutting && !event.originalEvent.shiftKey && !one.drawn) return;
    event.preventDefaultAction = true;
    const here = place(one, event.position);
    if (!one.drawn) {
      const start = event.position.minus(event.delta);
      one.drawn = { from: place(one, start), to: here };
    }
    one.drawn.to = here;
    redraw(one);
  });
  osd.addHandler("canvas-drag-end", () => {
    if (!one.drawn) return;
    const { from, to } = one.drawn;
    one.drawn = null;
    cutting(one, false);
    const inside = (value, end) => Math.round(Math.min(Math.max(value, 0), end));
    const [left, right] = [from.x, to.x].sort((a, b) => a - b).map((x) => inside(x, one.data.width0));
    const [top, bottom] = [from.y, to.y].sort((a, b) => a - b).map((y) => inside(y, one.data.height0));
    if (right > left && bottom > top) {
      one.pending = { x0: left, y0: top, width0: right - left, height0: bottom - top };
      one.root.dataset.busy = "true";
      one.tell("region", { slide_id: one.data.slide_id, x0: left, y0: top, x1: right, y1: bottom });
    }
    redraw(one);
  });
  return osd;
}

// Level-0 pixels of a position in the viewer: the viewport's unit is the slide's width.
function place(one, position) {
  const point = one.osd.viewport.pointFromPixel(position, true);
  return { x: point.x * one.data.width0, y: point.y * one.data.width0 };
}

function clicked(one, at) {
  const { slide_id, width0, height0 } = one.data;
  if (at.x < 0 || at.y < 0 || at.x >= width0 || at.y >= height0) return;
  one.root.dataset.busy = "true";
  one.pending = { x0: at.x, y0: at.y, width0: 0, height0: 0 };
  redraw(one);
  one.tell("point", { slide_id, x0: Math.floor(at.x), y0: Math.floor(at.y) });
}

function look(one, window, now = false) {
  const viewport = one.osd && one.osd.isOpen() ? one.osd.viewport : null;
  if (!viewport) return;
  if (!window) {
    viewport.goHome(now);
    return;
  }
  const { width0 } = one.data;
  const width = window.width0 / width0;
  const height = width / viewport.getAspectRatio();
  const left = window.x0 / width0 - width / 2;
  viewport.fitBounds(new one.library.Rect(left, window.y0 / width0 - height / 2, width, height), now);
  viewport.applyConstraints(now);
}

function moved(one) {
  clearTimeout(one.timer);
  one.timer = setTimeout(() => {
    if (!one.root.isConnected) return;
    const bounds = one.osd.viewport.getBounds(true);
    const { width0, slide_id } = one.data;
    const window = {
      slide_id,
      x0: Math.round((bounds.x + bounds.width / 2) * width0),
      y0: Math.round((bounds.y + bounds.height / 2) * width0),
      width0: Math.max(1, Math.round(bounds.width * width0)),
    };
    if (JSON.stringify(window) === one.told) return;
    one.told = JSON.stringify(window);
    one.keep("window", window);
  }, 700);
}

function layered(one) {
  const { layer, width0 } = one.data;
  if (!one.osd || !one.osd.isOpen()) return;
  const key = layer ? `${layer.url.length}:${layer.url.slice(-80)}:${layer.x0},${layer.y0},${layer.width0}` : "";
  if (one.layer && (one.layerKey !== key || !one.osd.getOverlayById(one.layer))) {
    one.osd.removeOverlay(one.layer);
    one.layer = null;
  }
  if (!layer) return;
  if (!one.layer) {
    const image = document.createElement("img");
    image.className = layer.sharp ? "hs-layer sharp" : "hs-layer";
    image.alt = "";
    image.src = layer.url;
    const { Rect } = one.library;
    const area = new Rect(layer.x0 / width0, layer.y0 / width0, layer.width0 / width0, layer.height0 / width0);
    one.osd.addOverlay({ element: image, location: area });
    one.layer = image;
    one.layerKey = key;
  }
  one.layer.style.opacity = layer.opacity;
}

// Everything that is drawn over the slide, in one canvas that follows the viewport.
function redraw(one) {
  const canvas = one.marks;
  const ratio = globalThis.devicePixelRatio || 1;
  const width = one.root.clientWidth;
  const height = one.root.clientHeight;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  const projection = projected(one);
  if (!projection) return;
  outlines(pen, one.data.tiles, projection, width, height);
  const order = { hit: 0, chosen: 1, query: 2 };
  for (const box of [...one.data.boxes].sort((a, b) => order[a.kind] - order[b.kind])) boxed(pen, box, projection);
  if (one.pending) boxed(pen, { ...one.pending, kind: "query", label: "" }, projection);
  if (one.drawn) {
    const { from, to } = one.drawn;
    const area = { x0: Math.min(from.x, to.x), y0: Math.min(from.y, to.y) };
    boxed(pen, { ...area, width0: Math.abs(from.x - to.x), height0: Math.abs(from.y - to.y), kind: "query" }, projection, true);
  }
  measured(one, projection.scale);
}

// From level-0 pixels to the screen's.
function projected(one) {
  const { width0 } = one.data;
  if (one.plain) {
    const shown = one.plain;
    if (!shown.naturalWidth) return null;
    const scale = Math.min(shown.clientWidth / width0, shown.clientHeight / one.data.height0);
    const left = (shown.clientWidth - scale * width0) / 2;
    const top = (shown.clientHeight - scale * one.data.height0) / 2;
    return { scale, left, top };
  }
  if (!one.osd || !one.osd.isOpen()) return null;
  const { Point } = one.library;
  const corner = one.osd.viewport.pixelFromPoint(new Point(0, 0), true);
  const end = one.osd.viewport.pixelFromPoint(new Point(1, 0), true);
  return { scale: (end.x - corner.x) / width0, left: corner.x, top: corner.y };
}

function boxed(pen, box, { scale, left, top }, exact = false) {
  const least = exact ? 0 : 12; // a tile can be a few screen pixels wide: never smaller than can be seen
  const wide = Math.max(box.width0 * scale, least);
  const high = Math.max(box.height0 * scale, least);
  const x = left + (box.x0 + box.width0 / 2) * scale - wide / 2;
  const y = top + (box.y0 + box.height0 / 2) * scale - high / 2;
  pen.lineWidth = 5;
  pen.strokeStyle = "rgba(255, 255, 255, 0.9)";
  pen.strokeRect(x, y, wide, high);
  pen.lineWidth = 2.5;
  pen.strokeStyle = COLOURS[box.kind];
  pen.strokeRect(x, y, wide, high);
  if (!box.label) return;
  pen.font = "600 12px sans-serif";
  const room = pen.measureText(box.label).width + 8;
  pen.fillStyle = COLOURS[box.kind];
  pen.fillRect(x - 1, y - 17, room, 17);
  pen.fillStyle = "#fff";
  pen.fillText(box.label, x + 3, y - 4);
}

function outlines(pen, tiles, { scale, left, top }, width, height) {
  if (!tiles || tiles.extent_px0 * scale < 3) return;
  const side = tiles.extent_px0 * scale;
  pen.lineWidth = 1;
  pen.strokeStyle = "rgba(11, 87, 208, 0.55)";
  pen.beginPath();
  for (let i = 0; i < tiles.x0.length; i += 1) {
    const x = left + tiles.x0[i] * scale;
    const y = top + tiles.y0[i] * scale;
    if (x + side >= 0 && y + side >= 0 && x <= width && y <= height) pen.rect(x, y, side, side);
  }
  pen.stroke();
}

function measured(one, scale) {
  const micrometres = one.data.mpp / scale; // per screen pixel
  if (!(micrometres > 0)) return;
  const most = micrometres * 130;
  const power = 10 ** Math.floor(Math.log10(most));
  const length = power * (most / power >= 5 ? 5 : most / power >= 2 ? 2 : 1);
  const words = length >= 1000 ? `${length / 1000} mm` : `${length >= 1 ? length : length.toFixed(2)} µm`;
  if (one.scale.dataset.words !== words + micrometres) {
    one.scale.dataset.words = words + micrometres;
    const bar = document.createElement("i");
    bar.style.width = `${length / micrometres}px`;
    one.scale.replaceChildren(words, bar);
    one.scale.hidden = false;
  }
}

// Without the library the overview still answers clicks.
function plain(one, data) {
  if (!one.plain) {
    one.plain = document.createElement("img");
    one.plain.className = "hs-plain";
    one.stage.append(one.plain);
    one.plain.onload = () => redraw(one);
    one.plain.onclick = (event) => {
      const { scale, left, top } = projected(one);
      clicked(one, { x: (event.offsetX - left) / scale, y: (event.offsetY - top) / scale });
    };
    one.tools.hidden = true;
  }
  one.plain.alt = `Overview of slide ${data.slide_id}`;
  one.plain.src = `${data.route}/overview.jpg?v=${data.version}`;
}

async function told(address) {
  try {
    const answer = await fetch(address, { credentials: "same-origin" });
    if (answer.ok) return await answer.json();
  } catch {
    // the server is gone or starting: said below
  }
  return { readable: false, reason: "The server gives no slide just now. The overview is shown." };
}

function openSeadragon(assets) {
  globalThis.histoseekViewer ??= new Promise((done) => {
    const script = document.createElement("script");
    script.src = `${assets}/openseadragon.min.js`;
    script.onload = () => done(globalThis.OpenSeadragon);
    script.onerror = () => done(null);
    document.head.append(script);
  });
  return globalThis.histoseekViewer;
}
