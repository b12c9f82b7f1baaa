"use strict";

/* `page_data` in gallery.py describes the data. A row is one caption type of one image; the row's number is the index of
   everything about it: captions, references, scores. Elements are created only for what is scrolled into view, because a
   document with 100,000 captions would be too slow. */

const $ = id => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const { images, types, rows, runs, texts } = data;
const count = rows.image.length;
const EVEN_POINTS = 0.5; // two runs whose scores differ by less count as even
const BINS = 25;

const lowered = texts.map(text => text.toLowerCase());
const imageNames = images.map(e => [e.image, e.scenario, e.video, e.about].join(" ").toLowerCase());
const spaced = name => name.replaceAll("_", " ");
const typeNames = types.map(([subject, aspect]) => `${subject} · ${spaced(aspect)}`);
const natural = new Intl.Collator("en", { numeric: true }).compare;
const grouped = new Intl.NumberFormat("en").format;
const inSentence = title => title[0].toLowerCase() + title.slice(1);
const counted = (n, noun) => `${grouped(n)} ${noun}${n === 1 ? "" : "s"}`;

const initial = {
  view: "overview", run: 0, other: -1, query: "", measure: Object.keys(data.measures)[0], order: "up", low: null, high: null,
  type: "", by: "type",
};
const state = { ...initial };
const saved = loadNotes();
let selected = []; // numbers of the rows that match all filters
let groups = []; // their images in the chosen order: {image, rows} and the `statistics` of the rows
let changes = []; // score of this run minus that of the other, per row
let changeMeasure = null; // title and scale of `changes`, as in data.measures
let total = 0; // captions of the chosen runs
let isStale = true; // whether other runs were chosen or notes changed since `prepare`

/** Create an element; attributes that start with "on" are event listeners. */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

const button = (attributes, ...children) => el("button", { type: "button", ...attributes }, ...children);
const cell = (content, attributes = {}) => el("td", attributes, content);
const isScored = rows.reference.some(text => text >= 0); // whether any caption has a reference
const isConfident = runs.some(one => one.confidence.some(Boolean)); // whether any caption has confidences

/* --- values of a row */

const rowsByImage = images.map(() => []);
rows.image.forEach((image, i) => rowsByImage[image].push(i));
const rowsOf = image => rowsByImage[image].filter(isThere);

const run = () => runs[state.run];
const other = () => (state.other < 0 ? null : runs[state.other]);
const isThere = i => run().caption[i] >= 0 || (other() && other().caption[i] >= 0);
const hasReference = i => rows.reference[i] >= 0 && run().caption[i] >= 0;
const isExact = i => hasReference(i) && run().marks[i] === 0;
const isRanged = () => state.low !== null || state.high !== null;
const values = () => (state.measure === "change" ? changes : run().measures[state.measure] || []);

const measure = () => (state.measure === "change" ? changeMeasure : data.measures[state.measure]);

const written = (value, digits = measure().digits) => (value == null ? "–" : value.toFixed(digits).replace("-", "−"));
const signed = value => (value > 0 ? "+" : "") + written(value, 1);

function outcome(i) {
  if (!other()) return "";
  const [mine, theirs] = [run().caption[i], other().caption[i]];
  if (mine < 0 || theirs < 0) return "only one run";
  if (mine === theirs) return "same caption";
  if (changes[i] === null) return "no score";
  return Math.abs(changes[i]) < EVEN_POINTS ? "even" : changes[i] > 0 ? "better" : "worse";
}

/* --- facets: each of their values is ticked ("only these"), excluded ("not"), or neither */

const facets = [];

/** Add a facet to the page. With `keys`, its values depend on the chosen runs or the notes; else they are found here. */
function addFacet(name, title, keyOf, shown = spaced, keys = null) {
  const varies = keys !== null;
  keys ??= [...new Set(Array.from({ length: count }, (_, i) => keyOf(i)))].filter(key => key !== "").sort(natural);
  if (!varies && keys.length < 2) return;
  const codes = new Int32Array(count); // index into `keys` of each row, -1 for none: comparing texts is too slow
  const facet = { name, title, keys, keyOf, shown, codes, varies, yes: new Set(), no: new Set(), nodes: [] };
  facet.encode = () => {
    const code = new Map(keys.map((key, k) => [key, k]));
    for (let i = 0; i < count; i++) codes[i] = code.get(keyOf(i)) ?? -1;
  };
  if (!varies) facet.encode();
  facet.node = el("fieldset", {}, el("legend", {}, title));
  for (const key of keys) {
    const tick = el("input", { type: "checkbox", onchange: () => toggle(facet, "yes", key) });
    const label = `hide ${title.toLowerCase()} ${shown(key)}`;
    const not = button({ class: "not", "aria-pressed": "false", "aria-label": label, onclick: () => toggle(facet, "no", key) }, "not");
    const number = el("span", { class: "number" });
    const line = el("div", { class: "value" }, el("label", {}, tick, el("span", {}, shown(key)), number), not);
    facet.nodes.push({ key, tick, not, number, line });
    facet.node.append(line);
  }
  facets.push(facet);
  $("facets").append(facet.node);
}

function toggle(facet, kind, key) {
  const wasSet = facet[kind].has(key);
  facet.yes.delete(key);
  facet.no.delete(key);
  if (!wasSet) facet[kind].add(key);
  update();
}

function addFacets() {
  const ofImage = name => i => images[rows.image[i]][name];
  addFacet("subject", "Subject", i => types[rows.type[i]][0]);
  addFacet("aspect", "Aspect", i => types[rows.type[i]][1]);
  addFacet("phase", "Phase", ofImage("phase"), key => data.phases[key] || key);
  addFacet("view", "View", ofImage("view"));
  addFacet("split", "Split", ofImage("split"));
  addFacet("source", "Source", ofImage("source"));
  const result = i => (rows.reference[i] < 0 ? "no reference" : isExact(i) ? "equal to the reference" : "differs from it");
  if (isScored) addFacet("result", "Reference", result, spaced, ["equal to the reference", "differs from it", "no reference"]);
  const outcomes = ["better", "even", "worse", "same caption", "only one run"];
  if (runs.length > 1) addFacet("outcome", "Compared with the other run", outcome, spaced, outcomes);
  const contradicts = i => (contradictionOf(i) ? "contradicts another" : "");
  const hasAny = runs.some(one => one.contradictions.length);
  if (hasAny) addFacet("contradiction", "Contradictions", contradicts, spaced, ["contradicts another"]);
  addFacet("note", "My notes", i => (noteOf(i).note ? "note" : noteOf(i).mark ? "mark" : ""),
    key => ({ mark: "marked", note: "with a note" })[key], ["mark", "note"]);
}

/* --- selection */

// Often most captions have such a value: the histogram skips them, because their bar would leave the others without height.
const commonValues = {
  official_score: { isOne: isExact, text: "that are equal to the reference" },
  change: { isOne: i => changes[i] === 0, text: "with the same score in both runs" },
};

/** Find the rows that match, count each facet's values among the rows that match all other facets, and group by image. */
function select() {
  const terms = state.query.toLowerCase().split(/\s+/).filter(Boolean);
  const inText = terms.map(term => lowered.map(text => text.includes(term)));
  const inName = terms.map(term => imageNames.map(name => name.includes(term)));
  const isAllowed = facets.map(({ keys, yes, no }) => // by code + 1
    [yes.size === 0, ...keys.map(key => (yes.size === 0 || yes.has(key)) && !no.has(key))]);
  const counts = facets.map(f => new Uint32Array(f.keys.length + 1));
  const codes = facets.map(f => f.codes);
  const mine = run().caption, theirs = other()?.caption;
  const { low, high } = measure();
  const [from, to] = [state.low ?? -Infinity, state.high ?? Infinity];
  const bins = new Uint32Array(BINS);
  const isCommon = commonValues[state.measure]?.isOne || (() => false);
  let common = 0;
  const measured = values();
  selected = [];
  for (let i = 0; i < count; i++) {
    if (!isThere(i)) continue;
    const isFound = (_, t) => inText[t][mine[i]] || (theirs && inText[t][theirs[i]]) || inText[t][rows.reference[i]]
      || inName[t][rows.image[i]];
    if (!terms.every(isFound)) continue;
    let failed = 0, failing = -1;
    for (let f = 0; f < codes.length; f++) if (!isAllowed[f][codes[f][i] + 1]) { failed++; failing = f; }
    if (failed === 0 && measured[i] != null) { // the histogram shows captions outside of the range too
      if (isCommon(i)) common++;
      else bins[Math.max(0, Math.min(BINS - 1, Math.floor(BINS * (measured[i] - low) / (high - low || 1))))]++;
    }
    if (isRanged() && !(measured[i] != null && measured[i] >= from && measured[i] <= to)) continue;
    if (failed === 1) counts[failing][codes[failing][i] + 1]++;
    if (failed === 0) {
      selected.push(i);
      for (let f = 0; f < codes.length; f++) counts[f][codes[f][i] + 1]++;
    }
  }
  groupByImage();
  return { counts, bins, common };
}

function groupByImage() {
  groups = [];
  for (const i of selected) { // rows of an image follow each other
    let group = groups[groups.length - 1];
    if (!group || group.image !== rows.image[i]) groups.push(group = { image: rows.image[i], rows: [] });
    group.rows.push(i);
  }
  for (const group of groups) Object.assign(group, statistics(group.rows));
  if (state.order === "listed") return;
  const sign = state.order === "up" ? 1 : -1;
  groups.sort((a, b) => (a.scored === 0) - (b.scored === 0) || sign * (a.mean - b.mean) || a.image - b.image);
}

function statistics(list, measured = values()) {
  let [sum, scored, exact, referenced] = [0, 0, 0, 0];
  for (const i of list) {
    if (measured[i] != null) { sum += measured[i]; scored++; }
    if (hasReference(i)) { referenced++; exact += isExact(i); }
  }
  return { mean: scored ? sum / scored : null, scored, exact, referenced };
}

const rightText = ({ exact, referenced }) => (referenced ? `${grouped(exact)} of ${grouped(referenced)} equal to the reference` : "");

/* --- pieces: names, images, words, captions */

const imageName = entry => entry.scenario || entry.image;
// The spaces before the dots do not break, so that no line starts with a dot.
const imageAbout = entry => [entry.about, spaced(entry.view), entry.split].filter(Boolean).join("\u00a0· ");
const fullName = entry => [imageName(entry), imageAbout(entry)].filter(Boolean).join(", ");

function imageNode(entry, large = false) {
  const blank = text => el("div", { class: "blank" }, text);
  if (entry.problem) return blank(entry.problem);
  const src = large ? entry.src : entry.embedded || entry.src;
  const loading = large ? null : "lazy";
  const img = el("img", { src, loading, alt: fullName(entry), decoding: "async", draggable: "false" });
  img.addEventListener("error", () => { // someone may have sent the page without its images
    if (entry.embedded && img.getAttribute("src") !== entry.embedded) img.src = entry.embedded;
    else img.replaceWith(blank("image not found"));
  });
  return img;
}

/** Words with their marks ("s" same, "m" moved, "o" other). Neighbors that look the same share an element, unless each word
    has its confidence below it (`percents`). */
function words(text, marks, confidence, changed, percents = false) {
  const parts = [];
  percents &&= Boolean(confidence);
  text.split(/\s+/).filter(Boolean).forEach((word, k) => {
    const mark = marks ? marks[k] : "s";
    const look = mark + (confidence && confidence[k] < data.confident ? "g" : "");
    const last = parts[parts.length - 1];
    if (last && last.look === look && !percents) last.text += ` ${word}`;
    else parts.push({ text: word, look, percent: confidence ? confidence[k] : null });
  });
  return parts.flatMap(({ text, look, percent }) => {
    const tag = look[0] === "o" ? changed : "span";
    const kind = `${look[0] === "m" ? "moved" : ""} ${look[1] ? "grey" : ""}`.trim();
    const node = tag === "span" && !kind ? text : el(tag, { class: kind || null }, text);
    return [percents ? el("span", { class: "w" }, node, el("small", {}, percent)) : node, " "];
  });
}

const none = text => [el("span", { class: "none" }, text)];

function captionWords(one, i, percents) {
  const text = texts[one.caption[i]];
  if (text === undefined) return none("(not in this run)");
  return text.trim() ? words(text, one.marks[i] && one.marks[i][0], one.confidence[i], "mark", percents) : none("(empty caption)");
}

function referenceWords(i) {
  const text = texts[rows.reference[i]];
  if (text === undefined) return none("(no reference)");
  return text.trim() ? words(text, run().marks[i] && run().marks[i][1], null, "u") : none("(empty reference)");
}

/** A copy of a template of cards.html.jinja with the columns that the page needs: {".gen": name of this run, …} */
function copyOf(template) {
  const node = $(template).content.firstElementChild.cloneNode(true);
  const [generated, compared] = node.querySelectorAll(".gen .role, .oth .role");
  if (other()) [generated.textContent, compared.textContent] = [run().name, other().name];
  else node.querySelector(".oth").remove();
  if (!isScored) node.querySelector(".ref").remove();
  return node;
}

function captionNode(i, percents = false) {
  const node = copyOf("caption-template");
  const fill = (name, content) => node.querySelector(`.${name} .text`)?.replaceChildren(...content);
  const isSame = other() && other().caption[i] === run().caption[i];
  node.querySelector(".type").textContent = typeNames[rows.type[i]];
  fill("gen", captionWords(run(), i, percents));
  if (other()) fill("oth", isSame ? none("(same caption)") : captionWords(other(), i, percents));
  fill("ref", referenceWords(i));
  node.querySelector(".score").replaceChildren(written(values()[i]), ...changeTag(i));
  if (noteOf(i).mark) node.querySelector(".type").append(" ★");
  return node;
}

function changeTag(i) {
  const result = outcome(i);
  if (!["better", "even", "worse"].includes(result) || state.measure === "change") return [];
  const sign = { better: "▲", even: "=", worse: "▼" }[result];
  return [el("span", { class: `tag ${result}`, title: `score minus that of ${other().name}` }, `${sign} ${signed(changes[i])}`)];
}

/* --- overview and captions */

let stopFeed = () => {};

/** Show the first `chunk` items in a container, and more of them as the reader scrolls. */
function feed(container, items, build, chunk) {
  stopFeed();
  let next = 0;
  const more = el("div", { class: "more" });
  const observer = new IntersectionObserver(found => found.some(f => f.isIntersecting) && add(), { rootMargin: "900px" });
  stopFeed = () => observer.disconnect();
  const add = () => {
    more.before(...items.slice(next, next += chunk).map(build));
    observer.unobserve(more);
    if (next < items.length) observer.observe(more); // reports again at once if there is still room
    else more.remove();
  };
  container.replaceChildren(more);
  add();
}

function bar(value) {
  const { low, high } = measure();
  const share = value === null ? 0 : 100 * (value - low) / (high - low || 1);
  return el("span", { class: "meter" }, el("span", { style: `width:${Math.max(0, Math.min(100, share)).toFixed(1)}%` }));
}

function tile(group) {
  const entry = images[group.image];
  return button({ class: "tile", "data-image": group.image, onclick: () => open(group.image) },
    imageNode(entry), el("span", { class: "line" }, el("strong", {}, written(group.mean)), bar(group.mean)),
    el("span", { class: "right" }, rightText(group) || counted(group.rows.length, "caption")),
    el("span", { class: "name" }, imageName(entry)), el("span", { class: "about" }, imageAbout(entry)));
}

const thumbnail = image => button(
  { class: "thumb", "data-image": image, "aria-label": `large view of ${fullName(images[image])}`, onclick: () => open(image) },
  imageNode(images[image]));

function card(group) {
  const entry = images[group.image];
  const node = copyOf("card-template");
  node.querySelector(".side").prepend(thumbnail(group.image));
  node.querySelector("h3").textContent = imageName(entry);
  node.querySelector(".about").textContent = imageAbout(entry);
  node.querySelector(".heads .score").textContent = measure().head || measure().title.split(" (")[0];
  // Exactly right captions are one line that opens: a reader looks for what is wrong, or differs between two runs.
  const isFolded = i => isExact(i) && (!other() || outcome(i) === "same caption");
  const folded = group.rows.filter(isFolded);
  const list = node.querySelector(".list");
  list.append(...group.rows.filter(i => !isFolded(i)).map(i => captionNode(i)));
  if (folded.length) {
    const details = el("details", {}, el("summary", {}, other() ? `${folded.length} equal to the reference in both` : rightText(group)));
    details.addEventListener("toggle", () => details.append(...folded.splice(0).map(i => captionNode(i))));
    list.append(details);
  }
  return node;
}

function showOverview({ bins, common }) {
  const shown = measure();
  const left = common ? `, without ${grouped(common)} ${commonValues[state.measure].text}` : "";
  $("histogram-title").textContent = `Captions by ${inSentence(shown.title)}${left}`;
  const most = Math.max(1, ...bins);
  $("bars").dataset.most = bins.some(n => n) ? `${counted(most, "caption")} in the highest bar` : "No captions to draw";
  const edge = b => shown.low + b * (shown.high - shown.low) / BINS;
  $("bars").replaceChildren(...Array.from(bins, (n, b) => {
    const [from, to] = [edge(b), edge(b + 1)];
    const inside = (state.low === null || to > state.low) && (state.high === null || from < state.high);
    return el("span", { class: inside ? "" : "out", title: `${written(from)} to ${written(to)}: ${counted(n, "caption")}`,
      style: `--share:${n ? Math.max(3, 100 * n / most) : 0}%` });
  }));
  $("low").placeholder = written(shown.low);
  $("high").placeholder = written(shown.high);
  showMeans();
  $("comparison").replaceChildren(...comparison());
  const order = { up: `, lowest mean ${inSentence(shown.title)} first`, down: `, highest mean ${inSentence(shown.title)} first` };
  $("grid-title").textContent = counted(groups.length, "image") + (groups.length > 1 && order[state.order] || "");
  feed($("grid"), groups, tile, 60);
}

/** The groupings of mean values: {title, keyOf a row, shown: name of a key, only: {facet: value} that a click selects} */
function groupings() {
  const byType = { name: "type", title: "Caption type", keyOf: i => rows.type[i], shown: key => typeNames[key],
    only: key => ({ subject: types[key][0], aspect: types[key][1] }) };
  const byFacet = facets.filter(facet => ["phase", "view", "split", "source"].includes(facet.name));
  return [byType, ...byFacet.map(facet => ({ ...facet, only: key => ({ [facet.name]: key }) }))];
}

/** Means of the selected captions by one grouping; a click on a name filters by it. */
function showMeans() {
  const all = groupings();
  const { title, keyOf, shown, only } = all.find(one => one.name === state.by);
  const byKey = new Map();
  for (const i of selected) {
    const key = keyOf(i);
    if (!byKey.has(key)) byKey.set(key, []);
    byKey.get(key).push(i);
  }
  const filter = key => {
    for (const facet of facets) {
      const value = only(key)[facet.name];
      if (value !== undefined) { facet.yes = new Set([value]); facet.no.clear(); }
    }
    update();
  };
  const lines = [...byKey].sort(([a], [b]) => natural(a, b)).map(([key, list]) => {
    const found = statistics(list);
    const name = button({ class: "plain-button", title: "show only these", onclick: () => filter(key) }, shown(key) || "none");
    return el("tr", {}, el("th", { scope: "row" }, name), cell(written(found.mean)), cell(bar(found.mean), { class: "wide" }),
      cell(rightText(found) || counted(list.length, "caption"), { class: "right" }));
  });
  $("means-title").textContent = `Mean ${inSentence(measure().title)}${other() && state.measure !== "change" ? ` of ${run().name}` : ""} by`;
  const choose = name => {
    state.by = name;
    showMeans();
    $("by").querySelector("[aria-pressed=true]").focus();
  };
  $("by").replaceChildren(...all.map(one =>
    button({ "aria-pressed": String(one.name === state.by), onclick: () => choose(one.name) }, one.title)));
  $("means").replaceChildren(el("table", { "aria-label": title }, el("tbody", {}, ...lines)));
}

/** Table of which run is better, of the selected captions that have a score in both. */
function comparison() {
  if (!other()) return [];
  const both = selected.filter(i => changes[i] !== null);
  if (!both.length) return [el("p", { class: "notes" }, "The two runs share no caption that has a score in both.")];
  const heads = ["Caption type", "Captions", "Better", "Even", "Worse", run().name, other().name, "Better · even · worse"];
  const byType = typeNames.map((title, t) => [title, both.filter(i => rows.type[i] === t)]).filter(([, list]) => list.length);
  const hint = `“Better” counts captions of ${run().name} that score higher than those of ${other().name}; `
    + `less than ${EVEN_POINTS} points apart is even.`;
  const table = el("table", { class: "panel compare" },
    el("thead", {}, el("tr", {}, ...heads.map(head => el("th", { scope: "col" }, head)))),
    el("tbody", {}, ...[...byType, ["all", both]].map(([title, list]) => comparisonLine(title, list))));
  return [el("h2", {}, "Which run is better, by caption type"), el("p", { class: "hint" }, hint), el("div", { class: "scroll" }, table)];
}

function comparisonLine(title, list) {
  const n = { better: 0, even: 0, worse: 0, "same caption": 0 };
  for (const i of list) n[outcome(i)]++;
  const even = n.even + n["same caption"];
  const means = [run(), other()].map(one => statistics(list, one.measures.official_score).mean);
  const part = (kind, number) => el("i", { class: kind, style: `width:${100 * number / list.length}%` });
  const parts = el("div", { title: `${n.better} better, ${even} even, ${n.worse} worse` },
    part("better", n.better), part("even", even), part("worse", n.worse));
  return el("tr", {}, el("th", { scope: "row" }, title), ...[list.length, n.better, even, n.worse].map(number => cell(grouped(number))),
    ...means.map(mean => cell(written(mean, 1))), cell(parts, { class: "parts" }));
}

/* --- scenarios */

/** The contradicting facts that a row states: [{value, most: whether most captions state it}], or undefined. */
const contradictionOf = i => (run().flagged ??= flagRows(run())).get(`${rows.type[i]} ${images[rows.image[i]].image}`);

function flagRows(one) {
  const flagged = new Map();
  for (const { type, values: stated } of one.contradictions) {
    const sizes = Object.values(stated).map(names => names.length).sort((a, b) => b - a);
    for (const [value, names] of Object.entries(stated)) for (const name of names) {
      const key = `${type} ${name}`;
      flagged.set(key, [...(flagged.get(key) || []), { value, most: names.length > sizes[1] }]);
    }
  }
  return flagged;
}

function showScenarios() {
  const all = new Map(groups.map(group => [images[group.image].scenario, []]));
  images.forEach((entry, image) => all.get(entry.scenario)?.push(image));
  feed($("boards"), [...all], board, 4);
}

/** A scenario: a column per phase, a row per camera, captions of one type. */
function board([scenario, list]) {
  const found = run().contradictions.filter(one => one.scenario === scenario);
  const first = selected.find(i => images[rows.image[i]].scenario === scenario);
  const automatic = found.length ? found[0].type : rows.type[first];
  const type = state.type === "" ? automatic : +state.type;
  const phases = [...new Set(list.map(image => images[image].about))].sort(natural);
  const cameraOf = image => [spaced(images[image].view), images[image].video].filter(Boolean).join(" · ");
  const cellOf = (camera, phase) => list.filter(image => cameraOf(image) === camera && images[image].about === phase);
  const body = camera => el("tbody", {},
    el("tr", {}, el("th", { scope: "rowgroup", colspan: phases.length, class: "about" }, camera || "one camera")),
    el("tr", {}, ...phases.map(phase => el("td", {}, ...cellOf(camera, phase).flatMap(image => boardCell(image, type))))));
  const table = el("table", { class: "board", style: `width:min(100% + 20px, ${280 * phases.length}px);min-width:${180 * phases.length}px` },
    el("thead", {}, el("tr", {}, ...phases.map(phase => el("th", { scope: "col" }, phase || "image")))),
    ...[...new Set(list.map(cameraOf))].map(body));
  const flags = found.map(flag => button({ class: "flag", onclick: () => { state.type = String(flag.type); update(); } },
    `⚠ Contradiction in ${typeNames[flag.type]}: ${flag.text}`));
  return el("article", { class: "card board-card" }, el("h3", {}, scenario || "(no scenario)"), el("div", {}, ...flags),
    el("p", { class: "type" }, `Captions shown: ${typeNames[type]}`),
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `phases of ${scenario}` }, table));
}

function boardCell(image, type) {
  const own = rowsOf(image).filter(i => rows.type[i] === type);
  const stated = own.flatMap(i => contradictionOf(i) || []);
  return [thumbnail(image),
    ...stated.map(({ value, most }) => el("span", { class: most ? "tag even" : "tag worse" }, most ? value : `⚠ ${value}`)),
    ...(own.length ? own.map(boardCaption) : none("(no caption of this type)"))];
}

function boardCaption(i) {
  const node = captionNode(i);
  if (isExact(i) && !other()) node.querySelector(".ref").replaceChildren(el("span", { class: "right" }, "equal to the reference"));
  return node;
}

/* --- large view */

const zoom = { factor: 1, x: 0, y: 0 };
let opened = -1;

function open(image) {
  opened = image;
  const entry = images[image];
  $("large-title").textContent = imageName(entry);
  $("large-about").textContent = [imageAbout(entry), entry.video, entry.image].filter(Boolean).join(" · ");
  $("canvas").replaceChildren(imageNode(entry, true), ...entry.boxes.map(boxNode));
  $("boxes-field").hidden = !entry.boxes.length;
  $("attention-of").textContent = "";
  setZoom(1, 0, 0);
  const matching = new Set(selected);
  const own = rowsOf(image);
  const shown = own.filter(i => matching.has(i)), rest = own.filter(i => !matching.has(i));
  const list = $("large-captions");
  list.replaceChildren(...shown.map(largeCaption));
  if (rest.length) {
    const summary = el("summary", {}, `${counted(rest.length, "caption")} of this image outside the filters`);
    list.append(el("details", { open: shown.length ? null : "" }, summary, ...rest.map(largeCaption)));
  }
  if (isConfident) list.prepend(el("p", { class: "hint" }, "Below each word: the model's confidence in percent."));
  list.scrollTop = 0;
  const at = groups.findIndex(group => group.image === image);
  $("previous").disabled = at <= 0;
  $("next").disabled = at < 0 || at === groups.length - 1;
  if (!$("large").open) { $("large").showModal(); $("large-title").focus(); }
  remember();
}

function boxNode({ label, bbox_xywh: [x, y, w, h] }) {
  const style = { left: x, top: y, width: w, height: h };
  const css = Object.entries(style).map(([name, share]) => `${name}:${100 * share}%`).join(";");
  return el("div", { class: "box", style: css }, el("span", {}, label));
}

function largeCaption(i) {
  const node = captionNode(i, true);
  const note = noteOf(i);
  const facts = Object.entries(data.measures).filter(([name]) => run().measures[name][i] !== null)
    .map(([name, m]) => `${m.title} ${written(run().measures[name][i], m.digits)}`).join(" · ");
  const star = button({ onclick: () => { saveNote(i, { mark: !noteOf(i).mark }); showStar(); } });
  const showStar = () => {
    star.setAttribute("aria-pressed", String(!!noteOf(i).mark));
    star.textContent = noteOf(i).mark ? "★ marked" : "☆ mark";
  };
  showStar();
  const text = el("input", { type: "text", placeholder: "Note", "aria-label": `note on ${typeNames[rows.type[i]]}`,
    value: note.note || "", oninput: event => saveNote(i, { note: event.target.value }) });
  const looks = Object.entries(run().attention[i] || {}).map(([word, grid]) =>
    button({ class: "look", "aria-pressed": "false", onclick: event => toggleAttention(event.target, word, grid) }, `attention: ${word}`));
  node.append(el("div", { class: "tools" }, star, text, ...looks, el("span", { class: "muted" }, facts)));
  return node;
}

/** Draw the attention of a word, rows of numbers, as a grid of translucent cells over the image, or remove it again. */
function toggleAttention(pressed, word, grid) {
  const isShown = pressed.getAttribute("aria-pressed") === "true";
  for (const one of document.querySelectorAll(".look")) one.setAttribute("aria-pressed", String(one === pressed && !isShown));
  $("canvas").querySelector(".attention")?.remove();
  $("attention-of").textContent = isShown ? "" : `Attention of “${word}”, relative to its strongest patch`;
  if (isShown) return;
  $("canvas").append(el("div", { class: "attention", style: `grid-template-columns:repeat(${grid[0].length},1fr)` },
    ...grid.flat().map(share => el("i", { style: `opacity:${(0.75 * share).toFixed(3)}` }))));
}

/** Zoom by a factor so that the point (x, y) of the stage, relative to its center, stays where it is. */
function zoomBy(by, x = 0, y = 0) {
  const factor = Math.max(1, Math.min(16, zoom.factor * by));
  const ratio = factor / zoom.factor;
  setZoom(factor, x - (x - zoom.x) * ratio, y - (y - zoom.y) * ratio);
}

function setZoom(factor, x, y) {
  Object.assign(zoom, factor === 1 ? { factor, x: 0, y: 0 } : { factor, x, y });
  $("canvas").style.transform = `translate(${zoom.x}px, ${zoom.y}px) scale(${factor})`;
  $("canvas").style.setProperty("--zoom", factor);
  $("zoom").textContent = `${Math.round(100 * factor)} %`;
}

function step(by) {
  const at = groups.findIndex(group => group.image === opened) + by;
  if (groups[at]) open(groups[at].image);
}

async function copyLink() {
  remember();
  try { await navigator.clipboard.writeText(location.href); $("link").textContent = "Copied"; }
  catch (refused) { window.prompt("Link to this image", location.href); }
  setTimeout(() => { $("link").textContent = "Copy link"; }, 1500);
}

/* --- marks and notes: kept by this browser, per page */

function storageKey() { return `beit3lib gallery ${location.pathname}`; }
function loadNotes() {
  try { return JSON.parse(localStorage.getItem(storageKey())) || {}; } catch (blocked) { return {}; }
}
const rowKey = i => [images[rows.image[i]].image, ...types[rows.type[i]]].join("|");
function noteOf(i) { return Object.hasOwn(saved, rowKey(i)) ? saved[rowKey(i)] : {}; }
function saveNote(i, change) {
  isStale = true;
  const note = saved[rowKey(i)] = { ...noteOf(i), ...change };
  if (!note.mark && !note.note) delete saved[rowKey(i)];
  try { localStorage.setItem(storageKey(), JSON.stringify(saved)); } catch (blocked) { /* kept until the page is closed */ }
}

/* --- export */

const EXPORTED = ["image", "scenario", "split", "source", "view", "video", "label", "phase"];

/** The selected captions as flat records. */
function exported() {
  const text = number => (number < 0 ? null : texts[number]);
  return selected.map(i => {
    const entry = images[rows.image[i]], [subject, aspect] = types[rows.type[i]], { mark, note } = noteOf(i);
    const record = Object.fromEntries(EXPORTED.map(name => [name, entry[name]]));
    Object.assign(record, { subject, aspect, run: run().name, caption: text(run().caption[i]), reference: text(rows.reference[i]) });
    for (const name of Object.keys(data.measures)) record[name] = run().measures[name][i];
    if (other()) Object.assign(record, { compared_with: other().name, other_caption: text(other().caption[i]), change: changes[i] });
    return Object.assign(record, { marked: !!mark, note: note || "" });
  });
}

function asCsv(records) {
  // A text that begins like a formula gets an apostrophe, so that a spreadsheet does not run it.
  const quoted = value => {
    const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value ?? "");
    return `"${text.replaceAll('"', '""')}"`;
  };
  const names = Object.keys(records[0] || { image: "" });
  return [names, ...records.map(record => names.map(name => record[name]))].map(line => line.map(quoted).join(",")).join("\r\n");
}

function download(name, text, type) {
  const link = el("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/* --- the address: filters and the open image, so that a copied link shows the same */

function remember() {
  const set = new URLSearchParams();
  if (state.run) set.set("run", run().name);
  if (other()) set.set("other", other().name);
  for (const name of ["view", "query", "low", "high", "type", "order", "measure"]) {
    if (state[name] !== initial[name] && state[name] !== null) set.set(name, state[name]);
  }
  for (const facet of facets) {
    for (const key of facet.yes) set.append(`only.${facet.name}`, key);
    for (const key of facet.no) set.append(`not.${facet.name}`, key);
  }
  if (opened >= 0) set.set("image", images[opened].image);
  try { history.replaceState(null, "", `#${set}`); } catch (blocked) { /* an embedded page keeps its address */ }
}

function recall() {
  const set = new URLSearchParams(location.hash.slice(1));
  const number = name => (set.get(name) !== null && Number.isFinite(+set.get(name)) ? +set.get(name) : null);
  const indexOf = name => runs.findIndex(one => one.name === set.get(name));
  const tabs = [...document.querySelectorAll("[data-view]:not([hidden])")].map(tab => tab.dataset.view);
  state.view = tabs.includes(set.get("view")) ? set.get("view") : initial.view;
  state.run = Math.max(0, indexOf("run"));
  state.other = indexOf("other") === state.run ? -1 : indexOf("other");
  state.query = set.get("query") || "";
  [state.low, state.high] = [number("low"), number("high")];
  for (const name of ["order", "type", "measure"]) {
    const isOffered = [...$(name).options].some(option => option.value === set.get(name));
    state[name] = isOffered ? set.get(name) : initial[name];
  }
  isStale = true;
  for (const facet of facets) {
    facet.yes = new Set(set.getAll(`only.${facet.name}`).filter(key => facet.keys.includes(key)));
    facet.no = new Set(set.getAll(`not.${facet.name}`).filter(key => facet.keys.includes(key)));
  }
  opened = images.findIndex(entry => entry.image === set.get("image"));
}

/* --- putting it together */

/** Compute what depends on the chosen runs and the notes; filters do not change it. */
function prepare() {
  if (!isStale) return;
  isStale = false;
  const theirs = other()?.measures.official_score, mine = run().measures.official_score;
  changes = rows.image.map((_, i) => (theirs && mine && mine[i] !== null && theirs[i] !== null ? mine[i] - theirs[i] : null));
  if (other()) {
    const most = changes.reduce((most, change) => Math.max(most, Math.abs(change)), 1);
    const title = `Score of ${run().name} minus score of ${other().name}`;
    changeMeasure = { title, head: "Difference", digits: 1, low: -most, high: most };
  }
  total = rows.image.reduce((sum, _, i) => sum + isThere(i), 0);
  for (const facet of facets) if (facet.varies) facet.encode();
}

function update() {
  if (!other()) { // nothing is left to compare with
    if (state.measure === "change") state.measure = initial.measure;
    for (const facet of facets) if (facet.name === "outcome") { facet.yes.clear(); facet.no.clear(); }
  }
  prepare();
  const found = select();
  showControls(found);
  for (const view of ["overview", "captions", "scenarios"]) $(view).hidden = view !== state.view;
  document.body.style.setProperty("--texts", 1 + isScored + !!other());
  $("legend").hidden = state.view === "overview" || !(isScored || isConfident);
  if (state.view === "overview") showOverview(found);
  else if (state.view === "captions") feed($("captions"), groups, card, 8);
  else showScenarios();
  remember();
}

function showControls({ counts }) {
  facets.forEach((facet, f) => {
    facet.nodes.forEach(({ key, tick, not, number, line }, k) => {
      tick.checked = facet.yes.has(key);
      not.setAttribute("aria-pressed", String(facet.no.has(key)));
      number.textContent = grouped(counts[f][k + 1]);
      line.classList.toggle("excluded", facet.no.has(key));
      line.hidden = facet.varies && !counts[f][k + 1] && !facet.yes.has(key) && !facet.no.has(key);
    });
    facet.node.hidden = facet.nodes.every(({ line }) => line.hidden);
  });
  for (const name of ["query", "run", "other", "measure", "order", "type", "low", "high"]) {
    if (document.activeElement !== $(name)) $(name).value = state[name] ?? "";
  }
  $("measure").querySelector("[value=change]")?.toggleAttribute("hidden", !other());
  for (const tab of document.querySelectorAll("[data-view]")) {
    tab.setAttribute("aria-pressed", String(tab.dataset.view === state.view));
  }
  const part = selected.length === total ? "" : `${grouped(selected.length)} of `;
  $("count").textContent = `${counted(groups.length, "image")}, ${part}${counted(total, "caption")}`;
  const active = facets.reduce((sum, facet) => sum + facet.yes.size + facet.no.size, 0) + (state.query !== "") + isRanged();
  $("clear").hidden = active === 0;
  $("show-filters").textContent = active ? `Filters (${active})` : "Filters";
  $("empty").hidden = selected.length > 0;
  for (const id of ["means-panel", "grid-title"]) $(id).hidden = !selected.length;
}

function setUp() {
  const options = (id, list) => $(id).append(...list.map(([value, text]) => el("option", { value }, text)));
  options("run", runs.map((one, r) => [r, one.name]));
  options("other", [[-1, "nothing"], ...runs.map((one, r) => [r, one.name])]);
  options("measure", Object.entries(data.measures).map(([name, m]) => [name, m.title]));
  if (runs.length > 1) options("measure", [["change", "Score difference"]]);
  options("type", typeNames.map((name, t) => [t, name]));
  $("run-field").hidden = $("other-field").hidden = runs.length < 2;
  document.querySelector("#legend .of-reference").hidden = !isScored;
  document.querySelector("#legend .of-confidence").hidden = !isConfident;
  document.querySelector("[data-view=scenarios]").hidden = !images.some(entry => entry.scenario);
  addFacets();
  const scenarios = new Set(images.map(entry => entry.scenario).filter(Boolean)).size;
  const first = data.measures[initial.measure];
  const known = runs[0].measures[initial.measure].filter(value => value !== null);
  const mean = written(known.reduce((a, b) => a + b, 0) / known.length, first.digits);
  const of = runs.length > 1 ? ` of ${runs[0].name}` : "";
  $("summary").textContent = [counted(images.length, "image"), counted(count, "caption"), scenarios && counted(scenarios, "scenario"),
    known.length && `mean ${inSentence(first.title)}${of} ${mean}`].filter(Boolean).join(" · ");
}

function listen() {
  const on = (id, event, action) => $(id).addEventListener(event, action);
  const field = (id, action) => on(id, "change", event => { action(event.target.value); update(); });
  let waiting = 0; // the search waits for a pause in typing, because it would lag behind if it ran for every letter
  on("query", "input", event => {
    clearTimeout(waiting);
    state.query = event.target.value;
    waiting = setTimeout(update, 120);
  });
  for (const name of ["run", "other"]) field(name, value => {
    state[name] = +value;
    if (state.other === state.run) state.other = -1; // a run is not compared with itself
    isStale = true;
  });
  field("measure", value => Object.assign(state, { measure: value, low: null, high: null }));
  for (const name of ["order", "type"]) field(name, value => { state[name] = value; });
  for (const name of ["low", "high"]) field(name, value => { state[name] = value === "" ? null : +value; });
  for (const tab of document.querySelectorAll("[data-view]")) {
    tab.addEventListener("click", () => { state.view = tab.dataset.view; update(); });
  }
  on("show-filters", "click", () => {
    $("show-filters").setAttribute("aria-expanded", String(document.body.classList.toggle("filtering")));
  });
  on("skip", "click", () => { $("main").focus(); $("main").scrollIntoView(); });
  on("clear", "click", () => {
    Object.assign(state, { query: "", low: null, high: null });
    for (const facet of facets) { facet.yes.clear(); facet.no.clear(); }
    update();
  });
  on("export-csv", "click", () => download("captions.csv", `\uFEFF${asCsv(exported())}`, "text/csv"));
  on("export-json", "click", () => download("captions.json", JSON.stringify(exported(), null, 1), "application/json"));
  on("previous", "click", () => step(-1));
  on("next", "click", () => step(1));
  on("link", "click", copyLink);
  on("close", "click", () => $("large").close());
  on("large", "click", event => event.target === $("large") && $("large").close());
  on("large", "close", () => {
    const image = opened;
    opened = -1;
    remember();
    prepare();
    showControls(select()); // new marks and notes; the images stay where the reader has scrolled to
    // The event comes a moment after the dialog has closed: leave the focus alone if the reader is already typing.
    const isTyping = document.activeElement.closest("input, select");
    if (!isTyping) document.querySelector(`#${state.view} [data-image="${image}"]`)?.focus();
  });
  on("zoom-in", "click", () => zoomBy(1.5));
  on("zoom-out", "click", () => zoomBy(1 / 1.5));
  on("fit", "click", () => setZoom(1, 0, 0));
  on("boxes", "change", event => $("canvas").classList.toggle("plain", !event.target.checked));
  document.addEventListener("keydown", onKey);
  addEventListener("hashchange", start);
  listenToHistogram();
  listenToStage();
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const active = document.activeElement;
  if (active.closest("input:not([type=checkbox]), select, textarea")) {
    if (event.key === "Escape" && !$("large").open) active.blur();
    return;
  }
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if ($("large").open) {
    if (by) { step(by); event.preventDefault(); }
    if (event.key === "+" || event.key === "=") zoomBy(1.5);
    if (event.key === "-") zoomBy(1 / 1.5);
  } else if (event.key === "/") {
    $("query").focus();
    event.preventDefault();
  } else if (by && !active.closest(".scroll, aside, .bar")) {
    const list = [...document.querySelectorAll(`#${state.view} .tile, #${state.view} .thumb`)];
    const at = list.indexOf(active);
    list[at < 0 ? 0 : Math.max(0, Math.min(list.length - 1, at + by))]?.focus();
    event.preventDefault();
  }
}

/** Dragging over the bars selects a range; a click selects one bar. */
function listenToHistogram() {
  const bars = $("bars");
  let from = null;
  const at = event => {
    const box = bars.getBoundingClientRect();
    return Math.max(0, Math.min(BINS - 1, Math.floor(BINS * (event.clientX - box.left) / box.width)));
  };
  const range = event => [from, at(event)].sort((a, b) => a - b);
  bars.addEventListener("pointerdown", event => { from = at(event); bars.setPointerCapture(event.pointerId); });
  bars.addEventListener("pointermove", event => {
    if (from === null) return;
    const [a, b] = range(event);
    [...bars.children].forEach((one, k) => one.classList.toggle("out", k < a || k > b));
  });
  bars.addEventListener("pointerup", event => {
    if (from === null) return;
    const [a, b] = range(event), { low, high, digits } = measure();
    const edge = k => +(low + k * (high - low) / BINS).toFixed(digits + 1);
    [state.low, state.high] = [a === 0 ? null : edge(a), b === BINS - 1 ? null : edge(b + 1)];
    from = null;
    update();
  });
}

function listenToStage() {
  const stage = $("stage");
  let from = null;
  stage.addEventListener("wheel", event => {
    const box = stage.getBoundingClientRect();
    zoomBy(Math.exp(-event.deltaY / 400), event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2);
    event.preventDefault();
  }, { passive: false });
  stage.addEventListener("pointerdown", event => {
    from = { x: event.clientX - zoom.x, y: event.clientY - zoom.y };
    stage.setPointerCapture(event.pointerId);
  });
  stage.addEventListener("pointermove", event => from && setZoom(zoom.factor, event.clientX - from.x, event.clientY - from.y));
  stage.addEventListener("pointerup", () => { from = null; });
  stage.addEventListener("dblclick", () => (zoom.factor > 1 ? setZoom(1, 0, 0) : zoomBy(3)));
}

function start() {
  recall();
  const image = opened;
  update();
  if (image >= 0) open(image);
}

setUp();
listen();
start();
