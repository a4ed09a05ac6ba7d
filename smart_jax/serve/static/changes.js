// Upload and removal of files, behind the token.

import { ask, element, find } from "./api.js";

// A button that asks to be pressed twice.
export function removal(label, remove) {
  const button = element("button", {
    type: "button",
    onclick: async () => {
      if (button.textContent !== "Really?") {
        button.textContent = "Really?";
        return;
      }
      button.disabled = true;
      try {
        await remove();
      } finally {
        button.disabled = false;
        button.textContent = label;
      }
    },
    onblur: () => { if (!button.disabled) button.textContent = label; },
  }, label);
  return button;
}

export const token = () => find("token").value;

export function showChanges(info, act) {
  find("no-changes").hidden = info.changes;
  find("upload").hidden = !info.changes;
  find("uploads").replaceChildren(...(info.changes ? info.uploads : []).map((name) =>
    element("li", {}, element("span", {}, name), removal("Delete", () => act(async () => {
      const { deleted } = await ask("delete", { body: { files: [name] }, token: token() });
      return `${deleted} items of ${name} removed.`;
    })))));
}

export async function upload(info) {
  const files = [...find("files").files];
  if (!files.length) throw new Error("Choose files first.");
  const bytes = files.reduce((sum, file) => sum + file.size, 0);
  if (bytes > info.limits.upload_bytes)
    throw new Error(`The files have ${bytes} bytes: the server takes ${info.limits.upload_bytes} at once.`);
  const form = new FormData();
  for (const file of files) form.append("files", file);
  if (find("metadata").value.trim()) form.append("metadata", find("metadata").value);
  const answer = await ask("upload", { form, token: token() });
  const failed = Object.entries(answer.failed).map(([name, error]) => `${name}: ${error}`);
  find("files").value = "";
  return [`${answer.added} items added, ${answer.unchanged} unchanged.`, failed.join("; ")];
}
