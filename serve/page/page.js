"use strict";

const MOST = 500; // texts the page shows at once; more belong to the API
const TOO_SLOW = 60_000; // milliseconds
const RIGHT_TO_LEFT = ["Adlm", "Arab", "Hebr", "Nkoo", "Syrc", "Thaa"];
// what a person can do about a refusal, where the server's words are for programs
const SENTENCES = {
  unauthorised: "This server asks for a key. Enter it as “API key” and try again",
  overloaded: "The server is busy: too much is waiting to answer this in time",
  deadline_exceeded: "The server is too busy to answer this in time. Give it fewer or shorter texts",
  rate_limited: "That is more than this key may classify in a minute",
  unavailable: "The server is busy or just starting",
};
const byId = (id) => document.getElementById(id);
const percent = (fraction) => (100 * fraction).toFixed(1) + "%";
const plural = (count, word) => count.toLocaleString("en") + " " + word + (count === 1 ? "" : "s");
let told = null; // what /v1/model said; of a model of words it has a task
let order = { key: "accuracy", down: true };
let busy = false;

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function headers() {
  const key = byId("key").value || sessionStorage.getItem("xlt-key") || "";
  return { "Content-Type": "application/json", ...(key && { Authorization: "Bearer " + key }) };
}

async function call(path, options = {}) {
  let response, body;
  try {
    response = await fetch(path, { ...options, headers: headers(), signal: AbortSignal.timeout(TOO_SLOW) });
    body = await response.json().catch(() => ({}));
  } catch {
    throw new Error("The server does not answer. Is it still running?");
  }
  if (!response.ok) throw new Error(explain(response, body.error || {}));
  if (byId("key").value) sessionStorage.setItem("xlt-key", byId("key").value);
  return body;
}

function explain(response, error) {
  if (response.status === 401) {
    sessionStorage.removeItem("xlt-key");
    byId("keybox").open = true;
  }
  const reason = SENTENCES[error.code] || error.message || "The server answered with status " + response.status;
  const wait = response.headers.get("Retry-After");
  return reason[0].toUpperCase() + reason.slice(1) + "." + (wait ? " Try again in " + plural(Number(wait), "second") + "." : "");
}

function bar(fraction, low, high) {
  const track = element("span", { className: "track" });
  track.setAttribute("aria-hidden", "true");
  const filled = element("i");
  filled.style.width = 100 * fraction + "%";
  track.append(filled);
  if (low !== undefined) {
    const line = element("u");
    line.style.left = 100 * low + "%";
    line.style.width = 100 * (high - low) + "%";
    track.append(line);
  }
  return track;
}

// Labels such as climate_get_temperature may be broken after an underscore.
function breakable(label) {
  return label.split(/(?<=_)/).flatMap((part, i) => (i ? [element("wbr"), part] : [part]));
}

function trust({ language, expected_accuracy: measured, reliability }) {
  const paragraph = element("p", { className: "trust" });
  const warning = (text) => element("span", { className: "unmeasured" }, text);
  const like = reliability
    ? (reliability.language ? " Of " : " In languages it was not trained on, of ") + plural(reliability.rows, "test text")
      + " answered about as confidently (" + Math.round(100 * reliability.low) + "% to " + Math.round(100 * reliability.high)
      + "%), " + reliability.right + " were right."
    : "";
  if (!language.code) {
    paragraph.append(warning("Its language cannot be told, so how far to trust this is not known."), " Choose the language above, if you know it.", like);
    return paragraph;
  }
  const sure = language.confidence < 1 ? " (" + Math.round(100 * language.confidence) + "% sure)" : "";
  paragraph.append("Taken for ", element("b", {}, language.name), sure + ". ");
  if (measured?.metric) {
    paragraph.append(
      "In this language its " + figure(measured.metric) + " was ", element("b", {}, percent(measured.accuracy)),
      " on " + plural(measured.rows, "test text") + " (95% interval " + percent(measured.low) + " to " + percent(measured.high) + ").");
  } else if (measured) {
    paragraph.append(
      "In this language the model was right in ", element("b", {}, percent(measured.accuracy)),
      " of " + plural(measured.rows, "test text") + " (95% interval " + percent(measured.low) + " to " + percent(measured.high) + ").", like);
  } else {
    paragraph.append(warning("Not measured in this language: how often it is right there is not known."), like);
  }
  return paragraph;
}

function quoted(text, code) {
  const [language, script] = (code || "").split("_");
  const quote = element("blockquote", {}, text);
  // one line runs as its language does, of several each as it begins
  quote.dir = RIGHT_TO_LEFT.includes(script) && !text.includes("\n") ? "rtl" : "auto";
  if (script) quote.lang = Intl.getCanonicalLocales(language + "-" + script)[0]; // de-Latn, as screen readers know it
  return quote;
}

// How the text was read, and behind it the texts that were: nothing where the model reads every text as it stands.
function read({ language, read: how, readings }) {
  if (!readings || !told?.readings) return [];
  if (how === "original") return [element("p", { className: "quiet" }, "Read as it stands.")];
  const made = element("details", {}, element("summary", {}, "Read as " + how));
  for (const { name, weight, text, pair } of readings) {
    const code = name === "original" ? language.code : told.readings.into;
    made.append(element("p", { className: "quiet" }, name + ", weight " + Math.round(100 * weight) + "%"), ...[text, pair ?? []].flat().map((part) => quoted(part, code)));
  }
  made.addEventListener("toggle", () => reachable(made));
  return [made];
}

const figure = (metric) => ({ f1: "F1 of spans", accuracy: "share of words tagged right" })[metric] ?? metric;

// A text with its spans marked, or with every word where tags are of no spans.
function marked(text, { spans, words, language }) {
  const characters = [...text], quote = quoted(text, language.code); // places are of code points, not of JavaScript's units
  const found = told.types.length ? spans : words.map((word) => ({ ...word, type: word.tag }));
  const part = (start, end) => characters.slice(start, end).join("");
  const marks = found.flatMap(({ start, end, type }, i) => [
    part(found[i - 1]?.end ?? 0, start), element("mark", {}, part(start, end), element("b", { dir: "auto" }, "\u00a0" + type))]);
  quote.replaceChildren(...marks, part(found.at(-1)?.end ?? 0));
  return quote;
}

function tagged(text, result) {
  result.scores = result.spans.map(({ type, text: part, score }) => ({ label: type + ": " + part, score }));
  result.label = told.types.length ? plural(result.spans.length, "span") : plural(result.words.length, "word");
  result.expected_accuracy = rated(result.expected_quality);
  return [marked(text, result)];
}

// What was measured of a model of words, in the form of that of others.
const rated = (quality) => quality && { ...quality, accuracy: quality.value };

function answer(text, result) {
  const said = told?.task ? tagged(text, result) : [].concat(text).map((part) => quoted(part, result.language.code));
  const scores = element("ul", { className: "scores", ariaLabel: "Probabilities", role: "list" });
  for (const { label, score } of result.scores) {
    scores.append(element("li", {},
      element("span", { className: "name", dir: "auto" }, ...breakable(label)), bar(score),
      element("span", { className: "number" }, percent(score))));
  }
  const label = element("h3", { className: "label", dir: "auto" },
    ...(result.abstained ? ["No label: not sure enough"] : breakable(result.label)));
  return element("li", { className: "answer" }, element("div", {}, ...said, label, trust(result), ...read(result)), scores);
}

// Give the texts and their second texts; throws what is wrong with them.
function asked() {
  const wellFormed = (text) => (text.toWellFormed ? text.toWellFormed() : text);
  const whole = wellFormed(byId("text").value);
  const apart = byId("lines").checked && !told?.pairs;
  const texts = (apart ? whole.split(/\r?\n/) : [whole]).filter((line) => line.trim());
  const pairs = told?.pairs ? [wellFormed(byId("pair").value)] : undefined;
  if (!texts.length) throw new Error("There is nothing to " + (told?.task ? "tag" : "classify") + " yet. Type or paste a text first.");
  if (texts.length > MOST) {
    throw new Error("These are " + plural(texts.length, "line") + ", and this page shows " + MOST + " at most. Use the API for more.");
  }
  const most = told?.limits.characters ?? Infinity;
  for (const [i, text] of texts.concat(pairs ?? []).entries()) {
    const length = [...text].length;
    if (length > most) {
      const which = apart ? "Line " + (i + 1) : i ? "The second text" : "This text";
      throw new Error(which + " has " + plural(length, "character") + ", and this server reads " + plural(most, "character") + " at most.");
    }
  }
  return { texts, pairs };
}

// Ask for texts, a few at a time where the server takes no more or their bytes are many.
async function results({ texts, pairs }) {
  const code = byId("language").value;
  const found = { results: [], models: new Map() };
  for (let start = 0, end; start < texts.length; start = end) {
    let size = 0;
    for (end = start; end < texts.length && end - start < (told?.limits.texts ?? 32); end++) {
      size += 6 * texts[end].length; // at most six bytes a unit in JSON
      if (end > start && size > (told?.limits.body_bytes ?? 1e5) / 2) break;
    }
    const part = texts.slice(start, end);
    const languages = code && { languages: part.map(() => code) };
    const body = { texts: part, ...languages, ...(!told?.task && { pairs, top_k: 5 }), ...(told?.readings && { readings: true }) };
    const one = await call(told?.task ? "v1/tag" : "v1/classify", { method: "POST", body: JSON.stringify(body) });
    found.results.push(...one.results);
    found.models.set(one.model.version, one.model); // it may change in between
  }
  return found;
}

async function classify(event) {
  event.preventDefault();
  if (busy) return;
  busy = true;
  byId("form").setAttribute("aria-busy", "true");
  byId("problem").textContent = byId("said").textContent = "";
  try {
    const question = asked();
    if (!told) await load(); // which routes it has is known then
    const found = await results(question);
    show(question, found);
    if (!found.models.has(told?.model.version)) await load();
  } catch (error) {
    byId("problem").textContent = error.message;
    (byId("keybox").open && !byId("key").value ? byId("key") : byId("text")).focus();
  } finally {
    busy = false;
    byId("form").removeAttribute("aria-busy");
  }
}

// Long texts scroll within their box, which keys must be able to reach.
function reachable(within) {
  for (const quote of within.querySelectorAll("blockquote")) {
    if (quote.scrollHeight > quote.clientHeight) {
      quote.tabIndex = 0;
      quote.setAttribute("aria-label", "The text");
    }
  }
}

function show({ texts, pairs }, { results, models }) {
  byId("by").textContent = "Answered by " + [...models.values()].map(named).join(" and by ") + ".";
  byId("results").replaceChildren(...results.map((one, i) => answer(pairs ? [texts[i], pairs[i]] : texts[i], one)));
  byId("answered").hidden = false;
  reachable(document);
  const first = byId("results").firstChild;
  byId("said").textContent = (results.length > 1 ? plural(results.length, "answer") + ". The first: " : "")
    + (results[0].label ?? "No label, not sure enough") + (told?.task ? "" : ", " + percent(results[0].confidence)) + ". " + first.querySelector(".trust").textContent;
}

function named(model) {
  const version = model.name.endsWith("/" + model.version) ? "" : ", version " + model.version;
  return model.name + version + ", " + model.precision;
}

function drawTable() {
  const wanted = byId("find").value.trim().toLowerCase();
  const value = (row) => (order.key === "name" ? row.name : row.expected_accuracy[order.key]);
  const shown = told.languages.filter((row) => (row.name + " " + row.code).toLowerCase().includes(wanted));
  shown.sort((a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0) * (order.down ? -1 : 1));
  const body = shown.map((row) => {
    const measured = row.expected_accuracy;
    const seen = row.seen_in_pretraining;
    return element("tr", { className: measured.trained_on ? "source" : "" },
      element("th", { scope: "row" }, row.name),
      element("td", {}, percent(measured.accuracy)),
      element("td", {}, (100 * measured.low).toFixed(1) + " – " + percent(measured.high)),
      element("td", { className: "optional" }, bar(measured.accuracy, measured.low, measured.high)),
      element("td", { className: "optional" }, String(measured.rows)),
      element("td", { className: "text" }, measured.trained_on ? "yes" : "no"),
      element("td", { className: "text optional" }, seen === null ? "not known" : seen ? "yes" : "no"));
  });
  byId("table").tBodies[0].replaceChildren(...body);
  byId("count").textContent = shown.length < told.languages.length
    ? shown.length + " of " + plural(told.languages.length, "language") : plural(shown.length, "language");
  for (const button of document.querySelectorAll("thead button")) {
    const mine = button.dataset.key === order.key;
    button.closest("th").setAttribute("aria-sort", mine ? (order.down ? "descending" : "ascending") : "none");
  }
}

function drawWords() {
  document.title = document.querySelector("h1").textContent = "Tag words in any language";
  document.querySelector("button[type=submit]").textContent = "Tag";
  byId("hint").firstChild.textContent = "Ctrl+Enter tags. What you type is sent to this server only";
  const metric = told.languages[0]?.expected_quality.metric ?? "f1"; // without scores nothing is in the table
  document.querySelector("[data-key=accuracy]").textContent = metric === "f1" ? "F1" : "Right";
  byId("known").nextElementSibling.textContent = "Measured on test rows that training never saw: the " + figure(metric)
    + ", and where it would mostly lie with other rows like these, the 95% interval. Languages in bold were trained on. In a language that is not here it was not measured.";
  for (const row of told.languages) row.expected_accuracy = rated(row.expected_quality);
}

function drawModel() {
  byId("model").textContent = "Model: " + named(told.model) + ".";
  byId("kept").textContent = told.texts_logged ? " and written to its log" : ", and not kept";
  byId("second").hidden = !told.pairs;
  byId("apart").hidden = told.pairs;
  const chosen = byId("language").value;
  const names = [...told.languages].sort((a, b) => a.name.localeCompare(b.name));
  byId("language").replaceChildren(
    byId("language").options[0], ...names.map((row) => element("option", { value: row.code }, row.name)));
  if (told.languages.some((row) => row.code === chosen)) byId("language").value = chosen;
  const facts = { [told.task ? "Tags" : "Labels"]: told.labels, ...told.provenance };
  byId("provenance").replaceChildren(...Object.entries(facts).flatMap(([key, value]) => {
    const text = Array.isArray(value) ? value.join(", ") : typeof value === "object" ? JSON.stringify(value) : String(value);
    return [element("dt", {}, key.replaceAll("_", " ")), element("dd", {}, text)];
  }));
}

async function load() {
  try {
    const found = await call("v1/model");
    found.languages = found.languages.filter((row) => row.expected_accuracy ?? row.expected_quality);
    told = found;
    if (told.task) drawWords();
    drawModel();
    drawTable();
  } catch (error) {
    byId("model").textContent = error.message;
  }
}

byId("form").addEventListener("submit", classify);
byId("find").addEventListener("input", () => told && drawTable());
byId("key").addEventListener("change", () => told || load());
for (const box of [byId("text"), byId("pair")]) {
  box.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("form").requestSubmit();
  });
}
for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => {
    const key = button.dataset.key;
    order = { key, down: order.key === key ? !order.down : key !== "name" };
    if (told) drawTable();
  });
}
load();
