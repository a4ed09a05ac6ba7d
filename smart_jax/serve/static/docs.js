// The API's description, drawn from openapi.json.

import { ask, element, find } from "./api.js";

function resolved(api, schema) {
  if (!schema?.$ref) return schema ?? {};
  return schema.$ref.split("/").slice(1).reduce((inner, key) => inner[key], api);
}

function kind(api, schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  const several = schema.anyOf ?? schema.oneOf;
  if (several) return several.map((each) => kind(api, each)).join(" or ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" or ");
  if (schema.type === "array") return `list of ${kind(api, schema.items ?? {})}`;
  return schema.type ?? "anything";
}

function fields(api, schema) {
  const { properties = {}, required = [] } = resolved(api, schema);
  return Object.entries(properties).map(([name, field]) => {
    const fallback = required.includes(name) ? " (needed)" : field.default === undefined ? "" : ` = ${JSON.stringify(field.default)}`;
    return element("li", {}, element("code", {}, name), `: ${kind(api, field)}${fallback}${field.description ? `. ${field.description}` : ""}`);
  });
}

function example(api, schema) {
  const { properties = {}, required = [] } = resolved(api, schema);
  const chosen = Object.entries(properties).filter(([name, field]) => required.includes(name) || field.examples);
  return Object.fromEntries(chosen.map(([name, field]) => {
    const inner = field.anyOf?.[0] ?? field;
    const plain = inner.type === "array" ? ["a text"] : "a text";
    return [name, field.examples?.[0] ?? inner.examples?.[0] ?? plain];
  }));
}

function route(api, path, method, found) {
  const section = element("section", {}, element("h2", {}, element("code", {}, `${method.toUpperCase()} ${path}`)), element("p", {}, found.description ?? ""));
  const parameters = (found.parameters ?? []).map((each) =>
    element("li", {}, element("code", {}, each.name), `: ${kind(api, each.schema)}${each.required ? " (needed)" : ""}${each.description ? `. ${each.description}` : ""}`));
  if (parameters.length) section.append(element("ul", {}, ...parameters));
  for (const [type, content] of Object.entries(found.requestBody?.content ?? {})) {
    section.append(element("p", {}, type), element("ul", {}, ...fields(api, content.schema)));
    if (type === "application/json") {
      const body = JSON.stringify(example(api, content.schema));
      section.append(element("pre", {}, `curl ${location.origin}${path} -H 'Content-Type: application/json' -d '${body}'`));
    }
  }
  const answer = found.responses?.["200"]?.content?.["application/json"]?.schema;
  const answered = answer ? fields(api, answer) : [];
  if (answered.length) section.append(element("p", {}, "Answer"), element("ul", {}, ...answered));
  return section;
}

try {
  const api = await ask("openapi.json");
  find("about").textContent = api.info.summary;
  for (const [path, methods] of Object.entries(api.paths))
    for (const [method, found] of Object.entries(methods)) find("routes").append(route(api, path, method, found));
} catch (error) {
  find("error").textContent = error.message;
  find("error").hidden = false;
}
