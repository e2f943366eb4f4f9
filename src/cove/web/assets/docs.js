// Shows openapi.json. Text goes in by textContent alone, so nothing in the document can become markup.
"use strict";

const make = (tag, attributes, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== null && child !== ""));
  return element;
};

// `code` between backticks, plain text else.
const prose = (text) => text.split("`").map((part, i) => (i % 2 ? make("code", {}, part) : part));

let api;
const follow = (schema) => (schema && schema.$ref ? api.components.schemas[schema.$ref.split("/").pop()] : schema) || {};

const kindOf = (schema) => {
  if (!schema) return "any";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(kindOf).join(" or ");
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" | ");
  if (schema.type === "array") return `list of ${kindOf(schema.items || (schema.prefixItems || [])[0])}`;
  if (schema.type === "object" && schema.additionalProperties) return `map to ${kindOf(schema.additionalProperties)}`;
  return schema.type || "any";
};

const limitsOf = (schema) => {
  const parts = [];
  for (const one of [schema, ...(schema.anyOf || [])]) {
    if (one.minimum !== undefined || one.maximum !== undefined)
      parts.push(`${one.minimum ?? "…"} to ${one.maximum ?? "…"}`);
    if (one.maxLength !== undefined) parts.push(`at most ${one.maxLength} characters`);
    if (one.pattern) parts.push(one.pattern);
    if (one.description && one !== schema) parts.push(one.description);
  }
  if (schema.description) parts.push(schema.description);
  if (schema.default !== undefined) parts.push(`default ${JSON.stringify(schema.default)}`);
  return parts.join(" · ");
};

const fields = (schema) => {
  const whole = follow(schema);
  const table = make("table");
  for (const [name, kind] of Object.entries(whole.properties || {})) {
    const must = (whole.required || []).includes(name) && whole.additionalProperties === false;
    table.append(row(name, kind, must));
  }
  return table;
};

const inner = (schema) => {
  const found = [schema, schema.items, ...(schema.anyOf || [])].find((one) => one && one.$ref);
  return found && follow(found).properties ? found : null;
};

const row = (name, schema, must) => {
  const nested = inner(schema);
  const last = make("td", {}, limitsOf(schema));
  if (nested) last.append(make("details", {}, make("summary", {}, kindOf(nested)), fields(nested)));
  const first = make("td", {}, make("code", {}, name), must ? make("span", { class: "must" }, " required") : "");
  return make("tr", {}, first, make("td", {}, kindOf(schema)), last);
};

const SAMPLES = {
  create_sandbox: { image: "base", memory_mib: 512 }, update_sandbox: { timeout_s: 3600 },
  run_command: { command: "python3 -c 'print(6*7)'" }, stream_command: { command: "for i in 1 2 3; do echo $i; sleep 1; done" },
  start_command: { command: ["sleep", "60"] }, signal_command: { signal: "TERM" }, wait_command: { timeout_s: 30 },
  make_directory: { path: "/tmp/new" }, move_file: { from: "/tmp/a", to: "/tmp/b" },
  set_attributes: { path: "/tmp/a", mode: "0644" }, mint_key: { name: "ci", scopes: ["create", "exec"] },
  create_project: { id: "lab" }, shut_down: { all: false },
};

const curlOf = (verb, path, op) => {
  let url = location.origin + path.replace("{id}", "brave-otter").replace("{command}", "c1").replace("{key}", "53fe2723");
  const needed = (op.parameters || []).filter((one) => one.in === "query" && one.required);
  if (needed.length) url += "?" + needed.map((one) => `${one.name}=/tmp/a.txt`).join("&");
  const parts = ["curl -sS"];
  const stream = Object.values(op.responses).some((one) => one.content && one.content["text/event-stream"]);
  if (stream) parts.push("-N");
  if (verb === "head") parts.push("-I");
  else if (verb !== "get" && !(verb === "post" && op.requestBody)) parts.push(`-X ${verb.toUpperCase()}`);
  if (!(op.security && op.security.length === 0)) parts.push('-H "Authorization: Bearer $COVE_API_KEY"');
  parts.push(url.includes("?") ? `'${url}'` : url);
  if (op.requestBody && op.requestBody.content["application/json"])
    parts.push(`-d '${JSON.stringify(SAMPLES[op.operationId] || {}).replace(/'/g, "'\\''")}'`);
  else if (op.requestBody) parts.push("--data-binary @a.txt");
  return parts.join(" ");
};

const bodies = (op) => {
  const found = [];
  const json = op.requestBody && op.requestBody.content["application/json"];
  if (json) found.push(make("h4", {}, "Body"), fields(json.schema));
  else if (op.requestBody) found.push(make("h4", {}, "Body"), make("p", { class: "tagline" }, "Raw bytes, any size."));
  return found;
};

const answers = (op) => {
  const found = [];
  const failures = make("table");
  for (const [status, answer] of Object.entries(op.responses)) {
    const [media, content] = Object.entries(answer.content || {})[0] || ["", {}];
    if (status >= "400") {
      failures.append(make("tr", {}, make("td", {}, make("code", {}, status)), make("td", {}, answer.description), make("td")));
      continue;
    }
    found.push(make("h4", {}, `Answer ${status} ${media === "application/json" ? "" : media}`));
    if (content.schema && content.schema.$ref)
      found.push(make("details", {}, make("summary", {}, kindOf(content.schema)), fields(content.schema)));
  }
  if (failures.children.length) found.push(make("h4", {}, "Failures"), make("details", {}, make("summary", {}, "status and code"), failures));
  return found;
};

const card = (verb, path, op) => {
  const about = make("div", { class: "about" },
    make("h3", {}, op.summary),
    make("div", { class: "route" }, make("span", { class: `verb ${verb}` }, verb.toUpperCase()), make("code", {}, path),
      ...(op["x-scopes"] || []).map((one) => make("span", { class: "scope soft" }, `scope ${one}`))),
    op.description ? make("p", { class: "tagline" }, ...prose(op.description)) : "");
  const parameters = (op.parameters || []).filter((one) => one.in !== "path");
  if (parameters.length) {
    const table = make("table");
    for (const one of parameters)
      table.append(row(one.name, one.in === "header" ? { type: "header", description: one.description } : one.schema, one.required));
    about.append(make("h4", {}, "Parameters"), table);
  }
  about.append(...bodies(op), ...answers(op));
  const line = curlOf(verb, path, op);
  const button = make("button", { type: "button" }, "copy");
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(line);
    button.textContent = "copied";
    setTimeout(() => (button.textContent = "copy"), 1200);
  });
  return make("article", { id: op.operationId, "data-words": `${verb} ${path} ${op.summary} ${op.operationId}`.toLowerCase() },
    about, make("div", { class: "curl" }, make("pre", {}, line), button));
};

const problems = () => {
  const table = make("table");
  const seen = {};
  for (const verbs of Object.values(api.paths))
    for (const op of Object.values(verbs))
      for (const [status, answer] of Object.entries(op.responses))
        if (status >= "400") for (const code of answer.description.split(", ")) (seen[code] ||= new Set()).add(status);
  for (const code of Object.keys(seen).sort())
    table.append(make("tr", { id: code }, make("td", {}, make("code", {}, code)), make("td", {}, [...seen[code]].sort().join(", ")), make("td")));
  return [make("h2", { id: "errors" }, "Errors"),
    make("p", { class: "soft" }, "RFC 9457 problems: ", make("code", {}, "code"), " is the stable word, ", make("code", {}, "field"),
      " names what is at fault, ", make("code", {}, "hint"), " what to do, ", make("code", {}, "request_id"), " what to quote."),
    table];
};

const show = () => {
  const main = document.getElementById("main");
  const menu = document.getElementById("menu");
  document.getElementById("version").textContent = api.info.version;
  main.replaceChildren(make("h1", {}, api.info.title), make("p", { class: "soft" }, ...prose(api.info.description)));
  for (const tag of api.tags.map((one) => one.name)) {
    main.append(make("h2", {}, tag));
    menu.append(make("h2", {}, tag));
    for (const [path, verbs] of Object.entries(api.paths))
      for (const [verb, op] of Object.entries(verbs))
        if (op.tags.includes(tag)) {
          main.append(card(verb, path, op));
          menu.append(make("a", { href: `#${op.operationId}` }, op.summary));
        }
  }
  main.append(...problems());
  menu.append(make("h2", {}, "Errors"), make("a", { href: "#errors" }, "All codes"));
  const wanted = decodeURIComponent(location.hash.slice(1)) || (location.pathname.endsWith("/errors") ? "errors" : "");
  const target = wanted && document.getElementById(wanted);
  if (target) target.scrollIntoView();
};

const find = document.getElementById("find");
find.addEventListener("input", () => {
  const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const one of document.querySelectorAll("article"))
    one.hidden = !words.every((word) => one.dataset.words.includes(word));
});
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && document.activeElement !== find) { event.preventDefault(); find.focus(); }
});

fetch("/openapi.json")
  .then((answer) => answer.json())
  .then((found) => { api = found; show(); })
  .catch((error) => { document.getElementById("main").textContent = `The API document could not be read: ${error}`; });
