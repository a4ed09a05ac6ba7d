// Drawing of evidence: boxes on pictures, marks in texts, buttons for the words of the query.

import { element } from "./api.js";

export const SHOWN = 0.55; // of the greatest emphasis
const MOST_PICTURES = 4;

// What is shown: tokens that are switched off, the one that is pointed at, and whether there is evidence at all.
export const view = { off: new Set(), pointed: null, marks: true };

function strength(token, number) {
  if (!view.marks) return 0;
  if (view.pointed !== null) return view.pointed === number ? 1 : 0;
  return view.off.has(number) || token.emphasis < SHOWN ? 0 : token.emphasis;
}

export function pictureNumbers(evidence) {
  const shown = new Set();
  for (const token of evidence.tokens)
    if (token.emphasis >= SHOWN) for (const box of token.boxes) if (box.picture < evidence.pictures.length) shown.add(box.picture);
  const numbers = [...shown].sort((a, b) => a - b).slice(0, MOST_PICTURES);
  return numbers.length || !evidence.pictures.length ? numbers : [0];
}

export function picture(evidence, number, width) {
  const address = `picture?${new URLSearchParams({ id: evidence.id, number, width })}`;
  const page = element("div", { class: "page" }, element("img", { src: address, alt: evidence.pictures[number] }));
  page.dataset.number = number;
  return page;
}

export function drawBoxes(page, evidence) {
  for (const old of page.querySelectorAll(".box")) old.remove();
  const number = Number(page.dataset.number);
  const places = new Map();
  evidence.tokens.forEach((token, i) => {
    const drawn = strength(token, i);
    if (!drawn) return;
    for (const box of token.boxes) {
      if (box.picture !== number) continue;
      const key = [box.left, box.top, box.right, box.bottom].join();
      const place = places.get(key) ?? { box, drawn: 0, words: [] };
      place.drawn = Math.max(place.drawn, drawn);
      place.words.push(token.text);
      places.set(key, place);
    }
  });
  for (const { box, drawn, words } of places.values()) {
    const mark = element("div", { class: "box", title: words.join(" ") });
    mark.style.left = `${100 * box.left}%`;
    mark.style.top = `${100 * box.top}%`;
    mark.style.width = `${100 * (box.right - box.left)}%`;
    mark.style.height = `${100 * (box.bottom - box.top)}%`;
    mark.style.setProperty("--e", drawn);
    page.append(mark);
  }
}

export function drawText(place, evidence, number) {
  const text = evidence.texts[number];
  const marks = [];
  evidence.tokens.forEach((token, i) => {
    const drawn = strength(token, i);
    if (drawn) for (const span of token.highlights) if (span.text === number) marks.push({ ...span, drawn });
  });
  const characters = [...text]; // the server counts characters, not halves of them
  const edges = [...new Set([0, characters.length, ...marks.flatMap((mark) => [mark.start, mark.stop])])].sort((a, b) => a - b);
  place.replaceChildren();
  for (let i = 0; i + 1 < edges.length; i += 1) {
    const [start, stop] = [edges[i], edges[i + 1]];
    const piece = characters.slice(start, stop).join("");
    const drawn = Math.max(0, ...marks.filter((mark) => mark.start <= start && stop <= mark.stop).map((mark) => mark.drawn));
    if (drawn) {
      const marked = element("mark", {}, piece);
      marked.style.setProperty("--e", drawn);
      place.append(marked);
    } else place.append(document.createTextNode(piece));
  }
}

// The buttons are as strong as the words' evidence in the first hit.
export function tokenButtons(place, first, redraw) {
  place.replaceChildren();
  first.tokens.forEach((token, i) => {
    if (!token.word) return;
    const lift = token.lift === null ? "" : `, lift ${token.lift.toFixed(2)}`;
    const button = element(
      "button",
      {
        type: "button",
        class: token.joined ? "joined" : "",
        title: `in the first hit: ${token.best}, cosine ${token.cosine.toFixed(2)}, share ${token.share.toFixed(3)}${lift}`,
        onclick: () => {
          if (!view.off.delete(i)) view.off.add(i);
          view.pointed = null;
          button.setAttribute("aria-pressed", String(!view.off.has(i)));
          redraw();
        },
        onpointerenter: () => { view.pointed = view.off.has(i) ? null : i; redraw(); },
        onpointerleave: () => { view.pointed = null; redraw(); },
      },
      token.text,
    );
    button.setAttribute("aria-pressed", String(!view.off.has(i)));
    button.style.setProperty("--e", token.emphasis);
    place.append(button);
  });
}

export function differences(compared) {
  const signed = (x) => (x >= 0 ? "+" : "−") + Math.abs(x).toFixed(4);
  const split = compared.tokens.some((token) => token.pooled_share !== null);
  const names = ["word", "share", ...(split ? ["pooled share"] : []), "match here", "match below"];
  const rows = compared.tokens.map((token) =>
    element("tr", {},
      element("td", {}, token.text),
      element("td", {}, signed(token.share)),
      ...(split ? [element("td", {}, signed(token.pooled_share ?? 0))] : []),
      element("td", {}, token.best),
      element("td", {}, token.other)));
  const caption = `${signed(compared.score)} = pooled ${signed(compared.pooled)} and late ${signed(compared.late)}`;
  return element("table", {},
    element("caption", {}, caption),
    element("tr", {}, ...names.map((name) => element("th", { scope: "col" }, name))),
    ...rows);
}
