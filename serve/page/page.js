"use strict";

const byId = (id) => document.getElementById(id);
const percent = (fraction) => (100 * fraction).toFixed(1) + "%";
let rightToLeft = new Set();
let rows = [];
let order = { key: "accuracy", down: true };

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
  let response;
  try {
    response = await fetch(path, { ...options, headers: headers() });
  } catch {
    throw new Error("The server does not answer. Is it still running?");
  }
  const body = await response.json().catch(() => ({}));
  if (response.status === 401) byId("keybox").open = true;
  if (!response.ok) {
    const wait = response.headers.get("Retry-After");
    const reason = (body.error && body.error.message) || "The server answered " + response.status + ".";
    throw new Error(reason + (wait ? " Try again in " + wait + " s." : ""));
  }
  if (byId("key").value) sessionStorage.setItem("xlt-key", byId("key").value);
  return body;
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

function trust(result) {
  const { language, expected_accuracy: measured } = result;
  if (!language.code) {
    return element("p", { className: "trust" }, "Its language cannot be told, so nothing can be said about how far to trust this.");
  }
  const sure = language.confidence < 1 ? " (" + Math.round(100 * language.confidence) + "% sure)" : "";
  const paragraph = element("p", { className: "trust" }, "Taken for ", element("b", {}, language.name), sure + ". ");
  if (measured) {
    paragraph.append(
      "In this language the model was right in ", element("b", {}, percent(measured.accuracy)),
      " of " + measured.rows + " test texts (95% interval " + percent(measured.low) + " to " + percent(measured.high) + ").");
  } else {
    paragraph.append(element("span", { className: "unmeasured" }, "Not measured in this language: how often it is right there is not known."));
  }
  return paragraph;
}

function answer(text, result) {
  const scores = element("ul", { className: "scores" });
  for (const { label, score } of result.scores) {
    scores.append(element("li", {},
      element("span", { className: "name", dir: "auto" }, label), bar(score),
      element("span", { className: "number" }, percent(score))));
  }
  const quote = element("blockquote", { dir: rightToLeft.has(result.language.code) ? "rtl" : "auto" }, text);
  const tag = (result.language.code || "").split("_");
  if (tag.length === 2) quote.lang = tag.join("-");
  return element("li", { className: "answer" }, quote,
    element("p", { className: "label", dir: "auto" }, result.label), trust(result), scores);
}

async function classify(event) {
  event.preventDefault();
  const whole = byId("text").value;
  const texts = (byId("lines").checked ? whole.split("\n") : [whole]).filter((line) => line.trim());
  if (!texts.length) return;
  const button = document.querySelector("button[type=submit]");
  button.disabled = true;
  byId("problem").textContent = "";
  try {
    const code = byId("language").value;
    const body = { texts, top_k: 5, ...(code && { languages: texts.map(() => code) }) };
    const found = await call("v1/classify", { method: "POST", body: JSON.stringify(body) });
    byId("answers").hidden = false;
    byId("results").replaceChildren(...found.results.map((result, i) => answer(texts[i], result)));
    showModel(found.model);
    if (!rows.length) load();
  } catch (error) {
    byId("problem").textContent = error.message;
  } finally {
    button.disabled = false;
  }
}

function showModel(model) {
  byId("model").textContent = "Answered by " + model.name + ", version " + model.version + ", " + model.precision + ".";
}

function drawTable() {
  const wanted = byId("find").value.trim().toLowerCase();
  const value = (row) => (order.key === "name" ? row.name : row.expected_accuracy[order.key]);
  const shown = rows.filter((row) => (row.name + " " + row.code).toLowerCase().includes(wanted));
  shown.sort((a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0) * (order.down ? -1 : 1));
  const body = shown.map((row) => {
    const measured = row.expected_accuracy;
    const seen = row.seen_in_pretraining;
    return element("tr", { className: measured.trained_on ? "source" : "" },
      element("th", { scope: "row" }, row.name),
      element("td", {}, percent(measured.accuracy)),
      element("td", {}, percent(measured.low) + " – " + percent(measured.high)),
      element("td", { className: "optional" }, bar(measured.accuracy, measured.low, measured.high)),
      element("td", {}, String(measured.rows)),
      element("td", { className: "text" }, measured.trained_on ? "yes" : "no"),
      element("td", { className: "text optional" }, seen === null ? "not known" : seen ? "yes" : "no"));
  });
  document.querySelector("#table tbody").replaceChildren(...body);
  for (const button of document.querySelectorAll("thead button")) {
    const mine = button.dataset.key === order.key;
    button.closest("th").setAttribute("aria-sort", mine ? (order.down ? "descending" : "ascending") : "none");
  }
}

async function load() {
  try {
    const found = await call("v1/model");
    showModel(found.model);
    rows = found.languages.filter((row) => row.expected_accuracy);
    rightToLeft = new Set(rows.filter((row) => row.right_to_left).map((row) => row.code));
    drawTable();
    const names = [...rows].sort((a, b) => a.name.localeCompare(b.name));
    byId("language").append(...names.map((row) => element("option", { value: row.code }, row.name)));
    const shown = { Labels: found.labels.join(", "), ...found.provenance };
    for (const [key, value] of Object.entries(shown)) {
      const text = Array.isArray(value) ? value.join(", ") : typeof value === "object" ? JSON.stringify(value) : String(value);
      byId("provenance").append(element("dt", {}, key.replaceAll("_", " ")), element("dd", {}, text));
    }
  } catch (error) {
    byId("model").textContent = error.message;
  }
}

byId("form").addEventListener("submit", classify);
byId("find").addEventListener("input", drawTable);
byId("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("form").requestSubmit();
});
for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => {
    const key = button.dataset.key;
    order = { key, down: order.key === key ? !order.down : key !== "name" };
    drawTable();
  });
}
load();
