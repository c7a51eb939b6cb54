"use strict";
// The page of one sample: its condition and its videos side by side, frame by frame, and all that is recorded.
const query = () => new URLSearchParams(location.hash.slice(1));
let sample = null;
let videos = [];
let layers = [];

function table(parent, pairs) {
  const body = make("tbody");
  for (const [name, value] of pairs) body.append(make("tr", {}, make("th", {scope: "row"}, name), make("td", {}, typeof value === "number" ? String(value) : value === true ? "yes" : value === false ? "no" : String(value))));
  parent.replaceChildren(make("table", {}, body));
}
const section = (id, has) => { find(id).hidden = !has; return find(id).querySelector("div"); };

function pane(caption, content, extra) {
  const inner = make("div", {class: "pane", style: shape(sample)}, content);
  if (extra) inner.append(extra);
  find("stage").append(make("figure", {}, inner, make("figcaption", {}, caption)));
  return inner;
}
function player(caption, url, poster) {
  if (!url) { pane(caption, make("span", {class: "none"}, sample.lost ? "the video is missing" : "no video that these pages can reach")); return; }
  const video = make("video", {src: url, poster, muted: true, loop: true, playsinline: true, preload: "auto", "aria-label": caption, tabindex: -1});
  video.muted = true;
  const inner = pane(caption, video, null);
  video.addEventListener("error", () => {
    inner.replaceChildren(make("span", {class: "none"}, "the video cannot be played: it may have been moved or deleted"));
    videos = videos.filter(each => each !== video); layers = layers.filter(each => each !== inner);
    if (!videos.length) find("player").hidden = true;
  });
  videos.push(video);
  layers.push(inner);
}
const frames = () => Math.max(1, sample.frames || 1), fps = () => sample.fps || 7;
const now = () => videos.length ? Math.min(frames() - 1, Math.floor(videos[0].currentTime * fps() + 0.01)) : 0;
let last = -1;
function tick() {                   // the boxes of the frame that is shown
  const frame = sample ? now() : last;
  if (frame !== last) {
    last = frame;
    find("frame").value = frame;
    find("frame-number").textContent = `${frame + 1} of ${frames()}`;
    for (const layer of layers) {
      layer.querySelector("svg")?.remove();
      const drawn = find("overlay").checked ? overlay(sample, frame) : null;
      if (drawn) layer.append(drawn);
    }
  }
  requestAnimationFrame(tick);
}
function play(on) {
  for (const video of videos) { if (on) { video.currentTime = videos[0].currentTime; video.play().catch(() => {}); } else video.pause(); }
  find("toggle").textContent = on ? "Pause" : "Play";
}
function seek(frame) {
  play(false);
  for (const video of videos) video.currentTime = (Math.max(0, Math.min(frames() - 1, frame)) + 0.5) / fps();
}

function numbers(row) {
  const list = make("dl", {class: "metrics"});
  for (const column of all.columns) {
    const value = column.values[row];
    if (column.group !== "Metrics" && column.group !== "What was asked") continue;
    if (value === null || value === undefined) continue;
    list.append(make("div", {}, make("dt", {title: column.meaning || null}, column.name), make("dd", {class: quality(column.name, value)}, shown(value), make("small", {}, column.unit ? ` ${column.unit}` : ""))));
  }
  find("numbers").replaceChildren(list);
}
function charts() {
  const parent = find("charts");
  parent.replaceChildren();
  const step = values => values.map((_, n) => n + 1), axis = {yaxis: {rangemode: "tozero"}};
  if (sample.losses && sample.losses[0].some(value => value !== null)) {
    const [first, last] = sample.losses;
    chart(parent, "Guidance loss", "before the first (dotted) and before the last update of each guided step", () => [
      {type: "scatter", mode: "lines+markers", x: step(first), y: first, name: "first", line: {color: colour("--soft"), dash: "dot"}},
      {type: "scatter", mode: "lines+markers", x: step(last), y: last, name: "last", line: {color: colour("--accent")}},
    ], {...axis, xaxis: {title: {text: "guided step"}, dtick: first.length > 12 ? 4 : 1}});
  }
  const colours = n => sample.boxes[n].still ? "#9aa3b2" : PALETTE[n % PALETTE.length];
  const lines = (key, title, hint, unit) => {
    if (!sample.boxes.some(box => box[key] && box[key].some(value => value !== null))) return;
    chart(parent, title, hint, () => sample.boxes.map((box, n) => ({type: "scatter", mode: "lines+markers", x: step(box[key] || []), y: box[key] || [], name: `box ${n + 1}`, line: {color: colours(n)}, connectgaps: false})),
      {...axis, xaxis: {title: {text: "frame"}}, yaxis: {rangemode: "tozero", title: {text: unit}}}, event => seek(event.points[0].pointIndex));
  };
  lines("error", "Distance from the asked centre", "per frame and box; click to see the frame", "pixels");
  lines("visible", "Points of the box that are visible", "per frame and box", "share");
}
function candidates() {
  const parent = section("candidates", sample.candidates.length > 0);
  if (!sample.candidates.length) return;
  const names = [...new Set(sample.candidates.flatMap(each => Object.keys(each)))];
  const head = make("tr", {}, ...names.map(name => make("th", {scope: "col"}, name)));
  const body = make("tbody", {}, ...sample.candidates.map(each => make("tr", {}, ...names.map(name => make("td", {}, typeof each[name] === "number" ? shown(each[name]) : String(each[name] ?? "–"))))));
  parent.replaceChildren(make("table", {}, make("thead", {}, head), body));
}
function neighbours(row) {
  const from = query().get("from") || "", failures = query().get("kind") === "failures";
  const rows = selected(from, failures), place = rows.indexOf(row);
  find("back").href = `${failures ? "failures" : "gallery"}.html#${from}`;
  find("place").textContent = place < 0 ? "" : `${place + 1} of ${rows.length}`;
  for (const [id, at] of [["previous", place - 1], ["next", place + 1]]) {
    const has = place >= 0 && at >= 0 && at < rows.length;
    find(id).hidden = !has;
    if (has) find(id).href = `#${new URLSearchParams({id: all.ids[rows[at]], from, kind: failures ? "failures" : "gallery"})}`;
  }
}

async function show() {
  const id = query().get("id"), row = all.ids.indexOf(id);
  find("name").textContent = id || "A sample";
  find("stage").replaceChildren(); videos = []; layers = []; last = -1;
  for (const each of ["player", "candidates", "figure", "own", "record", "again"]) find(each).hidden = true;
  if (row < 0) { find("verdict").textContent = "This report has no sample of that id."; find("numbers").replaceChildren(); find("charts").replaceChildren(); return; }
  neighbours(row);
  try { sample = await details(row); } catch (error) { find("verdict").textContent = error.message; return; }
  if (query().get("id") !== id) return;
  document.title = `${id} – ${document.querySelector(".brand").textContent}`;
  const gain = columns.has("control_gain") ? columns.get("control_gain").values[row] : null;
  const reasons = sample.record.null_reason || sample.record.null_reason_per_box;
  find("verdict").textContent = !all.committed[row] ? `Failed: ${sample.code || "unknown"}. ${sample.message || ""}`
    : gain !== null && gain !== undefined ? `Control gain ${shown(gain)}: 1 follows its path exactly, 0 is no better than a still image.`
    : `Its motion was not measured${reasons ? `: ${reasons}` : "."}`;
  find("verdict").className = all.committed[row] ? "" : "poor";
  if (all.committed[row]) {
    const thumb = thumbUrl(sample.thumb), url = videoUrl(0, sample.video);
    const picture = url ? make("video", {src: url, poster: thumb, muted: true, playsinline: true, preload: "metadata", tabindex: -1, "aria-label": described(sample)})
      : thumb ? make("img", {src: thumb, alt: described(sample)}) : make("span", {class: "none"}, "the video is missing");
    pane(sample.boxes.some(box => box.measured) ? "First frame: what was asked, and what was measured" : "First frame: what was asked", picture, overlay(sample));
    player("Video", url, thumb);
    for (const other of sample.baselines) {
      const facts = [["control_gain", "control gain"], ["objmc_px", "ObjMC"]].filter(([key]) => other[key] !== null).map(([key, name]) => `${name} ${shown(other[key])}`);
      player(`${other.name}${facts.length ? `: ${facts.join(", ")}` : ""}`, videoUrl(other.source, other.video), null);
    }
    find("player").hidden = !videos.length;
    find("frame").max = frames() - 1;
    find("toggle").textContent = "Play";
  }
  numbers(row); charts(); candidates();
  if (sample.figure) section("figure", true).replaceChildren(make("img", {src: sample.figure, alt: `Principal components of the guided layers' features, changes of the latents and losses of ${id}`}));
  const owned = Object.entries(sample.own);
  if (owned.length) table(section("own", true), owned);
  table(section("record", true), Object.entries(sample.record));
  const words = `${find("replay").dataset.output} ${id}`;
  find("again").hidden = !all.committed[row] || !all.replays;
  find("replay").textContent = `sgi2v-batch replay ${words}\nsgi2v-batch inspect ${words}`;
}

find("toggle").addEventListener("click", () => play(videos[0]?.paused));
find("frame").addEventListener("input", event => seek(Number(event.target.value)));
find("overlay").addEventListener("change", () => { last = -1; });
addEventListener("keydown", event => {
  if (event.target.closest("input, select, button, a, summary, .message") && event.key !== "Escape") return;
  if (event.key === "ArrowLeft" || event.key === "ArrowRight") { event.preventDefault(); seek(now() + (event.key === "ArrowRight" ? 1 : -1)); }
  if (event.key === " ") { event.preventDefault(); play(videos[0]?.paused); }
});
addEventListener("hashchange", () => { show(); scrollTo(0, 0); find("main").focus(); });
show();
requestAnimationFrame(tick);
