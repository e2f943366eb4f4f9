// Many clients at once, each with all its connections in use. Arguments: clients, seconds, sandboxes' memory in MiB.
// Writes one line of JSON: how often each operation was done, its p50 and p99 in ms, and what failed.
import { IsorunError } from 'isorun'
import { client, image } from './support.mjs'

const [clients, seconds, memMiB] = process.argv.slice(2).map(Number)
const CONNECTIONS = 32
const FORK_EVERY = 5
const until = Date.now() + seconds * 1000
const took = { create: [], exec: [], fork: [], destroy: [] }
const createMs = []
const declared = { 429: 0, 503: 0 }
const failed = {}

/** Do it once; a declared refusal is waited for, any other failure is counted. Undefined: it was not done. */
async function timed(kind, work) {
  const began = performance.now()
  try {
    const found = await work()
    took[kind].push(performance.now() - began)
    return found ?? true
  } catch (error) {
    if (error instanceof IsorunError && error.status in declared) {
      declared[error.status]++
      await new Promise((resolve) => setTimeout(resolve, 200 + Math.random() * 300))
      return undefined
    }
    const text = `${kind}: ${error?.message ?? error} ${error?.code ?? ''}`.slice(0, 200)
    failed[text] = (failed[text] ?? 0) + 1
    return undefined
  }
}

async function destroy(sandbox) {
  while ((await timed('destroy', () => sandbox.destroy())) === undefined && Date.now() < until + 60_000) {}
}

async function exec(sandbox, n) {
  const result = await timed('exec', () => sandbox.exec(`echo ${n}`))
  if (result !== undefined && result.stdout !== `${n}\n`) {
    const text = `exec: wrong answer ${JSON.stringify(result)}`.slice(0, 200)
    failed[text] = (failed[text] ?? 0) + 1
  }
}

async function life(isorun, round) {
  const sandbox = await timed('create', () => isorun.create({ image, memMiB, timeoutSec: 600 }))
  if (sandbox === undefined) return
  createMs.push(sandbox.createMs)
  await Promise.all(Array.from({ length: CONNECTIONS }, (_, n) => exec(sandbox, n)))
  if (round % FORK_EVERY === 0) {
    const children = await timed('fork', () => sandbox.fork(1))
    for (const child of children ?? []) {
      await exec(child, 1)
      await destroy(child)
    }
  }
  await destroy(sandbox)
}

async function use(number) {
  const isorun = client()
  for (let round = number; Date.now() < until; round++) await life(isorun, round)
  isorun.close()
}

function figures(samples) {
  const sorted = [...samples].sort((a, b) => a - b)
  const at = (share) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? null
  return { count: sorted.length, p50: at(0.5), p99: at(0.99) }
}

await Promise.all(Array.from({ length: clients }, (_, n) => use(n)))
const operations = Object.fromEntries(Object.entries(took).map(([kind, samples]) => [kind, figures(samples)]))
process.stdout.write(JSON.stringify({ operations, createMs: figures(createMs), declared, failed }) + '\n')
process.exit(0)
