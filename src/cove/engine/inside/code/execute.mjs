// The process that runs JavaScript: takes one request after another from kernel.mjs, and tells what comes of it.
//
// Code is evaluated by V8's own console mode (the inspector's `replMode`): declarations stay and may be made again,
// `await` works at the top level, and the value of the last expression is the result. A worker thread stands by to stop
// code that never comes back to its event loop.

import childProcess from "node:child_process";
import fs from "node:fs";
import inspector from "node:inspector";
import module from "node:module";
import net from "node:net";
import path from "node:path";
import { StringDecoder } from "node:string_decoder";
import { pathToFileURL } from "node:url";
import util from "node:util";
import vm from "node:vm";
import { Worker } from "node:worker_threads";

import { rewrite } from "./rewrite.mjs";

const CHUNK_CHARS = 1 << 16;
const PIECE_CHARS = 1 << 17;
const VALUE_BYTES = 32 << 20;
const META_BYTES = 1 << 17;
const MESSAGE_CHARS = 1 << 16;
const TRACEBACK_LINES = 200;
const LANGUAGE = process.argv[2];
const LOOK = { depth: 4, maxArrayLength: 200, maxStringLength: 200_000, breakLength: 100 };
const MARK = "run-";

let run = null;
let isUp = false;

// -- what goes to the host

/** Lone surrogates are no text: half of a character. */
function clean(text) {
  return text.replace(/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g, "\ufffd");
}

function emit(kind, message) {
  let data = Buffer.from(kind + JSON.stringify(message, (_, value) => (typeof value === "string" ? clean(value) : value)) + "\n");
  while (data.length > 0) {
    try {
      data = data.subarray(fs.writeSync(4, data));
    } catch (problem) {
      if (problem.code !== "EAGAIN" && problem.code !== "EINTR") process.reallyExit(1); // the other process is gone
    }
  }
}

const answer = Buffer.alloc(1);

/** Before a program is started that writes by itself: all that was said so far is on its way to the host. */
function settle() {
  if (!run) return;
  emit("S", {});
  try {
    fs.readSync(5, answer);
  } catch {}
}

function show(bundle, { main = false, meta = {}, id = undefined, update = false } = {}) {
  if (!run) return;
  const data = {};
  let left = VALUE_BYTES;
  const notes = [];
  for (const [mime, value] of Object.entries(bundle).slice(0, 64)) {
    let text;
    try {
      text = textOf(mime, value);
    } catch (problem) {
      notes.push(`The value of type ${mime} cannot be shown: ${problem?.name}`);
      continue;
    }
    const size = Buffer.byteLength(text);
    if (size > left) {
      notes.push(`The value of type ${mime} has ${(size / 2 ** 20).toFixed(1)} MiB and is left out: results have at most 32 MiB.`);
      continue;
    }
    left -= size;
    data[mime] = clean(text);
  }
  if (notes.length > 0) data["text/plain"] = [data["text/plain"], ...notes].filter(Boolean).join("\n");
  let said = {};
  try {
    if (JSON.stringify(meta).length <= META_BYTES) said = meta;
  } catch {}
  const last = { t: "result", run: run.id, data, meta: said, main, update, ...(id === undefined ? {} : { id: String(id).slice(0, 256) }) };
  if (Object.values(data).reduce((sum, text) => sum + text.length, 0) > CHUNK_CHARS) {
    for (const [mime, text] of Object.entries(data)) {
      if (text.length <= 1024) continue;
      for (const piece of pieces(text, PIECE_CHARS)) emit("E", { t: "piece", run: run.id, mime, d: piece });
      data[mime] = "";
    }
  }
  emit("E", last);
}

function textOf(mime, value) {
  if (mime === "application/json" || mime.endsWith("+json")) return JSON.stringify(value) ?? "null";
  if (typeof value === "string") return value;
  if (value instanceof Uint8Array) return Buffer.from(value).toString("base64");
  return String(value);
}

/** Cuts text, and never a character. */
function* pieces(text, size) {
  for (let start = 0; start < text.length; ) {
    let end = Math.min(start + size, text.length);
    if (end < text.length && /[\ud800-\udbff]/.test(text[end - 1])) end--;
    yield text.slice(start, end);
    start = end;
  }
}

function say(stream, text) {
  if (run) for (const piece of pieces(text, CHUNK_CHARS)) emit("E", { t: stream, run: run.id, d: piece });
}

function takeStream(name) {
  const stream = process[name];
  const decoder = new StringDecoder("utf8");
  stream.write = (chunk, encoding, told) => {
    const done = typeof encoding === "function" ? encoding : told;
    if (typeof chunk === "string") say(name, chunk);
    else if (ArrayBuffer.isView(chunk)) say(name, decoder.write(Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength)));
    else throw new TypeError("what is written must be a string or bytes");
    if (typeof done === "function") process.nextTick(done);
    return true;
  };
}

// -- errors

class ExitError extends Error {
  name = "SystemExit";
}

function failure(problem, details) {
  const isError = util.types.isNativeError(problem) || problem instanceof Error;
  let name = "Error";
  let value = "";
  let lines = [];
  try {
    name = isError ? String(problem.name || problem.constructor?.name || "Error") : "Thrown";
    value = isError ? String(problem.message) : util.inspect(problem, LOOK);
    lines = isError ? stackOf(problem, details) : [`Uncaught ${value}`];
  } catch (other) {
    lines = [`${name}: ${value || `<its text cannot be had: ${other?.name}>`}`];
  }
  if (lines.length > TRACEBACK_LINES) lines = [...lines.slice(0, 100), "...", ...lines.slice(-100)];
  return { name: name.slice(0, 1024), value: value.slice(0, MESSAGE_CHARS), traceback: lines.map((line) => line.slice(0, 2000)) };
}

/** The lines of its stack that are the code's own. */
function stackOf(problem, details) {
  const lines = util.inspect(problem, LOOK).split("\n");
  const isFrame = (line) => /^\s+at /.test(line);
  // What lies below the code's last frame is what called it: node and this file.
  const last = lines.findLastIndex((line) => isFrame(line) && line.includes(MARK));
  const isOurs = (line, at) => isFrame(line) && ((last >= 0 ? at > last : details !== undefined) || /execute\.mjs|node:inspector/.test(line));
  const kept = lines.filter((line, at) => !isOurs(line, at));
  if (details && problem.name === "SyntaxError" && !kept.some((line) => line.includes(MARK))) {
    const source = (run?.source ?? "").split("\n")[details.lineNumber] ?? "";
    kept.unshift(`${MARK}${run?.number}.js:${details.lineNumber + 1}`, source, `${" ".repeat(Math.max(details.columnNumber, 0))}^`, "");
  }
  return kept;
}

// -- evaluation

const session = new inspector.Session();
session.connect();
const post = (method, parameters) =>
  new Promise((resolve, reject) => session.post(method, parameters, (problem, outcome) => (problem ? reject(problem) : resolve(outcome))));

const TAKE = Symbol.for("cove.take");
const taken = new Map();
Object.defineProperty(globalThis, TAKE, { value: (number, value) => void taken.set(number, value), enumerable: false });
const CALL = `function (number, value) { globalThis[Symbol.for("cove.take")](number, value); }`;

function take(number) {
  const given = taken.get(number);
  taken.delete(number);
  return { given };
}

/** The value itself that the inspector speaks of, as `given`: it may be a promise, which shall not be awaited here. */
async function valueOf(remote) {
  if (remote.objectId === undefined) {
    if (remote.unserializableValue === undefined) return { given: remote.value };
    const text = remote.unserializableValue;
    return { given: text.endsWith("n") ? BigInt(text.slice(0, -1)) : Number(text) };
  }
  await post("Runtime.callFunctionOn", { objectId: remote.objectId, functionDeclaration: CALL, arguments: [{ value: 0 }, { objectId: remote.objectId }] });
  return take(0);
}

function prepare(code) {
  let source = code;
  if (LANGUAGE === "typescript") {
    try {
      source = module.stripTypeScriptTypes(code, { mode: "strip" });
    } catch (problem) {
      if (problem.code !== "ERR_UNSUPPORTED_TYPESCRIPT_SYNTAX") throw problem;
      source = module.stripTypeScriptTypes(code, { mode: "transform" });
    }
  }
  return rewrite(source);
}

// Code that waits is evaluated from the other thread, in this one: the inspector also answers when what is awaited can
// never come and is collected as garbage, and an answer to this thread in the middle of that ends the process (node 24).
async function evaluate({ text, waits }, number) {
  const expression = `${text}\n//# sourceURL=${MARK}${number}.js`;
  const parameters = { expression, replMode: true, objectGroup: "run", includeCommandLineAPI: false };
  const { result, exceptionDetails, problem } = waits ? await fromOutside(number, parameters) : await post("Runtime.evaluate", parameters);
  if (problem) return problem === STUCK ? { failure: { name: "Error", value: NEVER, traceback: [`Error: ${NEVER}`] } } : STOPPED;
  const remote = exceptionDetails?.exception ?? result;
  const { given } = waits && remote.objectId !== undefined ? take(number) : await valueOf(remote);
  if (!waits) await post("Runtime.releaseObjectGroup", { objectGroup: "run" });
  if (exceptionDetails) return { failure: failure(given, exceptionDetails) };
  return { value: given };
}

const STUCK = "Promise was collected";
const NEVER = "the code awaits something that can never come: nothing is left that could settle it";
const outside = new Map();

function fromOutside(number, parameters) {
  guard.postMessage({ number, parameters, call: CALL });
  return new Promise((resolve) => outside.set(number, resolve));
}

function showValue(value) {
  if (value === undefined) return;
  let bundle = { "text/plain": util.inspect(value, LOOK) };
  const form = value?.[Symbol.for("Jupyter.display")];
  if (typeof form === "function") bundle = { ...bundle, ...form.call(value) };
  show(bundle, { main: true });
}

const STOPPED = { failure: { name: "KeyboardInterrupt", value: "", traceback: ["KeyboardInterrupt: the code was interrupted"] }, isStopped: true };

async function runOne(request) {
  const stopped = new Promise((resolve) => {
    run = { id: String(request.run ?? ""), number: request.number, source: "", stop: () => resolve(STOPPED) };
  });
  Atomics.store(shared, 0, request.number);
  const before = changeEnv(request.env ?? {});
  let outcome;
  try {
    const prepared = prepare(String(request.code ?? ""));
    run.source = prepared.text;
    outcome = await Promise.race([evaluate(prepared, request.number), stopped]);
  } catch (problem) {
    outcome = problem?.code === "ERR_INSPECTOR_COMMAND" ? STOPPED : { failure: failure(problem) };
  }
  try {
    if (!outcome.failure) showValue(outcome.value);
  } catch (problem) {
    outcome = { failure: failure(problem) };
  }
  changeEnv(before);
  const wasStopped = Atomics.load(shared, 1) === request.number;
  Atomics.store(shared, 0, 0);
  if (outcome.failure) emit("E", { t: "error", run: run.id, ...outcome.failure });
  const status = !outcome.failure ? "ok" : wasStopped || outcome.isStopped ? "interrupted" : "error";
  const done = { t: "done", run: run.id, status, count: request.number };
  run = null;
  emit("D", done);
}

function changeEnv(env) {
  const before = {};
  for (const [name, value] of Object.entries(env)) {
    before[name] = process.env[name] ?? null;
    if (value === null) delete process.env[name];
    else process.env[name] = String(value);
  }
  return before;
}

function setUp(request) {
  changeEnv(request.env ?? {});
  let problem = "";
  try {
    if (request.cwd) process.chdir(request.cwd);
  } catch (other) {
    problem = `cannot work in ${request.cwd}: ${other.code}`;
  }
  emit("A", { problem });
}

// -- completion

const NAMES = `function () {
  const names = new Set();
  for (let one = Object(this), depth = 0; one !== null && depth < 16; one = Object.getPrototypeOf(one), depth++)
    for (const name of Object.getOwnPropertyNames(one)) if (/^[A-Za-z_$][\\w$]*$/.test(name)) names.add(name);
  return [...names].slice(0, 5000);
}`;

async function complete(request) {
  const code = String(request.code ?? "");
  const characters = [...code];
  const cursor = Number.isInteger(request.cursor) ? Math.min(Math.max(request.cursor, 0), characters.length) : characters.length;
  const [, owner, word] = /((?:[A-Za-z_$][\w$]*\.)*)([A-Za-z_$][\w$]*)?$/.exec(characters.slice(0, cursor).join("")) ?? [];
  let names = [];
  try {
    const expression = owner ? owner.slice(0, -1) : "globalThis";
    const { result } = await post("Runtime.evaluate", { expression, replMode: true, throwOnSideEffect: true, objectGroup: "complete", timeout: 500 });
    if (result.objectId !== undefined) {
      const found = await post("Runtime.callFunctionOn", { objectId: result.objectId, functionDeclaration: NAMES, returnByValue: true });
      names = found.result.value ?? [];
    } else if (result.type === "string") names = Object.getOwnPropertyNames(String.prototype);
    else if (result.type === "number") names = Object.getOwnPropertyNames(Number.prototype);
    if (!owner) names.push(...(await post("Runtime.globalLexicalScopeNames")).names);
    await post("Runtime.releaseObjectGroup", { objectGroup: "complete" });
  } catch {}
  const matches = [...new Set(names)].filter((name) => name.startsWith(word ?? "")).sort().slice(0, 500);
  emit("A", { t: "completed", id: request.id, matches, start: cursor - (word ?? "").length, end: cursor });
}

// -- what code finds

function lend(name, get) {
  Object.defineProperty(globalThis, name, {
    configurable: true,
    enumerable: false,
    get,
    set: (value) => Object.defineProperty(globalThis, name, { value, writable: true, configurable: true, enumerable: true }),
  });
}

let importer = { cwd: null, require: null, load: null };

/** `require` and `import` as a file of the working directory would have them. */
function here() {
  let cwd = "/";
  try {
    cwd = process.cwd();
  } catch {}
  if (importer.cwd === cwd) return importer;
  const file = path.join(cwd, "[code]");
  const require = module.createRequire(file);
  let load = (name, options) => {
    const isPath = /^(\.|\/|file:|data:|node:)/.test(name);
    const url = name.startsWith(".") ? new URL(name, pathToFileURL(file)).href : isPath ? name : pathToFileURL(require.resolve(name)).href;
    return import(module.builtinModules.includes(name) ? name : url, options);
  };
  const loader = vm.constants?.USE_MAIN_CONTEXT_DEFAULT_LOADER;
  if (loader !== undefined) {
    load = new vm.Script("(name, options) => import(name, options)", { filename: file, importModuleDynamically: loader }).runInThisContext();
  }
  importer = { cwd, require, load };
  return importer;
}

function furnish() {
  lend("require", () => here().require);
  lend("__impt", () => here().load);
  lend("__meta_info", () => ({ url: pathToFileURL(path.join(process.cwd(), "[code]")).href, dirname: process.cwd() }));
  lend("display", () => (value, options = {}) => {
    const isBundle = value !== null && typeof value === "object" && Object.keys(value).length > 0 && Object.keys(value).every((key) => /^[\w.-]+\/[\w.+-]+$/.test(key));
    const form = value?.[Symbol.for("Jupyter.display")];
    const plain = { "text/plain": util.inspect(value, LOOK) };
    show(isBundle ? value : typeof form === "function" ? { ...plain, ...form.call(value) } : plain, options);
  });
  for (const name of module.builtinModules) {
    if (!/[/_:]/.test(name) && !(name in globalThis)) lend(name, () => here().require(`node:${name}`));
  }
  process.exit = (code) => {
    throw new ExitError(`process.exit(${code ?? process.exitCode ?? 0}) ends the run; the context lives on`);
  };
  process.on("SIGINT", () => {});
  process.on("uncaughtException", (problem) => (isUp ? say : (_, text) => fs.writeSync(2, text))("stderr", `Uncaught ${failure(problem).traceback.join("\n")}\n`));
  process.on("unhandledRejection", (problem) => say("stderr", `Uncaught (in promise) ${failure(problem).traceback.join("\n")}\n`));
  for (const name of ["spawn", "spawnSync", "exec", "execSync", "execFile", "execFileSync", "fork"]) {
    const original = childProcess[name];
    childProcess[name] = Object.defineProperties(function (...words) {
      settle();
      return original.apply(this, words);
    }, Object.getOwnPropertyDescriptors(original));
  }
  module.syncBuiltinESMExports();
  process.execArgv = [];
  process.argv = [process.argv[0]];
}

// -- interrupts

// [0] the run that is under way, [1] the one that is to be interrupted
const shared = new Int32Array(new SharedArrayBuffer(8));

const GUARD = `
const { parentPort, workerData } = require("node:worker_threads");
const inspector = require("node:inspector");
const net = require("node:net");
const session = new inspector.Session();
session.connectToMainThread();
parentPort.on("message", ({ number, parameters, call }) => {
  const answer = (outcome) => parentPort.postMessage({ number, outcome });
  session.post("Runtime.evaluate", parameters, (problem, outcome) => {
    if (problem) return answer({ problem: problem.message });
    const { objectId } = outcome.exceptionDetails?.exception ?? outcome.result;
    if (objectId === undefined) return answer(outcome);
    const given = { objectId, functionDeclaration: call, arguments: [{ value: number }, { objectId }] };
    session.post("Runtime.callFunctionOn", given, () => {
      session.post("Runtime.releaseObjectGroup", { objectGroup: "run" });
      answer(outcome);
    });
  });
});
let text = "";
function press(number, turn) {
  if (Atomics.load(workerData, 0) !== number) return;
  parentPort.postMessage({ stop: number });
  // Code that comes back to its event loop is stopped by that message. Other code is stopped by force.
  setTimeout(() => {
    if (Atomics.load(workerData, 0) !== number) return;
    session.post("Runtime.terminateExecution", () => {});
    setTimeout(press, 100, number, turn + 1);
  }, turn === 0 ? 100 : 300);
}
new net.Socket({ fd: 6, readable: true, writable: false }).on("data", (data) => {
  text += data;
  const lines = text.split("\\n");
  text = lines.pop();
  for (const line of lines) {
    Atomics.store(workerData, 1, Number(line));
    press(Number(line), 0);
  }
}).on("close", () => process.exit());
`;

const guard = new Worker(GUARD, { eval: true, workerData: shared, execArgv: [], stdout: false, stderr: false });
guard.on("message", ({ stop, number, outcome }) => {
  if (stop === undefined) {
    outside.get(number)?.(outcome);
    outside.delete(number);
  } else if (run?.number === stop) run.stop();
});
guard.on("error", () => {});
guard.unref();

// -- requests

function serve() {
  let rest = Buffer.alloc(0);
  const source = new net.Socket({ fd: 3, readable: true, writable: false });
  source.on("data", (data) => {
    rest = Buffer.concat([rest, data]);
    for (let end = rest.indexOf(10); end >= 0; end = rest.indexOf(10)) {
      const request = JSON.parse(rest.subarray(0, end).toString());
      rest = rest.subarray(end + 1);
      if (request.op === "run") runOne(request);
      else if (request.op === "complete") complete(request);
      else setUp(request);
    }
  });
  source.on("close", () => process.reallyExit(0));
}

serve();
furnish();
takeStream("stdout");
takeStream("stderr");
// What the first run would pay for otherwise.
if (LANGUAGE === "typescript") prepare("const warm: number = 1");
for (const code of ["1 + 1", "await 1", "{a: 1}"]) await evaluate(prepare(code), -1);
const missing = ["Values are shown as text, unless they have a Jupyter.display form; there are no plots."];
isUp = true;
emit("U", { kernel: "node", version: process.version.slice(1), rich: false, missing });
