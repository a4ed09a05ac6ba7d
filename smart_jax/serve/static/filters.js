// Conditions on metadata: rows of a key, a comparison and a value.

import { element, find } from "./api.js";

const OPERATORS = [
  ["eq", "is"], ["ne", "is not"], ["gte", "is at least"], ["lte", "is at most"], ["gt", "is above"], ["lt", "is below"],
  ["contains", "contains"], ["exists", "is there"],
];

export function addCondition(changed) {
  const row = element("div", { class: "condition" },
    element("input", { "aria-label": "Key", placeholder: "year, file, page, …", spellcheck: "false", onchange: changed }),
    element("select", { "aria-label": "Comparison", onchange: changed },
      ...OPERATORS.map(([value, text]) => element("option", { value }, text))),
    element("input", { "aria-label": "Value", placeholder: "value", onchange: changed }),
    element("button", { type: "button", "aria-label": "Remove the filter", onclick: () => { row.remove(); changed(); } }, "×"));
  find("conditions").append(row);
  row.querySelector("input").focus();
}

function valueOf(text) {
  if (text === "true" || text === "false") return text === "true";
  return text.trim() !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
}

// The conditions, as the server takes them; null = there are none.
export function where() {
  const conditions = [];
  for (const row of find("conditions").children) {
    const [key, operator, value] = row.querySelectorAll("input, select");
    if (!key.value.trim()) continue;
    const wanted = operator.value === "exists" ? value.value.trim() !== "false" : valueOf(value.value);
    conditions.push({ [key.value.trim()]: { [operator.value]: wanted } });
  }
  if (conditions.length < 2) return conditions[0] ?? null;
  return { and: conditions };
}
