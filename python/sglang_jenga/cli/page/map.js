// SPDX-License-Identifier: Apache-2.0
"use strict";
// Draws the recorded snapshots of one server. A cell is one large page or several neighbours; its
// width is shared by the kinds that own them, its height by the state of their small pages: used at
// the bottom, reserved (hatched) above it, holes (pale) above that.

const data = JSON.parse(document.getElementById("data").textContent);
const MARKS = ["used", "reserved", "holes"];
const byId = (id) => document.getElementById(id);
const number = (value) => Math.round(value).toLocaleString("en-GB");
const percent = (part, whole) => (whole ? (100 * part / whole).toFixed(1) : "0.0") + " %";

function bytes(value) {
  if (value < 2 ** 20) return number(value) + " B";
  const [size, unit] = value < 2 ** 30 ? [2 ** 20, "MiB"] : [2 ** 30, "GiB"];
  return (value / size).toFixed(2) + " " + unit;
}

// ---- reading -----------------------------------------------------------------------------------

// The text of the cells as [{free, parts: [{kind, pages, used, reserved, holes}]}], one per cell.
function readCells(map) {
  const cells = [];
  for (const run of map.cells.split(" ")) {
    const star = run.indexOf("*");
    const length = star < 0 ? 1 : Number(run.slice(0, star));
    const text = run.slice(star + 1);
    const parts = text === "-" ? [] : text.split("+").map((part) => {
      const [kind, pages, used, reserved] = part.split(".").map(Number);
      const holes = pages * map.small_pages_per_large_page[kind] - used - reserved;
      return { kind, pages, used, reserved, holes };
    });
    for (let i = 0; i < length; i++) {
      const first = cells.length * map.large_pages_per_cell;
      const pages = Math.min(map.large_pages_per_cell, map.large_pages - first);
      const owned = parts.reduce((sum, part) => sum + part.pages, 0);
      cells.push({ first: map.first_large_page + first, pages, free: pages - owned, parts });
    }
  }
  return cells;
}

// ---- drawing -----------------------------------------------------------------------------------

function colours() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(name).trim();
  return {
    kinds: [0, 1, 2, 3, 4].map((i) => of("--kind" + i)),
    paper: of("--paper"), ink: of("--ink"), free: of("--free"), rule: of("--rule"),
  };
}

function prepared(canvas, width, height) {
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  canvas.style.height = height + "px";
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  context.clearRect(0, 0, width, height);
  return context;
}

// One area of a kind in one state, (x, y) its upper left corner.
function fill(context, kind, mark, x, y, width, height, colour) {
  if (width <= 0 || height <= 0) return;
  context.fillStyle = colour.kinds[kind % colour.kinds.length];
  context.globalAlpha = mark === "used" ? 1 : mark === "reserved" ? 0.5 : 0.22;
  context.fillRect(x, y, width, height);
  context.globalAlpha = 1;
  if (mark !== "reserved") return;
  context.save();
  context.beginPath();
  context.rect(x, y, width, height);
  context.clip();
  context.strokeStyle = colour.paper;
  context.lineWidth = 1;
  context.beginPath();
  for (let at = -height; at < width; at += 4) {
    context.moveTo(x + at, y + height);
    context.lineTo(x + at + height, y);
  }
  context.stroke();
  context.restore();
}

function drawCell(context, cell, x, y, size, colour) {
  context.fillStyle = colour.free;
  context.fillRect(x, y, size, size);
  let left = x;
  for (const part of cell.parts) {
    const width = size * part.pages / cell.pages;
    const total = part.used + part.reserved + part.holes;
    let bottom = y + size;
    for (const mark of MARKS) {
      const height = size * part[mark] / total;
      bottom -= height;
      fill(context, part.kind, mark, left, bottom, width, height, colour);
    }
    left += width;
  }
  if (!cell.parts.length && size >= 6) {
    context.strokeStyle = colour.rule;
    context.lineWidth = 1;
    context.strokeRect(x + 0.5, y + 0.5, size - 1, size - 1);
  }
}

// Cells as large as they may be while the map stays about as high as a window.
function layout(count, width) {
  let size = 24;
  while (size > 4 && Math.ceil(count / Math.floor(width / (size + 1))) * (size + 1) > 560) size--;
  const columns = Math.max(1, Math.floor(width / (size + 1)));
  return { size, pitch: size + 1, columns, rows: Math.ceil(count / columns) };
}

function drawMap(view, scheduler) {
  const cells = readCells(scheduler.map);
  const width = view.canvas.clientWidth || 960;
  const grid = layout(cells.length, width);
  const context = prepared(view.canvas, width, grid.rows * grid.pitch);
  const colour = colours();
  const drawn = { cells: 0, free: 0, byKind: scheduler.kinds.map(() => 0) };
  cells.forEach((cell, i) => {
    const x = (i % grid.columns) * grid.pitch;
    const y = Math.floor(i / grid.columns) * grid.pitch;
    drawCell(context, cell, x, y, grid.size, colour);
    drawn.cells += 1;
    drawn.free += cell.free;
    for (const part of cell.parts) drawn.byKind[part.kind] += part.pages;
  });
  if (view.cursor !== null && view.cursor < cells.length) {
    const x = (view.cursor % grid.columns) * grid.pitch;
    const y = Math.floor(view.cursor / grid.columns) * grid.pitch;
    context.strokeStyle = colour.ink;
    context.lineWidth = 2;
    context.strokeRect(x, y, grid.size, grid.size);
  }
  Object.assign(view, { cells, grid, drawn, scheduler });
}

function drawTimeline() {
  const canvas = byId("timeline");
  canvas.hidden = data.snapshots.length < 2;
  if (canvas.hidden) return;
  const width = canvas.clientWidth || 960, height = 72;
  const context = prepared(canvas, width, height);
  const colour = colours();
  const begin = data.snapshots[0].unix_seconds;
  const span = data.snapshots[data.snapshots.length - 1].unix_seconds - begin || 1;
  const xOf = (i) => width * (data.snapshots[i].unix_seconds - begin) / span;
  context.fillStyle = colour.free;
  context.fillRect(0, 0, width, height);
  const kinds = data.snapshots[0].schedulers[0].kinds.length;
  const shares = data.snapshots.map(({ schedulers }) => {
    const total = schedulers.reduce((sum, s) => sum + s.large_pages_total, 0);
    let below = 0;
    return Array.from({ length: kinds }, (_, kind) => {
      below += schedulers.reduce((sum, s) => sum + s.kinds[kind].large_pages, 0) / total;
      return below;
    });
  });
  for (let kind = kinds - 1; kind >= 0; kind--) {
    context.fillStyle = colour.kinds[kind % colour.kinds.length];
    context.beginPath();
    context.moveTo(0, height);
    shares.forEach((share, i) => context.lineTo(xOf(i), height * (1 - share[kind])));
    context.lineTo(width, height);
    context.fill();
  }
  const x = Math.min(width - 1, Math.max(1, xOf(shown)));
  context.strokeStyle = colour.ink;
  context.lineWidth = 2;
  context.beginPath();
  context.moveTo(x, 0);
  context.lineTo(x, height);
  context.stroke();
}

function drawLegend() {
  const list = byId("legend");
  list.replaceChildren();
  const colour = colours();
  const entry = (text, draw) => {
    const item = document.createElement("li");
    const canvas = document.createElement("canvas");
    canvas.style.width = "16px";
    canvas.setAttribute("aria-hidden", "true");
    draw(prepared(canvas, 16, 16));
    item.append(canvas, text);
    list.append(item);
  };
  data.snapshots[0].schedulers[0].kinds.forEach((kind, i) => {
    for (const mark of MARKS) {
      const text = mark === "used" ? kind.name + ": used" : mark;
      entry(text, (context) => fill(context, i, mark, 0, 0, 16, 16, colour));
    }
  });
  entry("free large page", (c) => drawCell(c, { parts: [], pages: 1 }, 0, 0, 16, colour));
}

// ---- words -------------------------------------------------------------------------------------

function describe(scheduler, cell) {
  const last = cell.first + cell.pages - 1;
  const name = cell.pages === 1 ? "Large page " + number(cell.first)
    : "Large pages " + number(cell.first) + " to " + number(last);
  const parts = cell.parts.map((part) => {
    const pages = cell.pages === 1 ? "" : number(part.pages) + " of ";
    const states = MARKS.map((mark) => number(part[mark]) + " " + mark).join(", ");
    return pages + scheduler.kinds[part.kind].name + " (small pages: " + states + ")";
  });
  if (cell.free) parts.push(cell.pages === 1 ? "free" : number(cell.free) + " free");
  return name + ": " + parts.join("; ");
}

function tableOf(scheduler) {
  const table = document.createElement("table");
  const rows = [["kind", "layers", "large pages", "share", "held", "cached", "reserved", "holes"]];
  for (const kind of scheduler.kinds) {
    rows.push([
      kind.name, kind.description, number(kind.large_pages),
      percent(kind.large_pages, scheduler.large_pages_total),
      bytes(kind.held_bytes), bytes(kind.cached_bytes),
      bytes(kind.reserved_bytes), bytes(kind.hole_bytes),
    ]);
  }
  const free = scheduler.large_pages_free;
  const share = percent(free, scheduler.large_pages_total);
  rows.push(["free", "", number(free), share, "", "", "", ""]);
  table.createCaption().textContent =
    "Totals: held by running requests, cached for later prompts, reserved in open runs, holes";
  rows.forEach((cells, i) => {
    const row = (i ? table.tBodies[0] || table.createTBody() : table.createTHead()).insertRow();
    cells.forEach((text, j) => {
      const cell = document.createElement(i && j ? "td" : "th");
      if (cell.tagName === "TH") cell.scope = i ? "row" : "col";
      cell.textContent = text;
      row.append(cell);
    });
  });
  return table;
}

function summary(scheduler) {
  const kinds = scheduler.kinds.map((kind) => kind.name + " " + number(kind.large_pages));
  return "Map of " + number(scheduler.large_pages_total) + " large pages: " + kinds.join(", ")
    + ", free " + number(scheduler.large_pages_free);
}

// ---- the page ----------------------------------------------------------------------------------

let shown = 0;
let timer = null;
const views = new Map();

function viewOf(rank) {
  const found = views.get(rank);
  if (found) return found;
  const section = document.createElement("section");
  const heading = document.createElement("h2");
  const about = document.createElement("p");
  const canvas = document.createElement("canvas");
  const detail = document.createElement("p");
  const totals = document.createElement("div");
  about.className = "about";
  canvas.className = "map";
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "img");
  detail.className = "detail";
  detail.setAttribute("aria-live", "polite");
  totals.className = "scroll";
  section.append(heading, about, canvas, detail, totals);
  byId("schedulers").append(section);
  const view = { section, heading, about, canvas, detail, totals, cursor: null };
  views.set(rank, view);
  const point = (cursor) => {
    view.cursor = cursor;
    drawMap(view, view.scheduler);
    detail.textContent = cursor === null ? hint() : describe(view.scheduler, view.cells[cursor]);
  };
  canvas.addEventListener("mousemove", (event) => {
    const box = canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left) / view.grid.pitch);
    const row = Math.floor((event.clientY - box.top) / view.grid.pitch);
    const i = row * view.grid.columns + column;
    point(column < view.grid.columns && view.cells[i] ? i : null);
  });
  canvas.addEventListener("mouseleave", () => point(null));
  canvas.addEventListener("keydown", (event) => {
    const steps = {
      ArrowLeft: -1, ArrowRight: 1, ArrowUp: -view.grid.columns, ArrowDown: view.grid.columns,
    };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const next = view.cursor === null ? 0 : view.cursor + steps[event.key];
    point(Math.min(view.cells.length - 1, Math.max(0, next)));
  });
  return view;
}

const hint = () => "Point at a cell, or focus the map and use the arrow keys.";

function show(index) {
  shown = Math.min(data.snapshots.length - 1, Math.max(0, index));
  const snapshot = data.snapshots[shown];
  const time = new Date(snapshot.unix_seconds * 1000);
  const when = time.toISOString().slice(0, 19).replace("T", " ") + " UTC";
  byId("snapshot").value = shown;
  byId("when").value = when;
  byId("snapshot").setAttribute(
    "aria-valuetext", shown + 1 + " of " + data.snapshots.length + ", " + when);
  const present = new Set(snapshot.schedulers.map((scheduler) => scheduler.dp_rank));
  for (const [rank, view] of views) view.section.hidden = !present.has(rank);
  for (const scheduler of snapshot.schedulers) {
    const view = viewOf(scheduler.dp_rank);
    const perCell = scheduler.map.large_pages_per_cell;
    view.heading.textContent =
      present.size > 1 ? "Data parallel rank " + scheduler.dp_rank : "Arena";
    view.about.textContent = bytes(scheduler.arena_bytes) + " = "
      + number(scheduler.large_pages_total) + " large pages of "
      + bytes(scheduler.large_page_bytes) + "; one cell is "
      + (perCell === 1 ? "one large page" : number(perCell) + " neighbouring large pages");
    view.canvas.setAttribute("aria-label", summary(scheduler));
    drawMap(view, scheduler);
    view.detail.textContent = view.cursor === null || !view.cells[view.cursor]
      ? hint() : describe(scheduler, view.cells[view.cursor]);
    view.totals.replaceChildren(tableOf(scheduler));
  }
  drawTimeline();
}

function play(on) {
  clearInterval(timer);
  timer = on ? setInterval(() => show((shown + 1) % data.snapshots.length), 500) : null;
  byId("play").setAttribute("aria-pressed", String(on));
  byId("play").textContent = on ? "Stop" : "Play";
}

function dark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function redraw() {
  drawLegend();
  show(shown);
}

byId("about").textContent = data.url + ", "
  + (data.snapshots.length === 1 ? "one snapshot" : data.snapshots.length + " snapshots");
byId("snapshot").max = data.snapshots.length - 1;
byId("snapshot").disabled = byId("play").disabled = data.snapshots.length < 2;
byId("snapshot").addEventListener("input", (event) => {
  play(false);
  show(Number(event.target.value));
});
byId("play").addEventListener("click", () => play(timer === null));
byId("theme").addEventListener("click", () => {
  document.documentElement.dataset.theme = dark() ? "light" : "dark";
  redraw();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
window.addEventListener("resize", redraw);
// For scripts that look at the page: what was drawn last, by data parallel rank.
window.jengaMap = { data, views, show, get shown() { return shown; } };
redraw();
