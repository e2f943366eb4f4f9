// Snapshots, forks and hibernation: memory really goes along. For a server with real sandboxes.
import assert from 'node:assert/strict'
import { IsorunError } from 'isorun'
import { client, eventually, failure, withSandbox } from './support.mjs'

const FORKS = Number(process.env.FORKS ?? 3)

// Counts in memory, beside a random word that it never wrote down before it was asked to.
const COUNTER = `
const word = require('crypto').randomBytes(8).toString('hex')
let n = 0
setInterval(() => { n++ }, 10)
require('net').createServer((s) => s.end(word + ' ' + n + '\\n')).listen(7000, '127.0.0.1')
`
const ASK = `node -e "require('net').connect(7000, '127.0.0.1').pipe(process.stdout)"`

async function status(promise) {
  const error = await failure(promise)
  assert.ok(error instanceof IsorunError, String(error?.stack))
  return error.status
}

async function startCounter(sandbox) {
  await sandbox.writeFile('/app/counter.js', COUNTER)
  await sandbox.exec('nohup setsid node /app/counter.js >/dev/null 2>&1 &')
  return await eventually(async () => {
    const found = await ask(sandbox)
    return found.n > 5 && found
  }, 'the counter')
}

async function ask(sandbox) {
  const { stdout } = await sandbox.exec(ASK, 120)
  const [word, n] = stdout.trim().split(' ')
  return { word, n: Number(n) }
}

export async function a_fork_goes_on_in_each_child() {
  await withSandbox(async (parent) => {
    const before = await startCounter(parent)
    const workers = await parent.fork(FORKS)
    try {
      assert.equal(workers.length, FORKS)
      assert.equal(new Set(workers.map((one) => one.id)).size, FORKS)
      const found = await Promise.all(workers.map(ask))
      for (const one of found) {
        assert.equal(one.word, before.word)
        assert.ok(one.n >= before.n, `${one.n} < ${before.n}`)
      }
      await Promise.all(workers.map((one, n) => one.writeFile('/app/own', `${n}`)))
      const own = await Promise.all(workers.map((one) => one.readFile('/app/own')))
      assert.deepEqual(own, workers.map((_, n) => `${n}`))
      assert.equal(await status(parent.readFile('/app/own')), 404)
      for (const one of workers) {
        const shape = (box) => [box.image, box.vcpus, box.memMiB, box.diskMiB]
        assert.deepEqual(shape(one), shape(parent))
        assert.ok(one.createMs > 0)
      }
      const again = await eventually(async () => {
        const now = await ask(workers[0])
        return now.n > found[0].n && now
      }, 'the counter of a child')
      assert.equal(again.word, before.word)
      const first = (await workers[0].auditLog())[0]
      assert.deepEqual([first.event, first.data.parent], ['sandbox.forked', parent.id])
      assert.equal((await ask(parent)).word, before.word)
    } finally {
      await Promise.all(workers.map((one) => one.destroy()))
    }
    const [only, ...others] = await parent.fork()
    assert.deepEqual(others, [])
    await only.destroy()
  }, { image: 'node:22-slim', memMiB: 512 })
}

export async function a_snapshot_is_restored_more_than_once() {
  const isorun = client()
  const base = await isorun.create({ image: 'node:22-slim', memMiB: 512 })
  const before = await startCounter(base)
  await base.writeFile('/app/kept', 'kept')
  const snapshot = await base.snapshot()
  assert.equal(snapshot.runId, base.id)
  assert.ok(snapshot.sizeBytes > 0)
  assert.match(snapshot.createdAt, /Z$/)
  assert.equal((await ask(base)).word, before.word) // it went on
  const [listed] = (await isorun.listSnapshots()).filter((one) => one.id === snapshot.id)
  assert.deepEqual(listed, snapshot)
  await base.writeFile('/app/kept', 'changed')
  const one = await isorun.restore(snapshot.id)
  await base.destroy()
  const two = await isorun.restore(snapshot.id)
  for (const restored of [one, two]) {
    assert.notEqual(restored.id, base.id)
    assert.deepEqual([restored.image, restored.memMiB], ['node:22-slim', 512])
    assert.equal(await restored.readFile('/app/kept'), 'kept')
    const found = await ask(restored)
    assert.equal(found.word, before.word)
    assert.ok(found.n >= before.n)
    await restored.destroy()
  }
  await isorun.deleteSnapshot(snapshot.id)
  assert.equal(await status(isorun.deleteSnapshot(snapshot.id)), 404)
  assert.equal(await status(isorun.restore(snapshot.id)), 404)
}

export async function hibernation_keeps_what_runs_and_refuses_work() {
  await withSandbox(async (sandbox, isorun) => {
    const before = await startCounter(sandbox)
    await sandbox.hibernate()
    assert.equal((await sandbox.info()).status, 'hibernated')
    assert.ok((await isorun.list()).some((one) => one.id === sandbox.id))
    const refused = [
      sandbox.exec('true'), sandbox.readFile('/app/counter.js'), sandbox.writeFile('/x', 'x'), sandbox.readdir('/app'),
    ]
    assert.deepEqual(await Promise.all(refused.map(status)), [409, 409, 409, 409])
    const error = await failure(sandbox.exec('true'))
    assert.equal(JSON.parse(error.body).error, 'sandbox is hibernated')
    await sandbox.hibernate()
    await sandbox.resume()
    await sandbox.resume()
    assert.equal((await sandbox.info()).status, 'running')
    const after = await ask(sandbox)
    assert.equal(after.word, before.word)
    assert.ok(after.n >= before.n)
    const events = (await sandbox.auditLog()).map((entry) => entry.event)
    assert.ok(events.includes('sandbox.hibernated') && events.includes('sandbox.resumed'), events.join())
  }, { image: 'node:22-slim', memMiB: 512 })
}
