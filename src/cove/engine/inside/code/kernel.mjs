// A kernel for JavaScript and TypeScript: runs code in a sandbox and keeps its state. PROTOCOL.md says how it speaks.
//
//     node kernel.mjs --context ID [--language javascript|typescript] [--idle-s N] [--ahead]
//     node kernel.mjs --probe
//
// This process speaks to the host; its child, execute.mjs, runs code. As in relay.py: code may hold its thread or end its
// process, and this one still answers, interrupts, and delivers what was written before.

import { execFileSync, spawn } from "node:child_process";
import fs from "node:fs";
import module from "node:module";
import net from "node:net";
import os from "node:os";
import path from "node:path";
import { StringDecoder } from "node:string_decoder";
import { fileURLToPath } from "node:url";

const PROTOCOL = 1;
const LINE_BYTES = 1 << 20;
const HIGH_BYTES = 1 << 18;
const CHUNK_BYTES = 1 << 16;
const QUEUED = 64;
const CONNECTIONS = 64;
const TICKS = 20;
const CANNOT_START = 64;

// Its parser is internal to node. Code that is stopped in a callback leaves node's books of callbacks open: it shall go on.
const FLAGS = ["--expose-internals", "--disable-warning=ExperimentalWarning", "--no-force-async-hooks-checks"].filter(
  (flag) => process.allowedNodeEnvironmentFlags.has(flag.split("=")[0]) || flag === "--expose-internals",
);

const HERE = path.dirname(fileURLToPath(import.meta.url));

/** Says why the kernel cannot start, and ends. */
function fail(sentence) {
  fs.writeSync(2, `${sentence}\n`);
  process.exit(CANNOT_START);
}

/** What the command line says; pairs that are not known are the host's notes. */
function parse(words) {
  const given = { language: "javascript" };
  for (let at = 0; at < words.length; at++) {
    const word = words[at];
    if (!word.startsWith("--")) fail(`kernel.mjs: unknown argument ${word}`);
    if (word === "--ahead" || word === "--probe") given[word.slice(2)] = true;
    else if (at + 1 === words.length) fail(`kernel.mjs: ${word} needs a value`);
    else given[word.slice(2)] = words[++at];
  }
  return given;
}

const STRIPS = typeof module.stripTypeScriptTypes === "function";
const NO_TYPES = `Node ${process.version} cannot strip types, so there is no TypeScript: 22.13 or newer can.`;

function probe() {
  const row = { kernel: "node", rich: false };
  const languages = [
    { name: "javascript", ...row, usable: true, missing: [] },
    { name: "typescript", ...row, usable: STRIPS, missing: STRIPS ? [] : [NO_TYPES] },
  ];
  process.stdout.write(`${JSON.stringify({ languages })}\n`);
}

/** Cuts bytes into lines; a line that is too long is an error. */
class Lines {
  #parts = [];
  #size = 0;

  *feed(data) {
    let start = 0;
    for (let end = data.indexOf(10); end >= 0; end = data.indexOf(10, start)) {
      this.#add(data.subarray(start, end));
      const line = Buffer.concat(this.#parts);
      this.#parts = [];
      this.#size = 0;
      start = end + 1;
      yield line;
    }
    this.#add(data.subarray(start));
  }

  #add(part) {
    this.#size += part.length;
    if (this.#size > LINE_BYTES) throw new Error("a line is too long");
    if (part.length > 0) this.#parts.push(part);
  }
}

/** Two named pipes, whose names are gone at once: unlike sockets, programs can open /dev/stdout on them. */
function makePipes() {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "cove-kernel-"));
  try {
    return ["output", "errors"].map((name) => {
      const file = path.join(folder, name);
      execFileSync("mkfifo", ["-m", "600", file], { stdio: "ignore" });
      const read = fs.openSync(file, fs.constants.O_RDWR | fs.constants.O_NONBLOCK);
      return { read, write: fs.openSync(file, fs.constants.O_WRONLY) };
    });
  } finally {
    fs.rmSync(folder, { recursive: true, force: true });
  }
}

class Kernel {
  #options;
  #child;
  #pipes;
  #sources = [];
  #decoders = [new StringDecoder("utf8"), new StringDecoder("utf8")];
  #requests;
  #settled;
  #interrupts;
  #info = null;
  #connections = new Set();
  #jobs = [];
  #job = null;
  #runs = 0;
  #idleMs = 0;
  #lines = new Lines();
  #isReading = true;

  constructor(options) {
    this.#options = options;
    try {
      this.#pipes = makePipes();
    } catch (problem) {
      fail(`The pipes of context ${options.context} cannot be made: ${problem.message}`);
    }
    const [output, errors] = this.#pipes;
    // 3: requests, 4: events, 5: answers to "settle", 6: interrupts.
    this.#child = spawn(process.execPath, [...FLAGS, path.join(HERE, "execute.mjs"), options.language], {
      stdio: ["ignore", output.write, errors.write, "pipe", "pipe", "pipe", "pipe"],
    });
    fs.closeSync(output.write);
    fs.closeSync(errors.write);
    const [, , , requests, events, settled, interrupts] = this.#child.stdio;
    this.#requests = requests;
    this.#settled = settled;
    this.#interrupts = interrupts;
    for (const stream of [requests, settled, interrupts, events]) stream.on("error", () => {});
    events.on("data", (data) => this.#takeEvents(data));
    this.#sources.push(events);
    this.#pipes.forEach((pipe, index) => {
      const source = new net.Socket({ fd: pipe.read, readable: true, writable: false });
      source.on("data", (data) => this.#tell(index, data));
      source.on("error", () => {});
      this.#sources.push(source);
    });
    this.#child.on("exit", (code, signal) => this.#ended(code, signal));
    this.#child.on("error", (problem) => fail(`The interpreter cannot be started: ${problem.message}`));
  }

  listen() {
    const server = net.createServer((socket) => this.#accept(socket));
    server.on("error", (problem) => {
      this.#child.kill("SIGKILL");
      fail(`The socket of context ${this.#options.context} cannot be made: ${problem.message}`);
    });
    server.listen(`\0cove-code-${this.#options.context}`);
    process.on("SIGINT", () => {});
    if (this.#options["idle-s"] !== undefined) this.#watchIdle(Number(this.#options["idle-s"]) * 1000);
  }

  // A sandbox may have been on the disk for a day in between: no tick counts for more than it was meant to be.
  #watchIdle(limitMs) {
    const tickMs = Math.max(limitMs / TICKS, 50);
    let last = performance.now();
    setInterval(() => {
      const now = performance.now();
      const passed = Math.min(Math.max(now - last, 0), 2 * tickMs);
      last = now;
      this.#idleMs = this.#job || this.#jobs.length > 0 || !this.#info ? 0 : this.#idleMs + passed;
      if (this.#idleMs < limitMs) return;
      this.#child.removeAllListeners("exit");
      this.#child.kill("SIGKILL");
      process.exit(0);
    }, tickMs);
  }

  // -- the host

  #accept(socket) {
    if (this.#connections.size >= CONNECTIONS) {
      socket.destroy();
      return;
    }
    const connection = { socket, lines: new Lines(), queued: 0, isGone: false };
    this.#connections.add(connection);
    socket.on("data", (data) => this.#takeRequests(connection, data));
    socket.on("drain", () => this.#balance());
    socket.on("error", () => {});
    socket.on("end", () => this.#forget(connection));
    socket.on("close", () => this.#forget(connection));
  }

  #takeRequests(connection, data) {
    try {
      for (const line of connection.lines.feed(data)) {
        const request = JSON.parse(line.toString());
        if (request !== null && typeof request === "object") this.#request(connection, request);
      }
    } catch {
      this.#forget(connection);
      return;
    }
    if (connection.queued >= QUEUED || connection.socket.writableLength > HIGH_BYTES) connection.socket.pause();
    this.#next();
  }

  #request(connection, request) {
    if (request.op === "hello") this.#sayReady(connection);
    else if (request.op === "interrupt") this.#interrupt(request.run ?? null);
    else if (["run", "setup", "complete"].includes(request.op)) {
      connection.queued++;
      this.#jobs.push({ connection, request });
    }
  }

  #sayReady(connection, problem) {
    if (!this.#info) {
      connection.isWaiting = true;
      return;
    }
    let cwd = "";
    try {
      cwd = fs.readlinkSync(`/proc/${this.#child.pid}/cwd`);
    } catch {}
    const ready = { t: "ready", protocol: PROTOCOL, language: this.#options.language, ...this.#info };
    this.#send(connection, { ...ready, runs: this.#runs, busy: this.#job !== null, cwd, ...(problem ? { problem } : {}) });
  }

  #send(connection, message) {
    this.#write(connection, `${JSON.stringify(message)}\n`);
  }

  #write(connection, line) {
    if (!connection || connection.isGone) return;
    connection.socket.write(line);
    if (connection.socket.writableLength > HIGH_BYTES) this.#balance();
  }

  #interrupt(run) {
    const job = this.#job;
    if (job && job.request.op !== "setup" && (run === null || job.request.run === run)) {
      this.#interrupts.write(`${job.number}\n`);
      process.kill(0, "SIGINT");
      return;
    }
    const at = run === null ? -1 : this.#jobs.findIndex((one) => one.request.run === run);
    if (at < 0) return;
    const [{ connection, request }] = this.#jobs.splice(at, 1);
    connection.queued--;
    if (request.op === "run") this.#send(connection, { t: "done", run, status: "interrupted", count: 0 });
  }

  #forget(connection) {
    if (connection.isGone) return;
    connection.isGone = true;
    connection.socket.destroy();
    this.#connections.delete(connection);
    this.#jobs = this.#jobs.filter((job) => job.connection !== connection);
    if (this.#job?.connection === connection) this.#interrupt(null);
    this.#balance();
  }

  // Nothing is read from the child while whoever it is for does not read: so it waits, and nothing piles up here.
  #balance() {
    const reader = this.#job?.connection;
    const isReading = !reader || reader.isGone || reader.socket.writableLength <= HIGH_BYTES;
    if (isReading !== this.#isReading) {
      this.#isReading = isReading;
      for (const source of this.#sources) isReading ? source.resume() : source.pause();
    }
    for (const { socket, queued } of this.#connections) {
      if (socket.isPaused() && queued < QUEUED && socket.writableLength <= HIGH_BYTES) socket.resume();
    }
  }

  // -- the child

  #next() {
    if (this.#job || !this.#info || this.#jobs.length === 0) return;
    this.#job = this.#jobs.shift();
    this.#idleMs = 0;
    const { connection, request } = this.#job;
    if (request.op === "run") {
      for (const decoder of this.#decoders) decoder.end();
      this.#job.number = ++this.#runs;
      this.#send(connection, { t: "started", run: request.run, count: this.#runs });
    }
    this.#requests.write(`${JSON.stringify({ ...request, number: this.#runs })}\n`);
  }

  #takeEvents(data) {
    // What programs wrote before the code went on comes first: here is its turn, whatever epoll says.
    this.#drain();
    for (const line of this.#lines.feed(data)) {
      const kind = line[0];
      const rest = line.subarray(1);
      if (kind === 69) this.#write(this.#job?.connection, Buffer.concat([rest, Buffer.from("\n")])); // E: event
      else if (kind === 83) this.#settled.write("."); // S: settle
      else if (kind === 85) this.#up(JSON.parse(rest.toString())); // U: up
      else if (kind === 65 || kind === 68) this.#finish(kind === 68, rest); // A: answer, D: done
    }
  }

  #up(info) {
    if (info.problem) {
      this.#child.kill("SIGKILL");
      fail(info.problem);
    }
    this.#info = info;
    for (const connection of this.#connections) if (connection.isWaiting) this.#sayReady(connection);
    fs.writeSync(1, "listening\n");
    this.#next();
  }

  #finish(isRun, line) {
    const { connection, request } = this.#job ?? {};
    if (!connection) return;
    if (isRun) {
      this.#drain();
      this.#decoders.forEach((decoder, index) => this.#tellText(index, decoder.end()));
    }
    this.#job = null;
    connection.queued--;
    if (request.op === "setup") this.#sayReady(connection, JSON.parse(line.toString()).problem);
    else this.#write(connection, Buffer.concat([line, Buffer.from("\n")]));
    this.#balance();
    this.#next();
  }

  #drain() {
    const buffer = Buffer.allocUnsafe(CHUNK_BYTES);
    this.#pipes.forEach(({ read }, index) => {
      // Bounded: a program in the background may write for ever.
      for (let turn = 0; turn < 16; turn++) {
        let size = 0;
        try {
          size = fs.readSync(read, buffer);
        } catch {}
        if (size === 0) return;
        this.#tell(index, buffer.subarray(0, size));
      }
    });
  }

  #tell(index, data) {
    for (let start = 0; start < data.length; start += CHUNK_BYTES) {
      this.#tellText(index, this.#decoders[index].write(data.subarray(start, start + CHUNK_BYTES)));
    }
  }

  #tellText(index, text) {
    const { connection, request } = this.#job ?? {};
    if (text && request?.op === "run") this.#send(connection, { t: index === 0 ? "stdout" : "stderr", run: request.run, d: text });
  }

  #ended(code, signal) {
    const number = signal ? -os.constants.signals[signal] : code;
    // Events that the child sent before its end are still on their way here.
    const events = this.#sources[0];
    events.resume();
    const finish = () => {
      this.#drain();
      if (!this.#info) fail("The interpreter ended before it could run code.");
      const how = signal ? `was killed by signal ${-number}` : `ended with exit code ${number}`;
      const died = { t: "died", code: number, detail: `The interpreter ${how}.` };
      if (this.#job) died.run = this.#job.request.run;
      const left = [...this.#connections].map((connection) => new Promise((told) => {
        this.#send(connection, died);
        connection.socket.end(told);
        connection.socket.on("close", told);
      }));
      const exit = () => process.exit(signal ? 128 - number : number);
      setTimeout(exit, 10_000);
      Promise.all(left).then(exit);
    };
    if (events.readableEnded) finish();
    else events.once("end", finish);
  }
}

const options = parse(process.argv.slice(2));
if (options.probe) probe();
else if (!options.context) fail("kernel.mjs: --context is needed");
else if (!["javascript", "typescript"].includes(options.language)) fail(`There is no kernel for ${options.language}.`);
else if (options.language === "typescript" && !STRIPS) fail(NO_TYPES);
else new Kernel(options).listen();
