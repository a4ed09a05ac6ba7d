// Requests to the server, and what goes wrong with them.

export class Failure extends Error {}

export async function ask(path, { body, form, token, signal } = {}) {
  const headers = {};
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const method = body === undefined && form === undefined ? "GET" : "POST";
  let answer;
  try {
    answer = await fetch(path, { method, headers, signal, body: form ?? (body && JSON.stringify(body)) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The server cannot be reached. It may have ended, or the request was larger than it takes.");
  }
  let content;
  try {
    content = await answer.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(`The server's answer cannot be read (${answer.status}).`);
  }
  if (!answer.ok) throw new Failure(`${content.error?.message ?? answer.statusText} (${answer.status})`);
  return content;
}

// An element with attributes and children; a text becomes a text node, whatever it says.
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key === "class") made.className = value;
    else if (value !== undefined && value !== null && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  for (const child of children) made.append(typeof child === "string" ? document.createTextNode(child) : child);
  return made;
}

export const find = (id) => document.getElementById(id);
