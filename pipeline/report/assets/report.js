"use strict";
// Shared by all pages: the data of all samples, sorting and filtering, drawing of paths. Texts of samples become
// text nodes and never markup.
const PALETTE = ["#ffb000", "#56b4e9", "#f0508c", "#00c896", "#a082ff", "#ff7332", "#f0e442"];
const HELD = "#cdd1d9";
const SVG = "http://www.w3.org/2000/svg";
const find = id => document.getElementById(id);
let all = null;                     // what index.js gives
const columns = new Map();          // name -> column of numbers
const texts = new Map();            // name -> column of few different texts
const files = new Map();            // number -> promise of the samples in that file
const arrived = new Map();          // number -> function that takes them in

function sgi2vIndex(index) {
  all = index;
  for (const column of index.columns) columns.set(column.name, column);
  for (const column of index.texts) texts.set(column.name, column);
}
function sgi2vSamples(number, samples) { arrived.get(number)(samples); }

function load(path) {               // a script, because a page of file:// may not fetch
  return new Promise((resolve, reject) => {
    const script = make("script", {src: path});
    script.onload = () => { script.remove(); resolve(); };
    script.onerror = () => { script.remove(); reject(new Error(`${path} is missing: build the report again`)); };
    document.head.append(script);
  });
}
function details(row) {             // the promise of one sample's details
  const number = Math.floor(row / all.a_file);
  if (!files.has(number)) {
    files.set(number, new Promise((resolve, reject) => {
      arrived.set(number, resolve);
      load(`${all.folder}/samples-${number}.js`).catch(reject);
    }));
    if (files.size > 200) files.delete(files.keys().next().value);
  }
  return files.get(number).then(samples => samples[row % all.a_file]);
}

function make(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
  made.append(...children.filter(child => child !== null && child !== undefined));
  return made;
}
function draw(name, attributes, parent) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  parent.append(made);
  return made;
}
function shown(value) {             // a number in a few digits
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return String(value);
  const size = Math.abs(value);
  return size >= 1000 ? value.toFixed(0) : size >= 100 ? value.toFixed(1) : size >= 0.01 ? value.toFixed(2) : value.toPrecision(2);
}
function quality(name, value) {     // a class only where everybody agrees what is good
  if (value === null || value === undefined || (name !== "control_gain" && !name.startsWith("gain"))) return "";
  return name === "control_gain" ? (value >= 0.5 ? "good" : value >= 0.1 ? "fair" : "poor") : (value > 0 ? "good" : "poor");
}
const videoUrl = (source, end) => end !== null && end !== undefined && all.bases[source] !== null ? all.bases[source] + end : null;
const thumbUrl = name => name === null ? null : `thumbs/${name}.webp`;

// What a gallery shows is in its address: sort, order, q, size, page, min.COLUMN, max.COLUMN, is.COLUMN, null.COLUMN
function wanted(hash) {
  const query = new URLSearchParams(hash.replace(/^#/, ""));
  const filters = [...query].filter(([key]) => /^(min|max|is|null)\./.test(key));
  return {query, filters, sort: query.get("sort") || "", order: query.get("order") || "worst", q: query.get("q") || ""};
}
function ascending(name, order) {
  if (order !== "worst") return order === "asc";
  return !columns.has(name) || columns.get(name).better !== "lower";
}
function selected(hash, failures) { // the rows of samples that a gallery shows, in order
  const {filters, sort, order, q} = wanted(hash);
  const tests = filters.map(([key, value]) => {
    const [kind, name] = [key.slice(0, key.indexOf(".")), key.slice(key.indexOf(".") + 1)];
    if (kind === "is") {
      const column = texts.get(name), number = column ? column.values.indexOf(value) : -1;
      return row => column !== undefined && column.of[row] === number;
    }
    const values = columns.has(name) ? columns.get(name).values : [];
    if (kind === "null") return row => values[row] === null || values[row] === undefined;
    const limit = Number(value);
    return kind === "min" ? row => typeof values[row] === "number" && values[row] >= limit : row => typeof values[row] === "number" && values[row] <= limit;
  });
  const text = q.toLowerCase();
  if (text) tests.push(row => all.ids[row].toLowerCase().includes(text) ||
    [...texts.values()].some(column => column.of[row] !== null && column.values[column.of[row]].toLowerCase().includes(text)));
  const rows = [];
  for (let row = 0; row < all.ids.length; row++) {
    if (Boolean(all.committed[row]) !== failures && tests.every(test => test(row))) rows.push(row);
  }
  const up = ascending(sort, order) ? 1 : -1;
  if (columns.has(sort)) {
    const values = columns.get(sort).values;
    const has = row => values[row] !== null && values[row] !== undefined;
    rows.sort((a, b) => has(a) !== has(b) ? (has(a) ? -1 : 1) : has(a) && values[a] !== values[b] ? up * (values[a] - values[b]) : a - b);
  } else if (sort === "sample_id") rows.sort((a, b) => up * (all.ids[a] < all.ids[b] ? -1 : 1));
  return rows;
}

const line = points => points.map(([x, y]) => `${x},${y}`).join(" ");
const centreOf = box => [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2];
function runs(points) {             // the stretches between the frames in which nothing was measured
  const parts = [[]];
  for (const point of points) point === null ? parts.push([]) : parts.at(-1).push(point);
  return parts.filter(part => part.length);
}
function overlay(sample, frame = null) { // the boxes and paths over a picture; of one frame, the boxes there
  if (!sample.boxes.length || !sample.width) return null;
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${sample.width} ${sample.height}`);
  svg.setAttribute("aria-hidden", "true");
  const thick = {"vector-effect": "non-scaling-stroke", fill: "none", "stroke-linejoin": "round", "stroke-linecap": "round"};
  const radius = Math.max(sample.width, sample.height) / 70;
  sample.boxes.forEach((box, n) => {
    const colour = box.still ? HELD : PALETTE[n % PALETTE.length], at = frame === null ? 0 : Math.min(frame, box.asked.length - 1);
    const [x0, y0, x1, y1] = box.asked[at];
    draw("rect", {...thick, x: x0, y: y0, width: x1 - x0, height: y1 - y0, stroke: colour, "stroke-width": 2, "stroke-dasharray": box.still ? "2 4" : "none"}, svg);
    if (frame !== null) {
      const measured = box.boxes && box.boxes[at] || null;
      if (measured) draw("rect", {...thick, x: measured[0], y: measured[1], width: measured[2] - measured[0], height: measured[3] - measured[1], stroke: "#fff", "stroke-width": 2, "stroke-dasharray": "3 4"}, svg);
      const point = box.measured && box.measured[at];
      if (point) draw("circle", {cx: point[0], cy: point[1], r: radius * 0.7, fill: "#fff", stroke: colour, "stroke-width": radius * 0.4}, svg);
      return;
    }
    const asked = box.asked.map(centreOf);
    if (!box.still) {
      draw("polyline", {...thick, points: line(asked), stroke: "#000a", "stroke-width": 5}, svg);
      draw("polyline", {...thick, points: line(asked), stroke: colour, "stroke-width": 3}, svg);
      draw("circle", {cx: asked.at(-1)[0], cy: asked.at(-1)[1], r: radius, fill: colour, stroke: "#000a"}, svg);
    }
    for (const part of runs(box.measured || [])) {
      draw("polyline", {...thick, points: line(part), stroke: "#000a", "stroke-width": 4}, svg);
      draw("polyline", {...thick, points: line(part), stroke: "#fff", "stroke-width": 2.5, "stroke-dasharray": "1 5"}, svg);
      draw("circle", {cx: part.at(-1)[0], cy: part.at(-1)[1], r: radius * 0.6, fill: "#fff", stroke: "#000a"}, svg);
    }
  });
  return svg;
}
function described(sample) {        // the condition in words, for whoever does not see it
  const moving = sample.boxes.filter(box => !box.still).length, held = sample.boxes.length - moving;
  const counted = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
  if (!sample.boxes.length) return `First frame of ${sample.id}`;
  return `First frame of ${sample.id} with ${counted(moving, "box")}`.replace(/boxs$/, "boxes") + ` and the asked path${moving === 1 ? "" : "s"}` + (held ? `, ${held} told to stay` : "");
}
function shape(sample) { return `aspect-ratio: ${sample.width || 16} / ${sample.height || 9}`; }

// Charts. Plotly is loaded when the first chart comes into view.
let plotly = null;
const dark = matchMedia("(prefers-color-scheme: dark)");
const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
function chart(parent, title, hint, traces, layout, onClick) {
  const plot = make("div", {class: "plot", role: "img", "aria-label": `${title}. ${hint}`});
  parent.append(make("figure", {class: "chart"}, make("figcaption", {}, title, make("span", {}, hint)), plot));
  const show = async () => {
    plotly = plotly || load("assets/plotly.min.js");
    await plotly;
    const axis = {gridcolor: colour("--line"), zerolinecolor: colour("--line"), linecolor: colour("--line"), automargin: true, fixedrange: true};
    const {xaxis = {}, yaxis = {}, ...more} = layout;
    const base = {margin: {l: 44, r: 12, t: 8, b: 38}, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: {color: colour("--soft"), size: 12, family: "system-ui, sans-serif"},
      showlegend: false, bargap: 0.04, hovermode: "closest", ...more, xaxis: {...axis, ...xaxis}, yaxis: {...axis, ...yaxis}};
    await Plotly.react(plot, traces(), base, {displayModeBar: false, responsive: true});
    if (onClick && !plot.dataset.bound) { plot.dataset.bound = "1"; plot.on("plotly_click", onClick); }
    plot.dataset.drawn = "1";
  };
  const seen = new IntersectionObserver(entries => {
    if (entries.some(entry => entry.isIntersecting)) { seen.disconnect(); show(); }
  }, {rootMargin: "200px"});
  seen.observe(plot);
  dark.addEventListener("change", () => plot.dataset.drawn && show());
}
