// Makes of a module's text what V8's console mode runs: `import` becomes a call, `export` goes.
//
// Node's own parser (acorn) does the reading. What it cannot read is left as it is: V8 says what is wrong with it. Lines
// stay where they are, so places in errors are right.

import module from "node:module";

let acorn = null;
try {
  acorn = module.createRequire(import.meta.url)("internal/deps/acorn/acorn/dist/acorn");
} catch {
  // Started without --expose-internals, or by a node that has it elsewhere: only code without imports runs then.
}

const OPTIONS = { ecmaVersion: "latest", sourceType: "script", allowAwaitOutsideFunction: true, allowImportExportEverywhere: true, allowHashBang: true };

/** The text to run as `text`, and whether it `waits` at its top level. */
export function rewrite(code) {
  const literal = asLiteral(code);
  if (literal !== null) return { text: literal, waits: /\bawait\b/.test(code) };
  if (!/\b(import|export|await)\b/.test(code)) return { text: code, waits: false };
  let tree;
  const changes = [];
  let waits = false;
  try {
    tree = acorn.parse(code, OPTIONS);
  } catch {
    return { text: code, waits: true };
  }
  walk(tree, 0, (node, depth) => {
    waits ||= depth === 0 && (node.type === "AwaitExpression" || node.type === "ImportDeclaration" || node.await === true);
    const change = changeOf(node, code);
    if (change) changes.push(change);
  });
  changes.sort((one, other) => other.start - one.start);
  const text = changes.reduce((whole, { start, end, by }) => whole.slice(0, start) + by + whole.slice(end), code);
  return { text, waits };
}

/** `{a: 1}` alone is an object, as in every console. */
function asLiteral(code) {
  const trimmed = code.trim();
  if (!trimmed.startsWith("{") || !trimmed.endsWith("}") || !acorn) return null;
  try {
    const literal = `(${code.trimEnd()})`;
    acorn.parse(literal, OPTIONS);
    return literal;
  } catch {
    return null;
  }
}

/** Visits all nodes, with the number of functions around each. */
function walk(node, depth, visit) {
  if (Array.isArray(node)) {
    for (const one of node) walk(one, depth, visit);
  } else if (node !== null && typeof node === "object" && typeof node.type === "string") {
    visit(node, depth);
    const inner = depth + (/Function|StaticBlock|PropertyDefinition/.test(node.type) ? 1 : 0);
    for (const key of Object.keys(node)) if (key !== "type") walk(node[key], inner, visit);
  }
}

function changeOf(node, code) {
  switch (node.type) {
    case "ImportExpression": // as many characters as before
      return { start: node.start, end: node.start + 6, by: "__impt" };
    case "MetaProperty":
      return node.meta.name === "import" ? { start: node.start, end: node.end, by: "__meta_info" } : null;
    case "ImportDeclaration":
      return { start: node.start, end: node.end, by: importText(node, code) };
    case "ExportNamedDeclaration":
      return { start: node.start, end: node.declaration ? node.declaration.start : node.end, by: "" };
    case "ExportDefaultDeclaration":
      return { start: node.start, end: node.declaration.start, by: "" };
    case "ExportAllDeclaration":
      return { start: node.start, end: node.end, by: "" };
    default:
      return null;
  }
}

function importText(node, code) {
  const attributes = node.attributes?.length
    ? `, { with: { ${node.attributes.map((one) => `${code.slice(one.key.start, one.key.end)}: ${one.value.raw}`).join(", ")} } }`
    : "";
  const load = `await __impt(${node.source.raw}${attributes})`;
  const lines = "\n".repeat(code.slice(node.start, node.end).split("\n").length - 1);
  const names = [];
  let whole = null;
  for (const one of node.specifiers) {
    if (one.type === "ImportNamespaceSpecifier") whole = one.local.name;
    else if (one.type === "ImportDefaultSpecifier") names.push(`default: ${one.local.name}`);
    else names.push(`${one.imported.raw ?? one.imported.name}: ${one.local.name}`);
  }
  if (whole !== null && names.length > 0) return `const ${whole} = ${load}, { ${names.join(", ")} } = ${whole};${lines}`;
  if (whole !== null) return `const ${whole} = ${load};${lines}`;
  return names.length > 0 ? `const { ${names.join(", ")} } = ${load};${lines}` : `${load}; void 0;${lines}`;
}
