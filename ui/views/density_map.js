// A map as a picture that the server draws: it is moved and stretched here, and drawn anew when the hand rests.
const maps = new WeakMap();
const SHAPES = {
  closer: "M12 5v14M5 12h14",
  farther: "M5 12h14",
  whole: "M4 9V4h5M20 9V4h-5M4 15v5h5M20 15v5h-5",
  lasso: "M12 4C6.5 4 3 6.7 3 10s3.500 6 9 6 9-2.700 9-6-3.500-6-9-6zM8 15.500c-2 .5-2.500 2-1.500 3.200s1 2-.5 2.300",
};
const MARGIN = 0.04; // as the server's own
const TOOLS_PX = 48; // the buttons lie beside the points
const REST_MS = 180;
const CLICK_PX = 4;
const MOST_PX = 2048;
const MOST_CORNERS = 1500;

export default function ({ data, parentElement, setTriggerValue, setStateValue }) {
  const root = parentElement.querySelector(".hs-map");
  let map = maps.get(root);
  if (!map) {
    map = framed(root);
    maps.set(root, map);
  }
  map.tell = setTriggerValue;
  map.keep = setStateValue;
  shown(map, data);
}

function framed(root) {
  const part = (kind, name, into) => {
    const made = document.createElement(kind);
    made.className = name;
    into.append(made);
    return made;
  };
  const stage = part("div", "hs-map-stage", root);
  const map = {
    root,
    stage,
    image: part("img", "hs-map-image", stage),
    marks: document.createElementNS("http://www.w3.org/2000/svg", "svg"),
    tools: part("div", "hs-map-tools", stage),
    busy: part("div", "hs-map-busy", stage),
    legend: part("div", "hs-map-legend", root),
    view: null,
    line: null,
    timer: 0,
  };
  map.image.alt = "";
  map.image.draggable = false;
  map.marks.setAttribute("class", "hs-map-marks");
  stage.insertBefore(map.marks, map.tools);
  stage.tabIndex = 0;
  stage.setAttribute("role", "group");
  stage.setAttribute("aria-label", "Map of tiles. Arrow keys move it, plus and minus zoom, 0 shows all of it.");
  map.busy.textContent = "Drawing …";
  map.busy.setAttribute("role", "status");
  tool(map, "closer", "Zoom in", () => zoom(map, 0.5));
  tool(map, "farther", "Zoom out", () => zoom(map, 2));
  tool(map, "whole", "Show the whole map", () => go(map, home(map)));
  map.lasso = tool(map, "lasso", "Draw around tiles (or hold Shift and drag)", () => lassoing(map, !map.lassoOn));
  lassoing(map, false);
  stage.addEventListener("wheel", (event) => wheeled(map, event), { passive: false });
  stage.addEventListener("pointerdown", (event) => pressed(map, event));
  stage.addEventListener("keydown", (event) => typed(map, event));
  new ResizeObserver(() => resized(map)).observe(stage);
  return map;
}

function tool(map, name, words, act) {
  const made = document.createElement("button");
  made.type = "button";
  made.title = words;
  made.setAttribute("aria-label", words);
  made.innerHTML = `<svg viewBox="0 0 24 24" aria-hidden="true"><path d="${SHAPES[name]}"/></svg>`;
  made.onpointerdown = (event) => event.stopPropagation();
  made.onclick = act;
  map.tools.append(made);
  return made;
}

function lassoing(map, on) {
  map.lassoOn = on;
  map.lasso.setAttribute("aria-pressed", String(on));
  map.stage.dataset.lasso = String(on);
}

function shown(map, data) {
  const before = map.data;
  map.data = data;
  if (!before || before.image !== data.image) map.image.src = data.image;
  if (!before || before.token !== data.token) {
    map.view = null;
    map.line = null;
  }
  if (!before || before.busy_token !== data.busy_token) {
    busy(map, "");
    if (!map.pressed) map.line = null;
  }
  if (!before || JSON.stringify(before.legend) !== JSON.stringify(data.legend)) explained(map);
  resized(map);
}

function resized(map) {
  const width = map.stage.clientWidth;
  const height = map.stage.clientHeight;
  if (!width || !height || !map.data) return;
  if (!map.view) map.view = home(map);
  else {
    // The scale stays, around the same middle.
    const view = map.view;
    const scale = (view.right - view.left) / (map.width || width);
    const [x, y] = [(view.left + view.right) / 2, (view.bottom + view.top) / 2];
    map.view = around(x, y, scale * width, scale * height);
  }
  [map.width, map.height] = [width, height];
  laid(map);
  rest(map);
}

function around(x, y, width, height) {
  return { left: x - width / 2, right: x + width / 2, bottom: y - height / 2, top: y + height / 2 };
}

function home(map) {
  const { left, right, bottom, top } = map.data.extent;
  const room = 1 + 2 * MARGIN;
  const [width, height] = [map.stage.clientWidth, map.stage.clientHeight];
  const free = Math.max(width - TOOLS_PX, width / 2);
  const scale = Math.max(((right - left) * room) / free, ((top - bottom) * room) / height);
  return around((left + right - scale * (width - free)) / 2, (bottom + top) / 2, scale * width, scale * height);
}

// --- moving

function go(map, view) {
  map.view = view;
  laid(map);
  rest(map);
}

function zoom(map, factor, at) {
  const view = map.view;
  if (!view) return;
  const whole = home(map);
  const most = (2 * (whole.right - whole.left)) / (view.right - view.left);
  const by = Math.max(Math.min(factor, most), most * 5e-6);
  const [x, y] = at || [(view.left + view.right) / 2, (view.bottom + view.top) / 2];
  go(map, {
    left: x + (view.left - x) * by,
    right: x + (view.right - x) * by,
    bottom: y + (view.bottom - y) * by,
    top: y + (view.top - y) * by,
  });
}

function moved(map, right, down) {
  const { left, right: end, bottom, top } = map.view;
  const x = (right / map.width) * (end - left);
  const y = (down / map.height) * (top - bottom);
  go(map, { left: left - x, right: end - x, bottom: bottom + y, top: top + y });
}

function wheeled(map, event) {
  event.preventDefault();
  const lines = event.deltaMode === 1 ? 32 : 1;
  zoom(map, Math.exp(Math.max(-1, Math.min(1, event.deltaY * lines * 0.0018))), place(map, event));
}

function typed(map, event) {
  const step = 60;
  const moves = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
  if (event.target !== map.stage || !map.view) return;
  if (moves[event.key]) moved(map, ...moves[event.key]);
  else if (event.key === "+" || event.key === "=") zoom(map, 0.5);
  else if (event.key === "-") zoom(map, 2);
  else if (event.key === "0") go(map, home(map));
  else if (event.key === "Escape") lassoing(map, false);
  else return;
  event.preventDefault();
}

// When nothing has moved for a moment, the server draws what is in view now.
function rest(map) {
  clearTimeout(map.timer);
  map.timer = setTimeout(() => {
    if (map.pressed) return rest(map);
    const wanted = told(map);
    const has = map.data.window;
    const unit = (wanted.right - wanted.left) / wanted.width_px / 2;
    const same = ["left", "right", "bottom", "top"].every((side) => Math.abs(wanted[side] - has[side]) < unit);
    if (same && wanted.width_px === map.data.width_px && wanted.height_px === map.data.height_px) return;
    const asked = JSON.stringify(wanted);
    if (asked === map.asked) return; // what was not drawn once is not asked for again and again
    map.asked = asked;
    busy(map, "Drawing …");
    map.keep("view", wanted);
  }, REST_MS);
}

function told(map) {
  const ratio = Math.min(window.devicePixelRatio || 1, 2, MOST_PX / Math.max(map.width, map.height));
  return {
    token: map.data.token,
    ...map.view,
    width_px: Math.round(map.width * ratio),
    height_px: Math.round(map.height * ratio),
    pixel_ratio: ratio,
  };
}

// --- the hand

function place(map, event) {
  const box = map.stage.getBoundingClientRect();
  const view = map.view;
  return [
    view.left + ((event.clientX - box.left) / box.width) * (view.right - view.left),
    view.top - ((event.clientY - box.top) / box.height) * (view.top - view.bottom),
  ];
}

function pressed(map, event) {
  if (event.button !== 0 || !map.view) return;
  map.stage.focus({ preventScroll: true });
  const drawing = map.lassoOn || event.shiftKey;
  const start = [event.clientX, event.clientY];
  let last = start;
  let far = false;
  map.pressed = true;
  map.stage.setPointerCapture(event.pointerId);
  if (drawing) map.line = [place(map, event)];
  const move = (now) => {
    far = far || Math.hypot(now.clientX - start[0], now.clientY - start[1]) >= CLICK_PX;
    if (drawing) {
      if (Math.hypot(now.clientX - last[0], now.clientY - last[1]) < 2) return;
      last = [now.clientX, now.clientY];
      if (map.line.length < MOST_CORNERS) map.line.push(place(map, now));
      laid(map);
    } else if (far) {
      moved(map, now.clientX - last[0], now.clientY - last[1]);
      last = [now.clientX, now.clientY];
    }
  };
  const end = (now) => {
    map.stage.removeEventListener("pointermove", move);
    map.stage.removeEventListener("pointerup", end);
    map.stage.removeEventListener("pointercancel", end);
    map.pressed = false;
    if (now.type === "pointercancel") map.line = null;
    else if (drawing) enclosed(map);
    else if (!far) clicked(map, now);
    laid(map);
  };
  map.stage.addEventListener("pointermove", move);
  map.stage.addEventListener("pointerup", end);
  map.stage.addEventListener("pointercancel", end);
}

function enclosed(map) {
  const corners = map.line;
  if (corners.length < 3) {
    map.line = null;
    return;
  }
  lassoing(map, false);
  busy(map, "Looking inside …");
  map.tell("drawn", { corners });
}

function clicked(map, event) {
  const [x, y] = place(map, event);
  busy(map, "Looking …");
  map.tell("picked", { x, y, ...told(map) });
}

function busy(map, words) {
  clearTimeout(map.hush);
  map.busy.textContent = words;
  map.root.dataset.busy = String(Boolean(words));
  // A gesture that the page has no answer to must not leave the word there.
  if (words) map.hush = setTimeout(() => busy(map, ""), 20000);
}

// --- drawing

function laid(map) {
  const { view, width, height } = map;
  const has = map.data.window;
  const [across, up] = [width / (view.right - view.left), height / (view.top - view.bottom)];
  const style = map.image.style;
  style.left = `${(has.left - view.left) * across}px`;
  style.top = `${(view.top - has.top) * up}px`;
  style.width = `${(has.right - has.left) * across}px`;
  style.height = `${(has.top - has.bottom) * up}px`;
  const at = ([x, y]) => [(x - view.left) * across, (view.top - y) * up];
  map.marks.setAttribute("viewBox", `0 0 ${width} ${height}`);
  map.marks.replaceChildren();
  const corners = map.line || map.data.polygon;
  if (corners.length > 1) {
    const points = corners.map((corner) => at(corner).map((part) => part.toFixed(1)).join(",")).join(" ");
    for (const name of ["below", "above"]) map.marks.append(shape("polygon", { points, class: `hs-map-line ${name}` }));
  }
  if (map.data.mark) {
    const [cx, cy] = at(map.data.mark);
    for (const name of ["below", "above"]) map.marks.append(shape("circle", { cx, cy, r: 8, class: `hs-map-ring ${name}` }));
  }
}

function shape(kind, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function explained(map) {
  const legend = map.data.legend;
  map.legend.replaceChildren();
  if (!legend) return;
  const add = (name, text, into = map.legend) => {
    const made = document.createElement("span");
    made.className = name;
    if (text !== undefined) made.textContent = text;
    into.append(made);
    return made;
  };
  const line = (colour, name, count) => {
    const item = add("hs-map-item");
    add("hs-map-dot", undefined, item).style.background = colour;
    add("hs-map-word", name, item).title = name;
    add("hs-map-count", count.toLocaleString("en"), item);
  };
  add("hs-map-column", legend.column);
  if (legend.classes) for (const one of legend.classes) line(one.colour, one.name, one.count);
  else {
    const scale = add("hs-map-scale");
    add("hs-map-word", legend.low, scale);
    add("hs-map-strip", undefined, scale).style.background = `linear-gradient(to right, ${legend.stops.join(", ")})`;
    add("hs-map-word", legend.high, scale);
    if (legend.missing) line(legend.missing_colour, "none", legend.missing);
  }
}
