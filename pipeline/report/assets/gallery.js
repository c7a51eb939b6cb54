"use strict";
// The gallery of videos, and that of failures. Its state is in the address, so that a view can be linked to.
const failures = document.body.dataset.page === "failures";
const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
let rows = [];
let token = 0;                      // of the page that is shown, so that what arrives late is dropped

const state = () => new URLSearchParams(location.hash.slice(1));
function go(changes, keepPage = false) {
  const query = state();
  if (!keepPage) query.delete("page");
  for (const [key, value] of Object.entries(changes)) value === "" || value === null ? query.delete(key) : query.set(key, value);
  history.replaceState(null, "", `#${query}`);
  show();
}
function sortOf(query) { return query.get("sort") || (failures ? "" : columns.has("control_gain") ? "control_gain" : "sample_id"); }
function hash() {                   // with the sort that is used where the address names none
  const query = state();
  query.set("sort", sortOf(query));
  return query.toString();
}

function options(select, names, first) {
  select.replaceChildren();
  for (const [value, label] of first) select.append(make("option", {value}, label));
  const groups = new Map();
  for (const [group, name] of names) {
    if (!groups.has(group)) groups.set(group, make("optgroup", {label: group}));
    groups.get(group).append(make("option", {value: name}, name));
  }
  select.append(...groups.values());
}
function fillControls() {
  const numbers = all.columns.map(column => [column.group, column.name]);
  options(find("sort"), numbers, failures ? [["", "as they came"], ["sample_id", "sample_id"]] : [["sample_id", "sample_id"]]);
  options(find("add-filter"), [...numbers, ...all.texts.map(column => [column.group, column.name])], [["", "choose a column…"]]);
  find("sort").addEventListener("change", event => go({sort: event.target.value}));
  find("order").addEventListener("change", event => go({order: event.target.value}));
  find("size").addEventListener("change", event => go({size: event.target.value}));
  let waiting = 0;
  find("search").addEventListener("input", event => { clearTimeout(waiting); waiting = setTimeout(() => go({q: event.target.value}), 150); });
  find("controls").addEventListener("submit", event => event.preventDefault());
  find("add-filter").addEventListener("change", event => {
    const name = event.target.value;
    event.target.value = "";
    if (!name) return;
    addFilter(name);
    find("filter-rows").lastElementChild.querySelector("input, select").focus();
  });
  find("previous").addEventListener("click", () => turn(-1));
  find("next").addEventListener("click", () => turn(1));
  find("page").addEventListener("change", event => go({page: event.target.value}, true));
  find("play").addEventListener("click", () => {
    const on = find("play").getAttribute("aria-pressed") !== "true";
    find("play").setAttribute("aria-pressed", on);
    for (const pane of document.querySelectorAll("button.pane")) on ? start(pane) : stop(pane);
  });
  addEventListener("hashchange", () => { fillFilters(); show(); });
}
function turn(by) {
  go({page: Math.max(1, Number(state().get("page") || 1) + by)}, true);
  find("cards").scrollIntoView({block: "start"});
  find("found").focus();
}

function addFilter(name) {
  const query = state(), column = columns.get(name);
  const row = make("fieldset", {class: "filter", "data-name": name}, make("legend", {}, name + (column && column.unit ? `, ${column.unit}` : "")));
  const listen = (input, key) => input.addEventListener("change", () => go({[key]: input.type === "checkbox" ? (input.checked ? "1" : "") : input.value}));
  if (column) {
    for (const [kind, label] of [["min", "from"], ["max", "to"]]) {
      const input = make("input", {type: "number", step: "any", value: query.get(`${kind}.${name}`), "aria-label": `${name} ${label}`});
      listen(input, `${kind}.${name}`);
      row.append(make("label", {}, `${label} `, input));
    }
    const input = make("input", {type: "checkbox", checked: query.has(`null.${name}`)});
    listen(input, `null.${name}`);
    row.append(make("label", {}, input, " not measured"));
  } else {
    const select = make("select", {"aria-label": `${name} is`}, make("option", {value: ""}, "anything"));
    for (const value of texts.get(name).values) select.append(make("option", {value, selected: query.get(`is.${name}`) === value}, value));
    listen(select, `is.${name}`);
    row.append(select);
  }
  const remove = make("button", {type: "button", "aria-label": `Remove the filter on ${name}`}, "Remove");
  remove.addEventListener("click", () => {
    row.remove();
    go(Object.fromEntries(["min", "max", "is", "null"].map(kind => [`${kind}.${name}`, ""])));
    find("add-filter").focus();
  });
  row.append(remove);
  find("filter-rows").append(row);
}
function fillFilters() {
  const names = new Set(wanted(location.hash).filters.map(([key]) => key.slice(key.indexOf(".") + 1)));
  find("filter-rows").replaceChildren();
  for (const name of names) if (columns.has(name) || texts.has(name)) addFilter(name);
  if (names.size) find("filters").open = true;
}

function show() {
  const query = state(), mine = ++token;
  rows = selected(hash(), failures);
  const size = [24, 48, 96].includes(Number(query.get("size"))) ? Number(query.get("size")) : 24;
  const pages = Math.max(1, Math.ceil(rows.length / size)), page = Math.min(pages, Math.max(1, Math.floor(Number(query.get("page"))) || 1));
  find("sort").value = sortOf(query);
  find("order").value = query.get("order") || "worst";
  find("size").value = size;
  if (document.activeElement !== find("search")) find("search").value = query.get("q") || "";
  find("page").value = page; find("page").max = pages; find("pages").textContent = `of ${pages}`;
  find("previous").disabled = page <= 1; find("next").disabled = page >= pages;
  find("play").setAttribute("aria-pressed", false); find("play").hidden = failures;
  const count = new Set(wanted(location.hash).filters.map(([key]) => key.slice(key.indexOf(".") + 1))).size;
  find("active").textContent = count ? `(${count} on)` : "";
  const from = (page - 1) * size, noun = failures ? "failed sample" : "video", total = all.committed.filter(each => Boolean(each) !== failures).length;
  find("found").textContent = rows.length ? `${rows.length === total ? "" : `${rows.length} of `}${total} ${noun}${total === 1 ? "" : "s"}; ${from + 1} to ${Math.min(from + size, rows.length)} are shown`
    : total ? `None of ${total} ${noun}${total === 1 ? "" : "s"} fits: take a filter away` : failures ? "No sample has failed." : "No video has been made yet.";
  const names = shownColumns(sortOf(query));
  for (const pane of find("cards").querySelectorAll("button.pane")) stop(pane);
  find("cards").replaceChildren(...rows.slice(from, from + size).map(row => card(row, names, mine)));
}
function shownColumns(sort) {
  const names = failures ? [] : ["control_gain", "objmc_px", "background_change", "visible_fraction"];
  return [...new Set([sort, ...names])].filter(name => columns.has(name));
}
function card(row, names, mine) {
  const id = all.ids[row], thumb = thumbUrl(all.thumbs[row]);
  const link = make("a", {href: `sample.html#${new URLSearchParams({id, from: hash(), kind: failures ? "failures" : "gallery"})}`}, id);
  const values = make("dl", {class: "values"});
  for (const name of names) {
    const value = columns.get(name).values[row];
    values.append(make("div", {class: name === sortOf(state()) ? "sorted" : null}, make("dt", {}, name), make("dd", {class: quality(name, value)}, shown(value))));
  }
  const body = make("div", {class: "body"}, make("h2", {}, link), values);
  const made = make("article", {class: failures ? "card failed" : "card", "data-id": id});
  if (failures) {
    made.append(body);
    details(row).then(sample => {
      if (mine !== token) return;
      body.append(make("p", {class: "poor"}, sample.code || "unknown"), make("p", {class: "message", tabindex: 0}, sample.message || ""));
    }).catch(complain);
    return made;
  }
  const picture = () => thumb ? make("img", {src: thumb, alt: "", loading: "lazy", decoding: "async"}) : make("span", {class: "none"}, "the video is missing");
  const condition = make("figure", {class: "pane"}, picture());
  const player = make("button", {class: "pane", type: "button", "aria-label": `Play the video of ${id}`, "aria-pressed": false, disabled: thumb === null}, picture(), make("span", {class: "mark", "aria-hidden": true}, "▶"));
  made.append(make("div", {class: "panes"}, condition, player), body);
  details(row).then(sample => {
    if (mine !== token) return;
    const paths = overlay(sample);
    for (const pane of [condition, player]) pane.setAttribute("style", shape(sample));
    const image = condition.querySelector("img");
    if (image) image.alt = described(sample);
    if (paths) condition.append(paths);
    player.dataset.url = videoUrl(0, sample.video) || "";
    if (!player.dataset.url) { player.disabled = true; return; }
    player.addEventListener("click", () => player.dataset.kept ? stop(player) : start(player, true));
    if (!calm) {
      made.addEventListener("pointerenter", event => event.pointerType === "mouse" && start(player));
      made.addEventListener("pointerleave", () => find("play").getAttribute("aria-pressed") === "true" || player.dataset.kept || stop(player));
    }
  }).catch(complain);
  return made;
}
function start(pane, keep = false) { // only now the video is loaded
  if (keep) pane.dataset.kept = "1";
  pane.setAttribute("aria-pressed", true);
  if (!pane.dataset.url || pane.querySelector("video")) return;
  const video = make("video", {src: pane.dataset.url, muted: true, loop: true, playsinline: true, preload: "auto", tabindex: -1});
  video.muted = true;
  video.addEventListener("error", () => { stop(pane); pane.disabled = true; pane.firstElementChild.replaceWith(make("span", {class: "none"}, "the video cannot be played")); });
  video.addEventListener("playing", () => { pane.classList.add("playing"); pane.querySelector("img")?.setAttribute("hidden", ""); }, {once: true});
  pane.prepend(video);
  video.setAttribute("style", "position:absolute;inset:0");
  video.play().catch(() => {});
}
function stop(pane) {
  delete pane.dataset.kept;
  pane.classList.remove("playing");
  pane.setAttribute("aria-pressed", false);
  const video = pane.querySelector("video");
  if (video) { video.pause(); video.removeAttribute("src"); video.load(); video.remove(); }
  pane.querySelector("img")?.removeAttribute("hidden");
}
function complain(error) { find("found").textContent = error.message; }

find("found").tabIndex = -1;
fillControls();
fillFilters();
show();
