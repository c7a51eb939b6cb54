"use strict";
// The overview: strips of samples to look at first, and charts.
const made = all.ids.map((_, row) => row).filter(row => all.committed[row]);
const DOTS = 800;                   // dots of a chart, at most
const BINS = 8;
const open = hash => { location.href = `gallery.html#${new URLSearchParams(hash)}`; };
const valuesOf = name => columns.has(name) ? columns.get(name).values : [];
const known = name => made.filter(row => typeof valuesOf(name)[row] === "number");
const median = sorted => quantile(sorted, 0.5);
function quantile(sorted, share) {
  const at = (sorted.length - 1) * share, low = Math.floor(at);
  return sorted[low] + (sorted[Math.min(low + 1, sorted.length - 1)] - sorted[low]) * (at - low);
}
const numbersUp = (a, b) => a - b;

function strips() {
  const parent = find("strips");
  if (!parent) return;
  parent.replaceChildren();
  const lists = [
    ["Lowest control gain", "control_gain", "asc", {}],
    ["Most change of the background", "background_change", "desc", {}],
    ["Background that moves most", "background_motion_px", "desc", {}],
    ["Most flicker", "flicker", "desc", {}],
  ];
  const unmeasured = columns.has("objmc_px") ? made.filter(row => typeof valuesOf("objmc_px")[row] !== "number") : [];
  if (unmeasured.length) lists.splice(1, 0, [`Not measured: ${unmeasured.length}`, "objmc_px", "asc", {"null.objmc_px": "1"}]);
  for (const [title, sort, order, more] of lists) {
    const hash = new URLSearchParams({sort, order, ...more});
    const rows = (more["null.objmc_px"] ? unmeasured : selected(hash.toString(), false).filter(row => typeof valuesOf(sort)[row] === "number")).slice(0, 6);
    if (!rows.length) continue;
    const list = make("ul");
    for (const row of rows) {
      const thumb = thumbUrl(all.thumbs[row]);
      list.append(make("li", {}, make("a", {href: `sample.html#${new URLSearchParams({id: all.ids[row], from: hash, kind: "gallery"})}`},
        thumb ? make("img", {src: thumb, alt: `First frame of ${all.ids[row]}`, loading: "lazy"}) : make("span", {class: "none"}),
        make("span", {class: quality(sort, valuesOf(sort)[row])}, more["null.objmc_px"] ? all.ids[row] : shown(valuesOf(sort)[row])))));
    }
    parent.append(make("div", {class: "strip"}, make("h3", {}, title, make("a", {href: `gallery.html#${hash}`}, "all, in this order")), list));
  }
  if (!parent.children.length) parent.append(make("p", {class: "hint"}, "Nothing was measured that could be ranked."));
}

function histogram(parent, name, title) {
  const rows = known(name);
  if (!rows.length) return;
  const column = columns.get(name), sorted = rows.map(row => column.values[row]).sort(numbersUp);
  // the middle 99 % get equal bins; what is outside goes into the first and the last
  const [low, high] = sorted[0] === sorted.at(-1) ? [sorted[0] - 0.5, sorted[0] + 0.5] : [quantile(sorted, 0.005), quantile(sorted, 0.995)];
  const bins = Math.max(6, Math.min(40, Math.ceil(Math.sqrt(rows.length)))), width = (high - low || 1) / bins;
  const counts = Array(bins).fill(0);
  for (const value of sorted) counts[Math.max(0, Math.min(bins - 1, Math.floor((value - low) / width)))]++;
  const middle = counts.map((_, bin) => low + (bin + 0.5) * width);
  const hint = `median ${shown(median(sorted))}${column.unit ? ` ${column.unit}` : ""}, over ${rows.length}${column.better ? `; ${column.better} is better` : ""}`;
  const text = counts.map((count, bin) => `${shown(low + bin * width)} to ${shown(low + (bin + 1) * width)}: ${count}`);
  chart(parent, title || name, hint, () => [{type: "bar", x: middle, y: counts, width: Array(bins).fill(width), hovertext: text, hoverinfo: "text", marker: {color: colour("--accent")}}],
    {yaxis: {rangemode: "tozero", ...(Math.max(...counts) <= 6 ? {dtick: 1} : {})}}, event => {
      const bin = event.points[0].pointIndex, hash = {sort: name, order: "asc"};
      if (bin > 0) hash[`min.${name}`] = low + bin * width;
      if (bin < bins - 1) hash[`max.${name}`] = low + (bin + 1) * width;
      open(hash);
    });
}

function against(parent, name, title) {
  const gain = valuesOf("control_gain"), by = valuesOf(name);
  const rows = known("control_gain").filter(row => typeof by[row] === "number");
  if (rows.length < 2 || new Set(rows.map(row => by[row])).size < 2) return;
  rows.sort((a, b) => by[a] - by[b]);
  const whole = rows.every(row => Number.isInteger(by[row])) && new Set(rows.map(row => by[row])).size <= BINS;
  const groups = new Map();
  rows.forEach((row, place) => {
    const key = whole ? by[row] : name === "direction_deg" ? Math.floor(by[row] / 45) : Math.floor(place * Math.min(BINS, Math.ceil(rows.length / 6)) / rows.length);
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(row);
  });
  const bins = [...groups.values()].map(group => {
    const gains = group.map(row => gain[row]).sort(numbersUp);
    return {x: median(group.map(row => by[row]).sort(numbersUp)), low: quantile(gains, 0.25), middle: median(gains), high: quantile(gains, 0.75), n: group.length};
  });
  const every = Math.ceil(rows.length / DOTS), dots = rows.filter((_, place) => place % every === 0);
  const column = columns.get(name);
  const gains = rows.map(row => gain[row]).sort(numbersUp), floor = Math.max(-1.5, quantile(gains, 0.01) - 0.1);
  chart(parent, title, `${column.unit || name}; ${rows.length} samples${every > 1 ? `, every ${every}th is drawn` : ""}`, () => [
    {type: "scatter", mode: "markers", x: dots.map(row => by[row]), y: dots.map(row => Math.max(floor, gain[row])), customdata: dots.map(row => all.ids[row]), hovertext: dots.map(row => all.ids[row]), hovertemplate: "%{hovertext}: %{y:.2f}<extra></extra>",
      marker: {color: colour("--soft"), size: 5, opacity: 0.4}},
    {type: "scatter", mode: "lines", x: bins.map(bin => bin.x), y: bins.map(bin => bin.high), line: {width: 0}, hoverinfo: "skip"},
    {type: "scatter", mode: "lines", x: bins.map(bin => bin.x), y: bins.map(bin => bin.low), line: {width: 0}, fill: "tonexty", fillcolor: `${colour("--accent")}33`, hoverinfo: "skip"},
    {type: "scatter", mode: "lines+markers", x: bins.map(bin => bin.x), y: bins.map(bin => bin.middle), hovertext: bins.map(bin => `median of ${bin.n}: ${shown(bin.middle)}`), hoverinfo: "text", line: {color: colour("--accent"), width: 2}, marker: {size: 6}},
  ], {yaxis: {range: [floor, 1.05], title: {text: "control gain"}}, xaxis: name === "direction_deg" ? {range: [0, 360], tickvals: [0, 90, 180, 270, 360], ticktext: ["right", "up", "left", "down", "right"]} : whole ? {dtick: 1} : {}},
  event => { const id = event.points[0].customdata; if (id) location.href = `sample.html#${new URLSearchParams({id, kind: "gallery"})}`; });
}

function pairs() {
  const parent = find("pairs");
  if (!parent) return;
  for (const pair of all.pairs) {
    const own = valuesOf("objmc_px"), other = valuesOf(pair.objmc);
    const rows = made.filter(row => typeof own[row] === "number" && typeof other[row] === "number");
    if (!rows.length) continue;
    find("paired").hidden = false;
    const better = rows.filter(row => own[row] < other[row]).length, ratios = rows.filter(row => other[row] > 0).map(row => own[row] / other[row]).sort(numbersUp);
    const top = quantile(rows.flatMap(row => [own[row], other[row]]).sort(numbersUp), 0.995) * 1.05 || 1;
    const every = Math.ceil(rows.length / DOTS), dots = rows.filter((_, place) => place % every === 0);
    chart(parent, `ObjMC against ${pair.name}`, `${better} of ${rows.length} samples are nearer to their path (below the line); median ratio ${ratios.length ? shown(median(ratios)) : "–"}`, () => [
      {type: "scatter", mode: "lines", x: [0, top], y: [0, top], line: {color: colour("--soft"), width: 1, dash: "dot"}, hoverinfo: "skip"},
      {type: "scatter", mode: "markers", x: dots.map(row => Math.min(top, other[row])), y: dots.map(row => Math.min(top, own[row])), customdata: dots.map(row => all.ids[row]), hovertext: dots.map(row => all.ids[row]), hovertemplate: "%{hovertext}: %{y:.1f}, baseline %{x:.1f}<extra></extra>",
        marker: {size: 5, opacity: 0.6, color: dots.map(row => own[row] < other[row] ? colour("--accent") : colour("--bad"))}},
    ], {xaxis: {range: [0, top], title: {text: "baseline, px"}}, yaxis: {range: [0, top], title: {text: "here, px"}}}, event => {
      const id = event.points[0].customdata;
      if (id) location.href = `sample.html#${new URLSearchParams({id, kind: "gallery"})}`;
    });
    const difference = pair.gain === "baseline_control_gain" ? "gain_over_baseline" : pair.gain.replace("control_gain of", "gain over");
    if (columns.has(difference)) histogram(parent, difference, `Control gain minus that of ${pair.name}`);
  }
}

strips();
pairs();
if (find("histograms")) {
  for (const [name, title] of [["control_gain", "Control gain"], ["objmc_px", "ObjMC"], ["background_change", "Change of the background"], ["background_motion_px", "Motion of the background"], ["seconds", "Time for a sample"], ["gpu_gib", "GPU memory"]]) histogram(find("histograms"), name, title);
  for (const [name, title] of [["path_px", "Path length"], ["speed_px", "Speed"], ["direction_deg", "Direction"], ["box_share", "Size of the boxes"], ["moving_boxes", "Number of moving boxes"]]) against(find("asked"), name, title);
  for (const id of ["histograms", "asked"]) if (!find(id).children.length) find(id).append(make("p", {class: "hint"}, "Too few samples have these values."));
}
