// The page: searches, hits with their evidence, and what the keyboard does.

import { ask, element, find } from "./api.js";
import { removal, showChanges, token, upload } from "./changes.js";
import { differences, drawBoxes, drawText, picture, pictureNumbers, tokenButtons, view } from "./evidence.js";
import { addCondition, where } from "./filters.js";

const AT_ONCE = 3; // items whose evidence is asked for
const list = find("hits").querySelector("ol");
let info = null;
let current = { number: 0, stop: null, request: null, cards: [] }; // the last search

const mode = () => document.querySelector("input[name=mode]:checked").value;
const say = (text) => { find("status").textContent = text; };

function complain(error) {
  find("error").textContent = error ? (error instanceof Error ? error.message : String(error)) : "";
  find("error").hidden = !error;
}

// Shows what goes wrong, unless it belongs to a search that is not the last any more.
async function guarded(work, number = current.number) {
  try {
    return await work();
  } catch (error) {
    if (error.name !== "AbortError" && number === current.number) complain(error);
    return undefined;
  }
}

async function search() {
  const query = find("query").value.trim();
  current.stop?.abort();
  const stop = new AbortController();
  const number = current.number + 1;
  const request = { query, mode: mode() };
  current = { number, stop, request, cards: [] };
  complain(null);
  remember();
  find("tokens").hidden = true;
  if (!query) {
    list.replaceChildren();
    say("");
    return;
  }
  say("Searching …");
  list.classList.add("busy");
  await guarded(async () => {
    const body = { ...request, k: Number(find("k").value) || 10, where: where(), candidates: "auto" };
    const answer = await ask("search", { body, signal: stop.signal });
    if (number !== current.number) return;
    say(`${answer.hits.length} hits in ${Math.round(1000 * answer.seconds)} ms.`);
    view.off.clear();
    view.pointed = null;
    view.marks = request.mode !== "pooled";
    current.cards = answer.hits.map((hit, i) => card(hit, i, answer.hits[i + 1]));
    list.replaceChildren(...current.cards.map((each) => each.place));
    fetchEvidence(number, stop.signal);
  }, number);
  if (number === current.number) list.classList.remove("busy");
}

function card(hit, rank, next) {
  const title = hit.file ? `${hit.file}${hit.page ? `, page ${hit.page}` : ""}` : hit.id;
  const facts = Object.entries(hit.metadata).map(([key, value]) => `${key}: ${typeof value === "object" ? JSON.stringify(value) : value}`);
  const parts = `${hit.score.toFixed(3)}: pooled ${hit.pooled.toFixed(3)}, late ${hit.late.toFixed(3)}`;
  const body = element("div", { class: "body" });
  if (hit.text) body.append(element("div", { class: "text" }, hit.text));
  const why = element("div", { class: "why" });
  const actions = element("div", { class: "actions" });
  if (next) actions.append(whyAbove(hit, next, why));
  if (info?.changes) actions.append(removal("Delete", () => act(async () => {
    const { deleted } = await ask("delete", { body: { ids: [hit.id] }, token: token() });
    return `${deleted} items removed.`;
  })));
  const place = element("li", { class: "hit", tabindex: "0", "aria-label": `${rank + 1}. ${title}` },
    element("h2", {}, `${rank + 1}. ${title}`),
    element("p", { class: "parts" }, parts),
    ...(facts.length ? [element("p", {}, facts.join(", "))] : []),
    body, actions, why);
  place.dataset.id = hit.id;
  return { hit, place, body, evidence: null };
}

function whyAbove(hit, next, place) {
  const button = element("button", {
    type: "button",
    "aria-expanded": "false",
    onclick: () => guarded(async () => {
      if (place.firstChild) place.replaceChildren();
      else {
        const body = { ...current.request, above: hit.id, below: next.id };
        const compared = await ask("compare", { body, signal: current.stop.signal });
        place.replaceChildren(differences(compared));
      }
      button.setAttribute("aria-expanded", String(Boolean(place.firstChild)));
    }),
  }, "Why above the next?");
  return button;
}

async function fetchEvidence(number, signal) {
  const waiting = [...current.cards];
  const worker = async () => {
    for (let each = waiting.shift(); each; each = waiting.shift())
      try {
        const body = { ...current.request, id: each.hit.id };
        const evidence = await ask("evidence", { body, signal });
        if (number === current.number) show(each, evidence);
      } catch (error) {
        if (error.name !== "AbortError") each.body.append(element("p", {}, error.message));
      }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
}

function show(each, evidence) {
  each.evidence = evidence;
  each.body.replaceChildren();
  for (const number of pictureNumbers(evidence)) {
    const page = picture(evidence, number, 640);
    page.addEventListener("click", () => enlarge(each, number));
    if (evidence.pictures.length > 1) each.body.append(element("p", {}, evidence.pictures[number]));
    each.body.append(page);
  }
  evidence.texts.forEach((_, i) => {
    const text = element("div", { class: "text" });
    text.dataset.number = i;
    each.body.append(text);
  });
  redrawOne(each);
  for (const text of each.body.querySelectorAll(".text")) {
    const first = text.querySelector("mark");
    if (first) text.scrollTop = Math.max(0, first.offsetTop - 60);
  }
  if (view.marks) {
    tokenButtons(find("tokens"), current.cards.find((card) => card.evidence).evidence, redraw);
    find("tokens").hidden = false;
  }
}

function redrawOne(each) {
  if (!each.evidence) return;
  for (const page of each.body.querySelectorAll(".page")) drawBoxes(page, each.evidence);
  for (const text of each.body.querySelectorAll(".text")) drawText(text, each.evidence, Number(text.dataset.number));
}

const redraw = () => current.cards.forEach(redrawOne);

function enlarge(each, number) {
  const page = picture(each.evidence, number, 1600);
  drawBoxes(page, each.evidence);
  find("large").querySelector("div").replaceChildren(page);
  find("large").showModal();
}

// Changes something, says what became of it, and searches again.
async function act(change) {
  complain(null);
  await guarded(async () => {
    const said = await change();
    const [done, failed] = Array.isArray(said) ? said : [said, ""];
    await refresh();
    if (find("query").value.trim()) await search();
    say(done);
    if (failed) complain(failed);
  });
}

async function refresh() {
  info = await ask("info");
  find("about").textContent = `${info.items} items, ${info.files} files${info.model ? `, ${info.model}` : ""}`;
  find("k").max = info.limits.hits;
  showChanges(info, act);
}

// The address names the search, so that it can be opened again.
function remember() {
  const named = new URLSearchParams();
  if (current.request.query) named.set("q", current.request.query);
  if (current.request.mode !== "hybrid") named.set("mode", current.request.mode);
  history.replaceState(null, "", named.size ? `?${named}` : location.pathname);
}

function move(step) {
  const places = current.cards.map((each) => each.place);
  const at = places.findIndex((place) => place.contains(document.activeElement));
  const next = places[at + step];
  if (next) next.focus();
  else if (at + step < 0) find("query").focus();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || find("large").open) return;
  const typing = event.target.matches("input:not([type=radio]), select");
  if (event.key === "/" && !typing) {
    find("query").focus();
    find("query").select();
  } else if (event.target === find("query") ? event.key === "ArrowDown" : !typing && event.target.closest(".hit") && ["ArrowDown", "ArrowUp"].includes(event.key)) {
    move(event.key === "ArrowDown" ? 1 : -1);
  } else if (event.key === "Enter" && event.target.matches(".hit")) {
    event.target.querySelector(".page")?.click();
  } else return;
  event.preventDefault();
});

find("search").addEventListener("submit", (event) => { event.preventDefault(); search(); });
find("modes").addEventListener("change", () => { if (find("query").value.trim()) search(); });
find("add-condition").addEventListener("click", () => addCondition(() => { if (find("query").value.trim()) search(); }));
find("upload").addEventListener("submit", (event) => {
  event.preventDefault();
  const button = event.target.querySelector("button");
  button.disabled = true;
  say("Uploading …");
  act(() => upload(info)).finally(() => {
    button.disabled = false;
    if (find("status").textContent === "Uploading …") say("");
  });
});

const named = new URLSearchParams(location.search);
find("query").value = named.get("q") ?? "";
for (const radio of document.querySelectorAll("input[name=mode]")) if (radio.value === named.get("mode")) radio.checked = true;
guarded(refresh).then(() => { if (find("query").value.trim()) search(); });
