// The examples of the package's own README, as they stand there; the URL and the key come from the environment.
import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import { key, url } from './support.mjs'

process.env.ISORUN_API_KEY = key
process.env.ISORUN_API_URL = url

const readme = readFileSync(new URL('node_modules/isorun/README.md', import.meta.url), 'utf8')

/** The code below a heading. */
function example(heading) {
  const [, code] = readme.split(`${heading}\n`)[1].match(/```ts\n([\s\S]*?)```/)
  return code
}

/** Run it with what it takes for granted; what it declares comes back, and what it returns. */
async function run(heading, given, declares) {
  const lines = example(heading).split('\n')
  const imports = lines.filter((line) => line.startsWith('import '))
  const code = lines.filter((line) => !line.startsWith('import ')).join('\n')
  const file = new URL(`example-${heading.replaceAll(/\W+/g, '-')}-${process.pid}.mjs`, import.meta.url)
  const head = imports.length ? imports.join('\n') : "import { Isorun } from 'isorun'"
  const client = code.includes('new Isorun(') ? '' : 'const isorun = new Isorun()\n'
  const end = declares.length ? `\nreturn { ${declares.join(', ')} }` : ''
  writeFileSync(file, `${head}\n${client}export async function run({ ${Object.keys(given).join(', ')} }) {\n${code}${end}\n}`)
  return (await import(file)).run(given)
}

export async function quickstart() {
  const { stdout } = await run('## Quickstart', {}, ['stdout'])
  assert.match(stdout, /^v\d+\.\d+\.\d+\n$/)
}

export async function run_untrusted_code() {
  const sourceFromLLM = 'import sys\nprint("hello from", sys.implementation.name)\n'
  assert.equal(await run('### Run untrusted code', { sourceFromLLM }, []), 'hello from cpython\n')
}

export async function fork_a_running_sandbox() {
  const workerCode = "console.log('worker on', require('os').hostname())"
  const { parent, workers, results } = await run(
    '### Fork a running sandbox', { workerCode }, ['parent', 'workers', 'results'],
  )
  assert.deepEqual(results.map((one) => [one.exitCode, one.stderr]), workers.map(() => [0, '']))
  assert.equal(workers.length, 10)
  assert.equal(new Set(results.map((one) => one.stdout)).size, 10)
  await Promise.all([parent, ...workers].map((one) => one.destroy()))
}

export async function snapshot_and_restore() {
  const { restored, id, isorun } = await run('### Snapshot and restore', {}, ['restored', 'id', 'isorun'])
  const { stdout, stderr } = await restored.exec('python -c "import pandas; print(pandas.__version__)"')
  assert.match(stdout, /^\d+\.\d+\.\d+\n$/, stderr)
  await restored.destroy()
  await isorun.deleteSnapshot(id)
}

export async function read_and_write_files() {
  const { Isorun } = await import('isorun')
  const sandbox = await new Isorun().create()
  const { contents, entries } = await run('### Read and write files', { sandbox }, ['contents', 'entries'])
  assert.equal(contents, '{"env":"prod"}')
  assert.deepEqual(entries, [{ name: 'config.json' }])
  await sandbox.destroy()
}

export async function expose_a_guest_port() {
  const { Isorun } = await import('isorun')
  const sandbox = await new Isorun().create()
  const server = "require('http').createServer((q, a) => a.end('guest ' + q.url)).listen(3000)"
  await sandbox.exec(`nohup setsid node -e "${server}" >/dev/null 2>&1 &`)
  const { url } = await run('### Expose a guest port over HTTPS', { sandbox }, ['url'])
  const headers = { Authorization: `Bearer ${key}` }
  const deadline = Date.now() + 30_000
  let answer = await fetch(url, { headers })
  while (answer.status === 502 && Date.now() < deadline) answer = await fetch(url, { headers })
  assert.equal(await answer.text(), 'guest /')
  assert.equal((await fetch(url)).status, 401)
  await sandbox.destroy()
}
