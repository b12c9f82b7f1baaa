"use strict";

/* `page_data` in gallery.py describes the data. A row is one caption type of one image; the row's number is the index of
   everything about it: captions, references, scores. Elements are created only for what is scrolled into view, because a
   document with 100,000 captions would be too slow. */

const $ = id => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const { images, types, rows, runs, texts, phrases, kinds, facts } = data;
const count = rows.image.length;
const EVEN_POINTS = 0.5; // two runs whose scores differ by less count as even
const BINS = 25;

const lowered = texts.map(text => text.toLowerCase());
const imageNames = images.map(e => [e.image, e.scenario, e.video, e.about].join(" ").toLowerCase());
const spaced = name => name.replaceAll("_", " ");
const typeNames = types.map(type => type.filter(Boolean).map(spaced).join(" · "));
const natural = new Intl.Collator("en", { numeric: true }).compare;
const grouped = new Intl.NumberFormat("en").format;
const counted = (n, noun) => `${grouped(n)} ${noun}${n === 1 ? "" : "s"}`;
const inSentence = title => title[0].toLowerCase() + title.slice(1);

const isScored = rows.reference.some(text => text >= 0); // whether any caption has a reference

const initial = {
  view: "overview", run: 0, other: runs.length > 1 ? 1 : -1, query: "", measure: Object.keys(data.measures)[0],
  order: isScored ? "kind" : "listed", low: null, high: null, type: "", by: "type", slot: "",
  answered: "", question: "",
};
const state = { ...initial };
const saved = loadNotes();
let selected = []; // numbers of the rows that match all filters
let groups = []; // their images in the chosen order: {image, rows} and the `statistics` of the rows
let changes = []; // score of this run minus that of the other, per row
let total = 0; // captions of the chosen runs
let opened = -1; // index of the image in the large view
let isStale = true; // whether other runs were chosen or notes changed since `prepare`

/** Create an element; attributes that start with "on" are event listeners. */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value != null) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

const button = (attributes, ...children) => el("button", { type: "button", ...attributes }, ...children);
const line = (...cells) => el("tr", {}, ...cells);
const cell = (content, attributes = {}) => el("td", attributes, content);
const head = (content, attributes = {}) => el("th", attributes, content);
const small = text => el("span", { class: "small" }, text);
/** A bar between two percentages of its width. */
const meter = (from, to, kind = null) => el("span", { class: "meter" }, el("i", { class: kind, style: `left:${from}%;width:${to - from}%` }));
const inPercent = share => `${(100 * share).toFixed(0)} %`;
/** A table of numbers with a title, which scrolls where it is wider than the window. */
const tableOf = (title, hint, heads, lines, kind = "") => [el("h2", {}, title), el("p", { class: "hint" }, hint),
  el("div", { class: "scroll" }, el("table", { class: `panel numbers ${kind}` },
    el("thead", {}, line(...heads.map(text => head(text)))), el("tbody", {}, ...lines)))];

/* --- values of a row */

const rowsByImage = images.map(() => []);
rows.image.forEach((image, i) => rowsByImage[image].push(i));

const isConfident = runs.some(one => one.confidence.some(Boolean));
const run = () => runs[state.run];
const other = () => runs[state.other];
const isThere = i => run().caption[i] >= 0 || other()?.caption[i] >= 0;
const hasReference = i => rows.reference[i] >= 0 && run().caption[i] >= 0;
const isExact = i => hasReference(i) && run().marks[i] === 0;
const isAnswered = images.some(entry => entry.questions.length);
const isRanged = () => state.low !== null || state.high !== null;
const values = () => (state.measure === "change" ? changes : run().measures[state.measure]);
const measure = () => data.measures[state.measure];
const written = (value, digits = measure().digits) => (value == null ? "–" : value.toFixed(digits).replace("-", "−"));

const kindOf = i => run().kind[i];
const rank = i => (kindOf(i) < 0 ? kinds.length : kindOf(i)); // wrong captions first, those without a kind last
const factsOf = i => run().facts[i].map(fact => facts[fact]);
const hasError = (i, slot) => factsOf(i).some(([name, , , result]) => name === slot && ["wrong", "omitted"].includes(result));
/** Captions to read only if one asks for them: equal to the reference, or equal in fact. */
const isRight = i => (isExact(i) || kinds[kindOf(i)] === "equal in fact") && !run().against[i];

function outcome(i) {
  if (!other()) return "";
  const [mine, theirs] = [run().caption[i], other().caption[i]];
  if (mine < 0 || theirs < 0) return "only one run";
  if (mine === theirs) return "same caption";
  if (changes[i] === null) return "no score";
  return Math.abs(changes[i]) < EVEN_POINTS ? "even" : changes[i] > 0 ? "better" : "worse";
}

/** The contradicting facts of a row's caption: [{value, most: whether most captions have this value}] or undefined. */
const contradictionOf = i => (run().flagged ??= flagRows(run())).get(`${types[rows.type[i]]} ${images[rows.image[i]].image}`);

function flagRows(one) {
  const flagged = new Map();
  for (const { subject, aspect, values } of one.contradictions) {
    const sizes = Object.values(values).map(names => names.length).sort((a, b) => b - a);
    for (const [value, names] of Object.entries(values)) for (const name of names) {
      const key = `${[subject, aspect]} ${name}`;
      flagged.set(key, [...(flagged.get(key) || []), { value, most: names.length > sizes[1] }]);
    }
  }
  return flagged;
}

/* --- questions of an image */

/** "right", "wrong", or "" where the right answer is unknown. */
const resultOf = ({ correct, answer }) => (correct === "" ? "" : correct === answer ? "right" : "wrong");
const matchesQuestion = one => (state.question === "" || phrases[one.question] === state.question)
  && (state.answered === "" || (state.answered === "changed" ? one.changed : resultOf(one) === state.answered));
const accuracyOf = list => list.filter(one => resultOf(one) === "right").length / (list.filter(resultOf).length || 1);

/** "3 of 5 answers right, 1 changed by consistency", of the questions whose answer is known */
function accuracyText(list) {
  const known = list.filter(resultOf), changed = list.filter(one => one.changed).length;
  const right = `${grouped(known.filter(one => resultOf(one) === "right").length)} of ${counted(known.length, "answer")} right`;
  return (known.length ? right : counted(list.length, "answer")) + (changed ? `, ${grouped(changed)} changed by consistency` : "");
}

function questionNode(one) {
  const { question, scope, options, correct, answer, changed } = one;
  const lines = options.map(([letter, phrase, percent]) => {
    const sign = letter === correct ? "✓" : letter !== answer ? "" : correct ? "✗" : "•";
    return line(cell(sign, { class: letter === correct ? "better" : "wrong" }),
      head(letter === answer ? el("strong", {}, phrases[phrase]) : phrases[phrase]), cell(meter(0, percent)), cell(`${percent} %`));
  });
  const isWrong = resultOf(one) === "wrong" ? el("span", { class: "tag wrong" }, "wrong") : "";
  const isChanged = changed ? el("span", { class: "tag even" }, "changed by consistency") : "";
  return el("div", { class: "question" }, el("p", {}, phrases[question], " ", small(spaced(scope)), " ", isWrong, " ", isChanged),
    el("table", {}, ...lines));
}

/** Questions of an image that match the filters; those answered right are one line that opens. */
function questionNodes(image, isOpen = false) {
  const list = images[image].questions.filter(matchesQuestion);
  if (!list.length) return [];
  const isFolded = one => !isOpen && !state.answered && !state.question && resultOf(one) === "right" && !one.changed;
  const folded = list.filter(isFolded), summary = el("summary", {}, `${counted(folded.length, "question")} answered right`);
  return [el("h3", { class: "questions" }, `Questions: ${accuracyText(list)}`),
    ...list.filter(one => !isFolded(one)).map(questionNode),
    ...(folded.length ? [el("details", {}, summary, ...folded.map(questionNode))] : [])];
}

/* --- facets: each of their values is ticked ("only these"), excluded ("not"), or neither */

const facets = [];

/** Add a facet to the page. With `keys`, its values depend on the chosen runs or the notes; else they are found here. */
function addFacet(name, title, keyOf, keys = null, shown = spaced) {
  const varies = keys !== null;
  keys ??= [...new Set(rows.image.map((_, i) => keyOf(i)))].filter(key => key !== "").sort(natural);
  if (!varies && keys.length < 2) return;
  const codes = new Int32Array(count); // index into `keys` of each row, -1 for none: comparing texts is too slow
  const code = new Map(keys.map((key, k) => [key, k]));
  const encode = () => codes.forEach((_, i) => { codes[i] = code.get(keyOf(i)) ?? -1; });
  const facet = { name, title, keys, keyOf, shown, codes, encode, varies, yes: new Set(), no: new Set() };
  if (!varies) encode();
  facet.nodes = keys.map(key => {
    const tick = el("input", { type: "checkbox", onchange: () => toggle(facet, "yes", key) });
    const hide = `hide ${title.toLowerCase()} ${shown(key)}`;
    const not = button({ class: "not", "aria-label": hide, onclick: () => toggle(facet, "no", key) }, "not");
    const number = el("span", { class: "small" });
    const label = el("label", {}, tick, el("span", {}, shown(key)), number);
    return { key, tick, not, number, line: el("div", { class: "value" }, label, not) };
  });
  facet.node = el("fieldset", {}, el("legend", {}, title), ...facet.nodes.map(node => node.line));
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
  if (isScored) addFacet("kind", "Facts of the caption", i => kinds[kindOf(i)], kinds);
  addFacet("subject", "Subject", i => types[rows.type[i]][0]);
  addFacet("aspect", "Aspect", i => types[rows.type[i]][1]);
  addFacet("phase", "Phase", ofImage("phase"), null, key => (data.phases[key] ? `${key} · ${data.phases[key]}` : key));
  for (const name of ["view", "split", "source"]) addFacet(name, name[0].toUpperCase() + name.slice(1), ofImage(name));
  const outcomes = ["better", "even", "worse", "same caption", "only one run"];
  if (runs.length > 1) addFacet("outcome", "Compared with the other run", outcome, outcomes);
  const contradicts = i => contradictionOf(i) && "contradicts another";
  if (runs.some(one => one.contradictions.length)) addFacet("contradiction", "Contradictions", contradicts, ["contradicts another"]);
  const against = i => (run().against[i] ? "contradicts an answer" : "");
  if (runs.some(one => Object.keys(one.against).length)) addFacet("against", "Answers", against, ["contradicts an answer"]);
  addFacet("mark", "My marks", i => noteOf(i).mark && "marked", ["marked"]);
  addFacet("note", "My notes", i => noteOf(i).note && "with a note", ["with a note"]);
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
  const mine = run().caption, theirs = other()?.caption, measured = values();
  const { low, high } = measure();
  const [from, to] = [state.low ?? -Infinity, state.high ?? Infinity];
  const isCommon = commonValues[state.measure]?.isOne || (() => false);
  const bins = new Uint32Array(BINS);
  let common = 0;
  const isAsked = images.map(entry => (!state.answered && state.question === "") || entry.questions.some(matchesQuestion));
  selected = [];
  for (let i = 0; i < count; i++) {
    if (!isThere(i)) continue;
    const isFound = (_, t) => inText[t][mine[i]] || (theirs && inText[t][theirs[i]]) || inText[t][rows.reference[i]]
      || inName[t][rows.image[i]];
    if (!terms.every(isFound)) continue;
    if (!isAsked[rows.image[i]]) continue;
    if (state.slot && !hasError(i, state.slot)) continue;
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
    if (group?.image !== rows.image[i]) groups.push(group = { image: rows.image[i], rows: [] });
    group.rows.push(i);
  }
  for (const group of groups) Object.assign(group, statistics(group.rows));
  if (state.order === "listed") return;
  if (state.order === "kind") for (const group of groups) group.rows.sort((a, b) => rank(a) - rank(b) || a - b);
  const byKind = (a, b) => a.kinds.map((n, k) => b.kinds[k] - n).find(Boolean) || 0;
  const sign = state.order === "down" ? -1 : 1;
  groups.sort((a, b) => (state.order === "kind" && byKind(a, b)) || (a.mean === null) - (b.mean === null)
    || sign * (a.mean - b.mean) || a.image - b.image);
}

function statistics(list, measured = values()) {
  let [sum, scored, referenced] = [0, 0, 0];
  const ofKind = kinds.map(() => 0);
  for (const i of list) {
    if (kindOf(i) >= 0) ofKind[kindOf(i)]++;
    if (measured[i] != null) { sum += measured[i]; scored++; }
    referenced += hasReference(i);
  }
  const text = referenced ? `${grouped(ofKind[0])} wrong, ${grouped(ofKind[1])} incomplete of ${grouped(referenced)}`
    : counted(list.length, "caption");
  return { mean: scored ? sum / scored : null, kinds: ofKind, text };
}

/* --- pieces: names, images, words, captions */

const imageName = entry => entry.scenario || entry.image;
// The spaces before the dots do not break, so that no line starts with a dot.
const imageAbout = entry => [entry.about, spaced(entry.view), entry.split].filter(Boolean).join("\u00a0· ");
/** A name that may break after "_", "/" and "-" instead of in the middle of a word. */
const breakable = name => name.split(/(?<=[_/-])/).flatMap(part => [part, el("wbr")]);

function imageNode(entry, large = false) {
  if (entry.problem) return el("div", { class: "blank" }, entry.problem);
  const src = large ? entry.src : entry.embedded || entry.src;
  const style = entry.shape && `aspect-ratio:${entry.shape.join("/")};object-fit:fill`; // images for the model are square
  const alt = `${imageName(entry)}, ${imageAbout(entry)}`;
  const img = el("img", { src, style, alt, loading: large ? null : "lazy", decoding: "async" });
  img.addEventListener("error", () => { // someone may have sent the page without its images
    if (entry.embedded && img.getAttribute("src") !== entry.embedded) img.src = entry.embedded;
    else img.replaceWith(el("div", { class: "blank" }, "image not found"));
  });
  return img;
}

/** Words with their marks ("s" same, "m" moved, "o" other, "w" of a wrong, "d" of an omitted fact). Neighbors that look the same
    share an element, unless each word has its confidence below it (`percents`). */
function words(text, marks, confidence, changed, percents = false) {
  const parts = [];
  text.split(/\s+/).filter(Boolean).forEach((word, k) => {
    const [mark, isUnsure] = [marks?.[k] ?? "s", confidence?.[k] < data.confident];
    const last = parts[parts.length - 1];
    if (last?.mark === mark && last.isUnsure === isUnsure && !(percents && confidence)) last.text += ` ${word}`;
    else parts.push({ text: word, mark, isUnsure, percent: confidence?.[k] });
  });
  return parts.flatMap(({ text, mark, isUnsure, percent }) => {
    const tag = { o: changed, w: changed, d: changed, m: "i" }[mark] || (isUnsure ? "span" : null);
    const fact = { w: "fact", d: "fact left-out" }[mark] || "";
    const node = tag ? el(tag, { class: `${fact}${isUnsure ? " unsure" : ""}` }, text) : text;
    return [percents && confidence ? el("span", { class: "w" }, node, el("small", {}, percent)) : node, " "];
  });
}

const none = text => [el("span", { class: "none" }, text)];

function captionWords(one, i, percents) {
  const text = texts[one.caption[i]];
  if (text === undefined) return none("(not in this run)");
  if (!text.trim()) return none("(empty caption)");
  return words(text, one.marks[i] && one.marks[i][0], one.confidence[i], "mark", percents);
}

function referenceWords(i) {
  const text = texts[rows.reference[i]];
  if (text === undefined) return none("(no reference)");
  return text.trim() ? words(text, run().marks[i] && run().marks[i][1], null, "u") : none("(empty reference)");
}

/** The texts that a card compares: {name, title, content of a row} */
function columns(percents = false) {
  const isSame = i => other().caption[i] === run().caption[i];
  const theirs = i => (isSame(i) ? none("(same caption)") : captionWords(other(), i, percents));
  const mine = i => [...captionWords(run(), i, percents), el("span", { class: "tags" }, ...factTags(i))];
  return [{ name: "gen", title: other() ? run().name : "Generated", content: mine },
    ...(other() ? [{ name: "oth", title: other().name, content: theirs }] : []),
    ...(isScored ? [{ name: "ref", title: "Reference", content: referenceWords }] : [])];
}

function factTags(i) {
  const tag = (kind, text) => [el("span", { class: `tag ${kind}` }, text)];
  const against = run().against[i] ? tag("worse", `⚠ ${run().against[i]}`) : [];
  return against.concat(factsOf(i).flatMap(([slot, predicted, reference, result]) => ({
    wrong: tag("wrong", `${spaced(slot)}: ${predicted} ≠ ${reference}`),
    omitted: tag("omitted", `omitted: ${spaced(slot)} ${reference}`),
    added: tag("even", `added: ${spaced(slot)} ${predicted}`),
  })[result] || []));
}

function captionNode(i, percents = false) {
  const cells = columns(percents).map(({ name, title, content }) =>
    el("p", { class: name }, el("span", { class: "role" }, title), el("span", { class: "text", dir: "auto" }, ...content(i))));
  return el("div", { class: "caption" }, el("div", { class: "type" }, typeNames[rows.type[i]], noteOf(i).mark ? " ★" : ""),
    ...cells, el("div", { class: "score" }, written(values()[i]), ...changeTag(i)));
}

function changeTag(i) {
  const sign = { better: "▲ +", even: "= ", worse: "▼ " }[outcome(i)];
  if (!sign || state.measure === "change") return [];
  const title = `score minus that of ${other().name}`;
  return [el("span", { class: `tag ${outcome(i)}`, title }, sign + written(changes[i], 1))];
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

/** A bar from the lowest value of the measure, or from 0 where there are differences of both signs. */
function bar(value) {
  const { low, high } = measure();
  const share = number => Math.max(0, Math.min(100, 100 * (number - low) / (high - low || 1)));
  const start = state.measure === "change" ? 0 : low;
  const [from, to] = [share(start), share(value ?? start)].sort((a, b) => a - b);
  return meter(from, to);
}

function tile(group) {
  const entry = images[group.image];
  return button({ class: "tile", onclick: () => open(group.image) }, imageNode(entry),
    el("span", { class: "line" }, el("strong", {}, written(group.mean)), bar(group.mean)), small(group.text),
    small(entry.questions.length ? accuracyText(entry.questions) : ""), el("span", {}, ...breakable(imageName(entry))),
    small(imageAbout(entry)));
}

const thumbnail = image =>
  button({ class: "thumb", "aria-label": "large view", onclick: () => open(image) }, imageNode(images[image]));

function card(group) {
  const entry = images[group.image];
  const side = el("div", {}, thumbnail(group.image), el("h3", {}, ...breakable(imageName(entry))), small(imageAbout(entry)));
  const titles = columns().map(one => el("span", { class: "role" }, one.title));
  const heads = el("div", { class: "caption heads" }, el("span"), ...titles,
    el("span", { class: "score small" }, measure().title.split(" (")[0]));
  // Right captions are one line that opens: a reader looks for errors, or for differences of two runs.
  const isFolded = i => isRight(i) && (!other() || outcome(i) === "same caption");
  const folded = group.rows.filter(isFolded);
  const list = el("div", {}, heads, ...group.rows.filter(i => !isFolded(i)).map(i => captionNode(i)));
  if (folded.length) {
    const summary = `${folded.length} of ${group.rows.length} equal in fact${other() ? ", the same caption in both runs" : ""}`;
    const details = el("details", {}, el("summary", {}, summary));
    details.addEventListener("toggle", () => details.append(...folded.splice(0).map(i => captionNode(i))));
    list.append(details);
  }
  if (state.answered || state.question) heads.before(...questionNodes(group.image));
  else list.append(...questionNodes(group.image));
  return el("article", { class: "card" }, side, list);
}

function showOverview({ bins, common }) {
  const { title, low, high } = measure();
  const without = common ? `, without ${grouped(common)} ${commonValues[state.measure].text}` : "";
  const most = Math.max(...bins);
  $("histogram-title").textContent = `Captions by ${inSentence(title)}${without}; the highest bar has ${grouped(most)}`;
  const edge = b => +(low + b * (high - low) / BINS).toFixed(measure().digits + 1);
  $("bars").replaceChildren(...Array.from(bins, (n, b) => {
    const [from, to] = [edge(b), edge(b + 1)];
    const inside = (state.low === null || to > state.low) && (state.high === null || from < state.high);
    const only = () => { [state.low, state.high] = [from, to]; update(); };
    return button({ class: inside ? "" : "out", title: `${written(from)} to ${written(to)}: ${counted(n, "caption")}`,
      onclick: only, tabindex: -1, style: `--share:${n ? Math.max(3, 100 * n / most) : 0}%` });
  }));
  [$("low").placeholder, $("high").placeholder] = [written(low), written(high)];
  showMeans();
  $("comparison").replaceChildren(...factTable(), ...questionTable(), ...comparison());
  const order = { kind: "most wrong captions", up: `lowest mean ${inSentence(title)}`, down: `highest mean ${inSentence(title)}` };
  $("grid-title").textContent = counted(groups.length, "image") + (order[state.order] ? `, ${order[state.order]} first` : "");
  feed($("grid"), groups, tile, 60);
}

function byKey(list, keyOf) {
  const found = new Map();
  for (const i of list) found.set(keyOf(i), found.get(keyOf(i)) || []).get(keyOf(i)).push(i);
  return [...found].sort(([a], [b]) => natural(a, b));
}

/** Means of the selected captions by caption type or a facet; a click on a name filters by it. */
function showMeans() {
  const facet = facets.find(one => one.name === state.by);
  const { keyOf, shown } = facet || { keyOf: i => rows.type[i], shown: key => typeNames[key] };
  const filter = key => {
    const [subject, aspect] = types[key] || [];
    for (const one of facets) {
      const value = { subject, aspect, ...(facet && { subject: undefined, aspect: undefined, [facet.name]: key }) }[one.name];
      if (value !== undefined) { one.yes = new Set([value]); one.no.clear(); }
    }
    update();
  };
  const of = other() && state.measure !== "change" ? ` of ${run().name}` : "";
  $("means-title").textContent = `Mean ${inSentence(measure().title)}${of} by`;
  $("means").replaceChildren(...byKey(selected, keyOf).map(([key, list]) => {
    const { mean, text } = statistics(list);
    const name = button({ class: "link", title: "show only these", onclick: () => filter(key) }, shown(key) || "none");
    return line(head(name, { scope: "row" }), cell(written(mean)), cell(bar(mean)), cell(text, { class: "small" }));
  }));
}

/** Table of how often each fact is wrong; a click on a name shows these captions. */
function factTable() {
  const bySlot = new Map();
  for (const i of selected) for (const [slot, , , result] of factsOf(i)) {
    if (!bySlot.has(slot)) bySlot.set(slot, { wrong: 0, omitted: 0, added: 0, equal: 0 });
    bySlot.get(slot)[result]++;
  }
  if (!bySlot.size) return [];
  const share = n => (n.wrong + n.omitted) / (n.wrong + n.omitted + n.equal || 1);
  const lines = [...bySlot].sort(([, a], [, b]) => b.wrong - a.wrong || b.omitted - a.omitted).map(([slot, n]) => {
    const show = () => { state.slot = slot; update(); };
    const name = button({ class: "link", title: "show captions with this fact wrong or omitted", onclick: show }, spaced(slot));
    return line(head(name, { scope: "row" }), ...Object.values(n).map(number => cell(grouped(number))),
      cell(inPercent(share(n))), cell(meter(0, 100 * share(n), "error")));
  });
  const heads = ["Fact", "Wrong", "Omitted", "Added", "Equal", "Wrong or omitted, of those in the reference", ""];
  return tableOf("Which facts are wrong", "", heads, lines);
}

/** Table of the accuracy by question, of the images that match; a click on a question shows its answers. */
function questionTable() {
  const asked = groups.flatMap(group => images[group.image].questions).filter(matchesQuestion);
  if (!asked.length) return [];
  const byQuestion = byKey(asked, one => phrases[one.question]).sort(([, a], [, b]) => accuracyOf(a) - accuracyOf(b));
  const lines = byQuestion.map(([question, list]) => {
    const show = () => { Object.assign(state, { question, view: "captions" }); update(); };
    const name = button({ class: "link", title: "show these answers", onclick: show }, question);
    return line(head(name, { scope: "row" }), cell(grouped(list.length)), cell(inPercent(accuracyOf(list))),
      cell(meter(0, 100 * accuracyOf(list))), cell(grouped(list.filter(one => one.changed).length)));
  });
  return tableOf(`Questions: ${accuracyText(asked)}`, "", ["Question", "Asked", "Right", "", "Changed"], lines, "questions");
}

/** Table of which run is better, of the selected captions that have a score in both. */
function comparison() {
  if (!other()) return [];
  const both = selected.filter(i => changes[i] !== null);
  if (!both.length) return [el("p", { class: "note" }, "The two runs share no caption that has a score in both.")];
  const heads = ["Caption type", "Captions", "Better", "Even", "Worse", run().name, other().name, "Better · even · worse"];
  const hint = `“Better” counts captions of ${run().name} that score higher than those of ${other().name}; `
    + `less than ${EVEN_POINTS} points apart is even.`;
  const lines = [...byKey(both, i => rows.type[i]).map(([type, list]) => [typeNames[type], list]), ["all", both]];
  return tableOf("Which run is better, by caption type", hint, heads, lines.map(one => comparisonLine(...one)), "compare");
}

function comparisonLine(title, list) {
  const n = { better: 0, even: 0, worse: 0 };
  for (const i of list) n[n[outcome(i)] === undefined ? "even" : outcome(i)]++;
  const means = [run(), other()].map(one => statistics(list, one.measures.official_score).mean);
  const parts = Object.entries(n).map(([kind, number]) =>
    el("i", { class: kind, style: `width:${100 * number / list.length}%` }));
  return line(head(title, { scope: "row" }), ...[list.length, n.better, n.even, n.worse].map(number => cell(grouped(number))),
    ...means.map(mean => cell(written(mean, 1))), cell(el("div", { class: "parts" }, ...parts)));
}

/* --- scenarios */

/** A scenario: a column per phase, a row per camera, captions of one type. */
function board([scenario, list]) {
  const found = run().contradictions.filter(one => one.scenario === scenario);
  const typeOf = flag => types.findIndex(([subject, aspect]) => subject === flag.subject && aspect === flag.aspect);
  const first = selected.find(i => images[rows.image[i]].scenario === scenario);
  const type = state.type !== "" ? +state.type : found.length ? typeOf(found[0]) : rows.type[first];
  const phases = [...new Set(list.map(image => images[image].about))].sort(natural);
  const cellOf = (camera, phase) => list.filter(image => images[image].camera === camera && images[image].about === phase);
  const body = camera => el("tbody", {},
    line(head(camera || "one camera", { scope: "rowgroup", colspan: phases.length, class: "small" })),
    line(...phases.map(phase => el("td", {}, ...cellOf(camera, phase).flatMap(image => boardCell(image, type))))));
  const flags = found.map(flag => {
    const show = () => { state.type = String(typeOf(flag)); update(); };
    return button({ class: "flag link", onclick: show }, `⚠ Contradiction in ${typeNames[typeOf(flag)]}: ${flag.text}`);
  });
  return el("article", { class: "card" }, el("h3", {}, scenario || "(no scenario)"), ...flags,
    el("p", { class: "type" }, `Captions shown: ${typeNames[type]}`), el("div", { class: "scroll" },
      el("table", { class: "board", style: phases.length > 5 ? `min-width:${150 * phases.length}px` : null }, el("thead", {}, line(...phases.map(phase => head(phase || "image", { scope: "col" })))),
        ...[...new Set(list.map(image => images[image].camera))].map(body))));
}

function boardCell(image, type) {
  const own = rowsByImage[image].filter(i => rows.type[i] === type && isThere(i));
  const tags = own.flatMap(i => contradictionOf(i) || []).map(({ value, most }) =>
    el("span", { class: most ? "tag even" : "tag worse" }, most ? value : `⚠ ${value}`));
  const captions = own.map(i => {
    const node = captionNode(i);
    if (isExact(i) && !other()) node.querySelector(".ref").replaceChildren(small("equal to the reference"));
    return node;
  });
  return [thumbnail(image), ...tags, ...(own.length ? captions : none("(no caption of this type)"))];
}

function showScenarios() {
  const all = new Map(groups.map(group => [images[group.image].scenario, []]));
  images.forEach((entry, image) => all.get(entry.scenario)?.push(image));
  feed($("boards"), [...all], board, 4);
}

/* --- large view */

function open(image) {
  opened = image;
  const entry = images[image];
  $("large-title").textContent = imageName(entry);
  $("large-about").textContent = [imageAbout(entry), entry.video, entry.image].filter(Boolean).join(" · ");
  $("pictures").replaceChildren(...pictures(entry));
  $("boxes-field").hidden = !entry.boxes.length;
  const at = groups.findIndex(group => group.image === image);
  const shown = groups[at]?.rows || [], rest = rowsByImage[image].filter(i => isThere(i) && !shown.includes(i));
  const hint = "Below each word: the model's confidence in percent.";
  $("large-captions").replaceChildren(isConfident ? el("p", { class: "hint" }, hint) : "", ...shown.map(largeCaption));
  if (rest.length) {
    const summary = el("summary", {}, `${counted(rest.length, "caption")} of this image outside the filters`);
    $("large-captions").append(el("details", { open: shown.length ? null : "" }, summary, ...rest.map(largeCaption)));
  }
  $("large-captions").append(...questionNodes(image, true));
  $("previous").disabled = at <= 0;
  $("next").disabled = at < 0 || at === groups.length - 1;
  if (!$("large").open) $("large").showModal();
  remember();
}

/** The sharp frame, the image that the model sees, and the phase in the video, as far as they are there. */
function pictures(entry) {
  const style = entry.shape && `--shape:${entry.shape[0] / entry.shape[1]};aspect-ratio:var(--shape)`;
  const figure = (picture, text) => el("figure", {}, picture, el("figcaption", {}, text));
  const boxes = entry.boxes.map(boxNode), of = boxes.length ? "; boxes of the phase's first frame" : "";
  const found = [];
  if (entry.frame) {
    const img = el("img", { src: entry.frame, alt: "sharp frame", onerror: event => event.target.closest("figure").remove() });
    const link = el("a", { href: entry.frame, target: "_blank", title: "in full size" }, img);
    found.push(figure(el("div", { class: "picture", style }, link, ...boxes), `Sharp frame${of}`));
  }
  const blur = el("div", { class: "picture", id: "blur", style }, imageNode(entry, true), ...(entry.frame ? [] : boxes));
  found.push(figure(blur, (entry.video ? "Motion-blur image" : "Image") + (entry.frame ? "" : of)));
  found.at(-1).append(el("p", { id: "attention-of", class: "small" }));
  if (entry.clip) {
    const missing = el("div", { class: "blank" }, "video not found, or its format is unknown to this browser");
    const onerror = event => event.target.replaceWith(missing);
    const video = el("video", { src: entry.clip, controls: "", preload: "metadata", onerror });
    const now = el("div", { class: "now" });
    addCues(video, entry.clip.split("#")[0]).oncuechange = event =>
      now.replaceChildren(...[...event.target.activeCues].map(cue => el("p", {}, cue.getCueAsHTML())));
    found.push(figure(video, [entry.about, entry.video].filter(Boolean).join(" of ")), now);
  }
  return found;
}

const escaped = text => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");

/** Add the captions of all phases of a video as a text track, which the reader can show over it. */
function addCues(video, file) {
  const track = video.addTextTrack("captions", run().name, "en");
  track.mode = "hidden"; // they are below the video
  images.forEach((entry, image) => {
    const [address, span] = (entry.clip || "").split("#t=");
    if (address !== file || !span) return;
    const [start, end] = span.split(",").map(Number);
    const captions = byKey(rowsByImage[image].filter(i => run().caption[i] >= 0), i => types[rows.type[i]][0]);
    const lines = captions.map(([subject, list]) => `<b>${subject}</b> ${list.map(i => escaped(texts[run().caption[i]])).join(" ")}`);
    // A phase may have no length, a cue must have one.
    track.addCue(new VTTCue(start, Math.max(end, start + 0.1), [escaped(entry.about), ...lines].join("\n")));
  });
  return track;
}

function boxNode({ label, xywh }) {
  const css = ["left", "top", "width", "height"].map((name, k) => `${name}:${100 * xywh[k]}%`).join(";");
  return el("div", { class: "box", style: css }, el("span", {}, label));
}

function largeCaption(i) {
  const node = captionNode(i, true);
  const facts = Object.entries(data.measures).filter(([name]) => run().measures[name]?.[i] != null)
    .map(([name, m]) => `${m.title} ${written(run().measures[name][i], m.digits)}`).join(" · ");
  const star = button({ onclick: () => { saveNote(i, { mark: !noteOf(i).mark }); showStar(); } });
  const showStar = () => {
    star.setAttribute("aria-pressed", Boolean(noteOf(i).mark));
    star.textContent = noteOf(i).mark ? "★ marked" : "☆ mark";
  };
  showStar();
  const text = el("input", { type: "text", placeholder: "Note", "aria-label": `note on ${typeNames[rows.type[i]]}`,
    value: noteOf(i).note || "", oninput: event => saveNote(i, { note: event.target.value }) });
  const looks = Object.entries(run().attention[i] || {}).map(([word, grid]) => {
    const onclick = event => toggleAttention(event.target, word, grid);
    return button({ class: "look", "aria-pressed": false, onclick }, `attention: ${word}`);
  });
  node.append(el("div", { class: "tools" }, star, text, ...looks, el("span", { class: "muted" }, facts)));
  return node;
}

/** Draw the attention of a word, rows of numbers, as a grid of translucent cells over the image, or remove it again. */
function toggleAttention(pressed, word, grid) {
  const isShown = pressed.getAttribute("aria-pressed") === "true";
  for (const one of document.querySelectorAll(".look")) one.setAttribute("aria-pressed", one === pressed && !isShown);
  $("blur").querySelector(".attention")?.remove();
  $("attention-of").textContent = isShown ? "" : `Attention of “${word}”, relative to its strongest patch`;
  if (isShown) return;
  const most = Math.max(...grid.flat());
  $("blur").append(el("div", { class: "attention", style: `grid-template-columns:repeat(${grid[0].length},1fr)` },
    ...grid.flat().map(weight => el("i", { style: `opacity:${(0.75 * weight / most).toFixed(3)}` }))));
}

function step(by) {
  const at = groups.findIndex(group => group.image === opened) + by;
  if (groups[at]) open(groups[at].image);
}

/* --- marks and notes: kept by this browser, per page; saved with the captions and loaded from such a file */

function storageKey() { return `beit3lib gallery ${location.pathname}`; }
function loadNotes() {
  try { return JSON.parse(localStorage.getItem(storageKey())) || {}; } catch (blocked) { return {}; }
}
const noteKey = i => [images[rows.image[i]].image, ...types[rows.type[i]]].join("|");
const noteOf = i => (Object.hasOwn(saved, noteKey(i)) ? saved[noteKey(i)] : {});
const saveNote = (i, change) => keepNote(noteKey(i), { ...noteOf(i), ...change });
function keepNote(key, note) {
  isStale = true;
  saved[key] = note;
  if (!note.mark && !note.note) delete saved[key];
  try { localStorage.setItem(storageKey(), JSON.stringify(saved)); } catch (blocked) { /* kept until the page is closed */ }
}

const EXPORTED = ["image", "scenario", "split", "source", "view", "video", "label", "phase"];

/** The selected captions as flat records. */
function exported() {
  const text = number => texts[number] ?? null;
  return selected.map(i => {
    const entry = images[rows.image[i]], [subject, aspect] = types[rows.type[i]], { mark, note } = noteOf(i);
    const record = Object.fromEntries(EXPORTED.map(name => [name, entry[name]]));
    Object.assign(record, { subject, aspect, run: run().name });
    Object.assign(record, { caption: text(run().caption[i]), reference: text(rows.reference[i]) });
    for (const [name, own] of Object.entries(run().measures)) record[name] = own[i];
    if (other()) Object.assign(record, { compared_with: other().name, other_caption: text(other().caption[i]) });
    return Object.assign(record, { marked: Boolean(mark), note: note || "" });
  });
}

function exportCaptions() {
  const href = URL.createObjectURL(new Blob([JSON.stringify(exported(), null, 1)]));
  const link = el("a", { href, download: "captions.json" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

async function importNotes(file) {
  try {
    const found = JSON.parse(await file.text()).filter(record => record.marked || record.note);
    for (const { image, subject, aspect, marked, note } of found) {
      keepNote([image, subject, aspect].join("|"), { mark: Boolean(marked), note: String(note || "") });
    }
    update();
    alert(`${file.name}: ${counted(found.length, "caption")} with a mark or note.`);
  } catch (error) {
    alert(`${file.name}: expected a file of “Save these captions”, got another one (${error.message}).`);
  }
}

/* --- the address: filters and the open image, so that a copied link shows the same */

function remember() {
  const set = new URLSearchParams();
  if (state.run) set.set("run", run().name);
  if (state.other !== initial.other) set.set("other", other()?.name ?? "");
  for (const name of ["view", "query", "low", "high", "type", "order", "measure", "slot", "answered", "question"]) {
    if (state[name] !== initial[name]) set.set(name, state[name]);
  }
  for (const { name, yes, no } of facets) {
    for (const key of yes) set.append(`only.${name}`, key);
    for (const key of no) set.append(`not.${name}`, key);
  }
  if (opened >= 0) set.set("image", images[opened].image);
  try { history.replaceState(null, "", `#${set}`); } catch (blocked) { /* an embedded page keeps its address */ }
}

function recall() {
  const set = new URLSearchParams(location.hash.slice(1));
  const number = name => (set.has(name) && Number.isFinite(+set.get(name)) ? +set.get(name) : null);
  const indexOf = name => runs.findIndex(one => one.name === set.get(name));
  const tabs = [...document.querySelectorAll("[data-view]:not([hidden])")].map(tab => tab.dataset.view);
  state.view = tabs.includes(set.get("view")) ? set.get("view") : initial.view;
  state.run = Math.max(0, indexOf("run"));
  state.other = set.has("other") ? indexOf("other") : initial.other;
  if (state.other === state.run) state.other = runs.length > 1 ? +!state.run : -1;
  state.query = set.get("query") || "";
  for (const name of ["slot", "question"]) state[name] = set.get(name) || "";
  [state.low, state.high] = [number("low"), number("high")];
  for (const name of ["order", "type", "measure", "answered"]) {
    const isOffered = [...$(name).options].some(option => option.value === set.get(name));
    state[name] = isOffered ? set.get(name) : initial[name];
  }
  for (const facet of facets) {
    facet.yes = new Set(set.getAll(`only.${facet.name}`).filter(key => facet.keys.includes(key)));
    facet.no = new Set(set.getAll(`not.${facet.name}`).filter(key => facet.keys.includes(key)));
  }
  isStale = true;
  opened = images.findIndex(entry => entry.image === set.get("image"));
}

/* --- putting it together */

/** Compute what depends on the chosen runs and the notes; filters do not change it. */
function prepare() {
  if (!isStale) return;
  isStale = false;
  const mine = run().measures.official_score, theirs = other()?.measures.official_score;
  changes = rows.image.map((_, i) => (mine?.[i] != null && theirs?.[i] != null ? mine[i] - theirs[i] : null));
  if (other()) {
    const high = changes.reduce((most, change) => Math.max(most, Math.abs(change)), 1);
    data.measures.change = { title: `Score of ${run().name} minus score of ${other().name}`, digits: 1, low: -high, high };
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
  document.body.style.setProperty("--texts", columns().length);
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
      not.setAttribute("aria-pressed", facet.no.has(key));
      number.textContent = grouped(counts[f][k + 1]);
      line.classList.toggle("excluded", facet.no.has(key));
      line.hidden = facet.varies && !counts[f][k + 1] && !facet.yes.has(key) && !facet.no.has(key);
    });
    facet.node.hidden = facet.nodes.every(({ line }) => line.hidden);
  });
  for (const name of ["query", "run", "other", "measure", "order", "type", "by", "answered", "low", "high"]) {
    if (document.activeElement !== $(name)) $(name).value = state[name] ?? "";
  }
  $("measure").querySelector("[value=change]")?.toggleAttribute("hidden", !other());
  for (const tab of document.querySelectorAll("[data-view]")) {
    tab.setAttribute("aria-pressed", tab.dataset.view === state.view);
  }
  const part = selected.length === total ? "" : `${grouped(selected.length)} of `;
  const slot = (state.slot && ` · ${spaced(state.slot)} wrong or omitted`) + (state.question && ` · ${state.question}`);
  $("count").textContent = `${counted(groups.length, "image")}, ${part}${counted(total, "caption")}${slot}`;
  const active = facets.reduce((sum, facet) => sum + facet.yes.size + facet.no.size, 0) + isRanged()
    + [state.query, state.slot, state.answered, state.question].filter(Boolean).length;
  $("clear").hidden = active === 0;
  $("show-filters").textContent = active ? `Filters (${active})` : "Filters";
  $("empty").hidden = selected.length > 0;
  for (const id of ["means-panel", "grid-title"]) $(id).hidden = !selected.length;
}

function setUp() {
  const options = (id, list) => $(id).append(...list.map(([value, text]) => el("option", { value }, text)));
  for (const [name, m] of Object.entries(data.measures)) { // the ends of a scale that are not fixed
    for (const one of runs) for (const value of one.measures[name]) if (value !== null) {
      if (m.high === null || value > m.high) m.high = value;
      if (m.low === null || value < m.low) m.low = value;
    }
  }
  options("run", runs.map((one, r) => [r, one.name]));
  options("other", [[-1, "nothing"], ...runs.map((one, r) => [r, one.name])]);
  if (isScored) $("order").prepend(el("option", { value: "kind" }, "wrong facts first"));
  $("answered-field").hidden = !isAnswered;
  options("measure", Object.entries(data.measures).map(([name, m]) => [name, m.title]));
  if (runs.length > 1) options("measure", [["change", "Score difference"]]);
  options("type", typeNames.map((name, t) => [t, name]));
  for (const field of document.querySelectorAll(".runs")) field.hidden = runs.length < 2;
  document.querySelector("#legend .of-reference").hidden = !isScored;
  document.querySelector("#legend .of-confidence").hidden = !isConfident;
  document.querySelector("[data-view=scenarios]").hidden = !images.some(entry => entry.scenario);
  $("confident").textContent = data.confident;
  addFacets();
  const groupings = facets.filter(facet => ["phase", "view", "split", "source"].includes(facet.name));
  options("by", [["type", "caption type"], ...groupings.map(facet => [facet.name, inSentence(facet.title)])]);
  const scenarios = new Set(images.map(entry => entry.scenario).filter(Boolean)).size;
  const { title, digits } = data.measures[initial.measure];
  const { mean } = statistics(rows.image.keys(), runs[0].measures[initial.measure]);
  const of = runs.length > 1 ? ` of ${runs[0].name}` : "";
  const parts = [counted(images.length, "image"), counted(count, "caption"), scenarios && counted(scenarios, "scenario"),
    mean !== null && `mean ${inSentence(title)}${of} ${written(mean, digits)}`,
    isAnswered && accuracyText(images.flatMap(entry => entry.questions))];
  $("summary").textContent = parts.filter(Boolean).join(" · ");
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
  for (const name of ["order", "type", "by", "answered"]) field(name, value => { state[name] = value; });
  for (const name of ["low", "high"]) field(name, value => { state[name] = value === "" ? null : +value; });
  for (const tab of document.querySelectorAll("[data-view]")) {
    tab.addEventListener("click", () => { state.view = tab.dataset.view; update(); });
  }
  on("show-filters", "click", () => {
    $("show-filters").setAttribute("aria-expanded", document.body.classList.toggle("filtering"));
  });
  on("clear", "click", () => {
    Object.assign(state, { query: "", low: null, high: null, slot: "", answered: "", question: "" });
    for (const facet of facets) { facet.yes.clear(); facet.no.clear(); }
    update();
  });
  on("export", "click", exportCaptions);
  on("import", "change", event => importNotes(event.target.files[0]).then(() => { event.target.value = ""; }));
  on("previous", "click", () => step(-1));
  on("next", "click", () => step(1));
  on("close", "click", () => $("large").close());
  on("large", "click", event => event.target === $("large") && $("large").close());
  on("large", "close", () => {
    opened = -1;
    remember();
    prepare();
    showControls(select()); // new marks and notes; the images stay where the reader has scrolled to
  });
  on("boxes", "change", event => $("pictures").classList.toggle("plain", !event.target.checked));
  document.addEventListener("keydown", event => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (by && $("large").open && !document.activeElement.matches("input[type=text]") && !event.altKey) step(by);
  });
  addEventListener("hashchange", start);
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
