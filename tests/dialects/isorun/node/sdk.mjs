// Every method and option of the client that needs no memory kept; that is in state.mjs.
import assert from 'node:assert/strict'
import { Isorun, IsorunError } from 'isorun'
import { client, eventually, failure, image, key, url, withSandbox } from './support.mjs'

const scratch = () => `/tmp/isorun-sdk-${Math.random().toString(16).slice(2)}`

async function refused(promise, status, says = '') {
  const error = await failure(promise)
  assert.ok(error instanceof IsorunError, String(error?.stack))
  assert.equal(error.name, 'IsorunError')
  assert.equal(error.status, status, error.message)
  assert.ok(error.message.startsWith(`HTTP ${status}: `), error.message)
  assert.deepEqual(Object.keys(JSON.parse(error.body)), ['error'])
  assert.ok(error.body.includes(says), `${error.body} does not say ${says}`)
}

// The client.

export async function constructor_takes_the_key_and_the_url_from_the_environment() {
  delete process.env.ISORUN_API_KEY
  assert.throws(() => new Isorun(), /Missing API key/)
  assert.throws(() => new Isorun({ apiKey: 'isorun_live_local_test' }), /Cannot derive runner endpoint/)
  assert.equal(new Isorun({ apiKey: 'isorun_live_eu_1_2' }).apiUrl, 'https://run-eu.isorun.ai')
  process.env.ISORUN_API_KEY = key
  process.env.ISORUN_API_URL = `${url}/`
  try {
    const isorun = new Isorun()
    assert.equal(isorun.apiUrl, url)
    assert.ok(Array.isArray(await isorun.list()))
    isorun.close()
  } finally {
    delete process.env.ISORUN_API_KEY
    delete process.env.ISORUN_API_URL
  }
}

export async function connect_and_close_need_no_other_transport() {
  const isorun = client()
  await isorun.connect()
  assert.ok(Array.isArray(await isorun.list()))
  isorun.close()
  assert.notEqual(await failure(isorun.list()), undefined)
}

export async function the_root_of_the_server_serves_it_too() {
  const isorun = client({ apiUrl: url.replace(/\/isorun$/, '') })
  assert.ok(Array.isArray(await isorun.list()))
}

export async function a_wrong_key_is_401() {
  for (const apiKey of ['nobody', 'isorun_live_local_0123456789abcdef_00', `${key}x`]) {
    await refused(client({ apiKey }).list(), 401)
  }
}

// create, get, list, info, destroy.

export async function create_answers_the_record_with_its_defaults() {
  await withSandbox(async (sandbox) => {
    assert.match(sandbox.id, /^run[0-9a-f]{16}$/)
    assert.equal(sandbox.image, image)
    assert.deepEqual([sandbox.vcpus, sandbox.memMiB, sandbox.diskMiB], [1, 1024, 4096])
    assert.ok(Number.isInteger(sandbox.createMs) && sandbox.createMs > 0, `${sandbox.createMs}`)
    const info = await sandbox.info()
    assert.match(info.createdAt, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$/)
    assert.deepEqual(info, {
      id: sandbox.id, status: 'running', image, vcpus: 1, memMiB: 1024, diskMiB: 4096,
      createMs: sandbox.createMs, createdAt: info.createdAt,
    })
  })
}

export async function create_takes_sizes() {
  await withSandbox(async (sandbox) => {
    assert.deepEqual([sandbox.vcpus, sandbox.memMiB, sandbox.diskMiB], [2, 512, 1024])
    const info = await sandbox.info()
    assert.deepEqual([info.vcpus, info.memMiB, info.diskMiB], [2, 512, 1024])
  }, { vcpus: 2, memMiB: 512, diskMiB: 1024 })
}

export async function create_refuses_what_cannot_be() {
  const isorun = client()
  for (const wrong of [
    { vcpus: 0 }, { vcpus: 17 }, { vcpus: '2' }, { memMiB: 127 }, { memMiB: 65537 }, { memMiB: 1.5 }, { diskMiB: -1 },
    { timeoutSec: -1 }, { timeoutSec: 'x' }, { image: '' }, { image: 'localhost/no-such-image:1' }, { image: 7 },
    { network: 7 }, { networkProfile: 'unrestricted', network: { deny: ['0.0.0.0/0'] } }, { credentials: 'x' },
  ]) {
    await refused(isorun.create({ image, ...wrong }), 400)
  }
}

export async function create_can_be_aborted() {
  const error = await failure(client().create({ image }, { signal: AbortSignal.abort() }))
  assert.equal(error.name, 'AbortError')
}

export async function get_is_null_for_what_is_unknown() {
  const isorun = client()
  assert.equal(await isorun.get('run0123456789abcdef'), null)
  assert.equal(await isorun.get('x'), null)
  await withSandbox(async (sandbox) => {
    const found = await isorun.get(sandbox.id)
    assert.deepEqual([found.id, found.image, found.vcpus], [sandbox.id, image, 1])
  })
}

export async function list_has_what_runs() {
  await withSandbox(async (sandbox, isorun) => {
    assert.ok((await isorun.list()).some((one) => one.id === sandbox.id && one.memMiB === 1024))
  })
}

export async function destroy_tells_what_was_used_and_the_history_keeps_it() {
  const isorun = client()
  const sandbox = await isorun.create({ image })
  await sandbox.exec('i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done')
  const result = await sandbox.destroy()
  assert.equal(result.status, 'destroyed')
  assert.ok(Number.isInteger(result.cpuMs) && Number.isInteger(result.memPeakBytes), JSON.stringify(result))
  assert.ok(Number.isInteger(result.uptimeMs) && result.uptimeMs > 0)
  assert.ok(result.costCents > 0 && result.costCents < 1)
  await refused(sandbox.destroy(), 404)
  await refused(sandbox.info(), 404)
  await refused(sandbox.exec('true'), 404)
  assert.equal(await isorun.get(sandbox.id), null)
  assert.ok(!(await isorun.list()).some((one) => one.id === sandbox.id))
  const entry = (await isorun.history()).find((one) => one.id === sandbox.id)
  assert.deepEqual(
    [entry.image, entry.vcpus, entry.memMiB, entry.uptimeMs, entry.cpuMs, entry.memPeakBytes, entry.costCents],
    [image, 1, 1024, result.uptimeMs, result.cpuMs, result.memPeakBytes, result.costCents],
  )
  assert.ok(entry.createMs > 0 && entry.createdAt <= entry.destroyedAt, JSON.stringify(entry))
}

export async function history_is_newest_first() {
  const isorun = client()
  for (let n = 0; n < 2; n++) await (await isorun.create({ image })).destroy()
  const ends = (await isorun.history()).map((one) => one.destroyedAt)
  assert.deepEqual(ends, [...ends].sort().reverse())
}

export async function usage_adds_up() {
  await withSandbox(async (sandbox, isorun) => {
    const usage = await isorun.usage()
    assert.ok(usage.activeSandboxes >= 1 && usage.historySandboxes >= 0)
    assert.ok(Math.abs(usage.totalCostCents - usage.activeCostCents - usage.historyCostCents) < 1e-6)
    assert.ok(usage.cpuSeconds >= 0 && usage.memSeconds >= 0)
    assert.match(usage.asOf, /Z$/)
  })
}

// exec.

export async function exec_keeps_the_streams_apart() {
  await withSandbox(async (sandbox) => {
    assert.deepEqual(await sandbox.exec('echo out; echo err >&2; exit 3'), { exitCode: 3, stdout: 'out\n', stderr: 'err\n' })
    assert.deepEqual(await sandbox.exec('printf "äöü€𝄞"'), { exitCode: 0, stdout: 'äöü€𝄞', stderr: '' })
    assert.equal((await sandbox.exec("printf '\\377'")).stdout, '�')
    assert.equal((await sandbox.exec('no-such-program')).exitCode, 127)
    assert.equal((await sandbox.exec('id -u')).stdout, '0\n')
  })
}

export async function exec_has_a_time_limit() {
  await withSandbox(async (sandbox) => {
    const result = await sandbox.exec('echo before; sleep 600', 1)
    assert.deepEqual([result.exitCode, result.stdout], [124, 'before\n'])
    assert.ok(result.stderr.endsWith('command timed out after 1s'), result.stderr)
  })
}

export async function exec_leaves_what_runs_in_the_background() {
  await withSandbox(async (sandbox) => {
    const file = scratch()
    const began = Date.now()
    await sandbox.exec(`nohup setsid sh -c 'sleep 1; echo done >${file}' >/dev/null 2>&1 &`)
    assert.ok(Date.now() - began < 30_000)
    await eventually(async () => (await sandbox.exec(`cat ${file}`)).stdout === 'done\n', 'the background command')
    await sandbox.exec(`rm ${file}`)
  })
}

export async function exec_can_be_aborted_which_kills_the_command() {
  await withSandbox(async (sandbox) => {
    const file = scratch()
    const stop = new AbortController()
    const running = failure(sandbox.exec(`echo $$ >${file}; sleep 600`, 600, { signal: stop.signal }))
    const pid = await eventually(async () => (await sandbox.exec(`cat ${file}`)).stdout.trim(), 'the command to run')
    stop.abort()
    assert.equal((await running).name, 'AbortError')
    await eventually(async () => (await sandbox.exec(`kill -0 ${pid}`)).exitCode !== 0, 'the command to be killed')
    await sandbox.exec(`rm ${file}`)
  })
}

export async function exec_gives_large_outputs() {
  await withSandbox(async (sandbox) => {
    const { stdout } = await sandbox.exec('yes 0123456789abcde | head -c 4000000', 120)
    assert.equal(stdout.length, 4_000_000)
  })
}

export async function exec_runs_a_hundred_at_once() {
  await withSandbox(async (sandbox) => {
    const results = await Promise.all(Array.from({ length: 100 }, (_, n) => sandbox.exec(`echo ${n}`, 120)))
    assert.deepEqual(results.map((one) => one.stdout), Array.from({ length: 100 }, (_, n) => `${n}\n`))
  })
}

export async function exec_refuses_what_is_no_command() {
  await withSandbox(async (sandbox) => {
    await refused(sandbox.exec(''), 400)
    await refused(sandbox.exec('a\0b'), 400)
    await refused(sandbox.exec(7), 400)
    await refused(sandbox.exec('true', -1), 400)
    await refused(sandbox.exec('true', 'x'), 400)
  })
}

// Files.

export async function files_go_in_and_out() {
  await withSandbox(async (sandbox) => {
    const home = scratch()
    await sandbox.writeFile(`${home}/deep/er/text`, 'äöü\n')
    assert.equal(await sandbox.readFile(`${home}/deep/er/text`), 'äöü\n')
    await sandbox.writeFile(`${home}/deep/er/text`, 'shorter')
    assert.equal(await sandbox.readFile(`${home}/deep/er/text`), 'shorter')
    await sandbox.writeFile(`${home}/empty`, '')
    assert.equal(await sandbox.readFile(`${home}/empty`), '')
    const bytes = new Uint8Array(300).map((_, n) => n)
    await sandbox.writeFile(`${home}/bytes`, bytes.subarray(10, 290))
    const { stdout } = await sandbox.exec(`od -An -tu1 -v ${home}/bytes | tr -s ' \\n' ' '`)
    assert.deepEqual(stdout.trim().split(' ').map(Number), Array.from(bytes.subarray(10, 290)))
    await sandbox.writeFile(`${home}/with blank & ümlaut?#%`, 'x')
    assert.equal(await sandbox.readFile(`${home}/with blank & ümlaut?#%`), 'x')
    const names = (await sandbox.readdir(home)).map((one) => one.name).sort()
    assert.deepEqual(names, ['bytes', 'deep', 'empty', 'with blank & ümlaut?#%'])
    await sandbox.exec(`rm -r ${home}`)
  })
}

export async function files_may_be_large() {
  await withSandbox(async (sandbox) => {
    const path = scratch()
    const text = 'isorun! '.repeat(1_000_000)
    await sandbox.writeFile(path, text)
    assert.ok((await sandbox.readFile(path)) === text)
    await sandbox.exec(`rm ${path}`)
  })
}

export async function files_that_are_none_are_refused() {
  await withSandbox(async (sandbox) => {
    await refused(sandbox.readFile('/no/such/file'), 404)
    await refused(sandbox.readFile('/tmp'), 400)
    await refused(sandbox.readdir('/no/such/directory'), 404)
    for (const path of ['', 'relative', '/tmp/a\0b']) {
      await refused(sandbox.readFile(path), 400)
      await refused(sandbox.writeFile(path, 'x'), 400)
      await refused(sandbox.readdir(path), 400)
    }
  })
}

// The timer.

export async function set_timeout_holds_the_end_off_and_zero_switches_it_off() {
  await withSandbox(async (sandbox) => {
    await sandbox.setTimeout(0)
    await sandbox.setTimeout(600)
    await refused(sandbox.setTimeout(-1), 400)
    await refused(sandbox.setTimeout('x'), 400)
    assert.equal((await sandbox.info()).status, 'running')
  }, { timeoutSec: 60 })
}

export async function the_timer_destroys() {
  const isorun = client()
  const sandbox = await isorun.create({ image, timeoutSec: 1 })
  await eventually(async () => (await isorun.get(sandbox.id)) === null, 'the timer')
  await eventually(async () => (await isorun.history()).some((one) => one.id === sandbox.id), 'its history')
  const events = (await sandbox.auditLog()).map((entry) => entry.event)
  assert.equal(events.at(-1), 'sandbox.destroyed')
}

// The audit trail.

export async function audit_log_tells_a_life() {
  const isorun = client()
  const sandbox = await isorun.create({ image })
  await sandbox.exec('exit 3')
  await sandbox.destroy()
  const entries = await sandbox.auditLog()
  const own = entries.filter((entry) => !entry.event.startsWith('pool.'))
  assert.deepEqual(own.map((entry) => entry.event), [
    'sandbox.created', 'exec.start', 'exec.exit', 'sandbox.destroyed',
  ])
  assert.deepEqual(entries.map((entry) => entry.seq), entries.map((_, n) => n))
  for (const entry of entries) {
    assert.match(entry.timestamp, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/)
    assert.equal(entry.sandboxId, sandbox.id)
    assert.match(entry.hmac, /^sha256:[0-9a-f]{64}$/)
  }
  assert.deepEqual(own[0].data, { image, vcpus: 1, mem_mib: 1024, disk_mib: 4096 })
  assert.deepEqual(own[1].data, { command: 'exit 3' })
  assert.deepEqual([own[2].data.command, own[2].data.exit_code], ['exit 3', 3])
}

export async function audit_log_of_the_unknown_is_404() {
  await withSandbox(async (sandbox, isorun) => {
    const other = await isorun.get(sandbox.id)
    other.id = 'run0123456789abcdef'
    await refused(other.auditLog(), 404)
  })
}

// Ports.

export async function url_leads_to_the_port() {
  await withSandbox(async (sandbox) => {
    assert.equal(sandbox.url(80), `${url}/v1/runs/${sandbox.id}/proxy/80/`)
    assert.equal(sandbox.url(80, 'a?b=1'), `${url}/v1/runs/${sandbox.id}/proxy/80/a?b=1`)
    for (const port of [0, 65536, 1.5, '80']) assert.throws(() => sandbox.url(port), RangeError)
    const file = scratch()
    const page = file.replace('/tmp', '')
    const listen = 'import http.server as h; s = h.HTTPServer(("127.0.0.1", 0), h.SimpleHTTPRequestHandler);'
    const program = `${listen} open("${file}", "w").write(str(s.server_port)); s.serve_forever()`
    if ((await sandbox.exec('command -v python3')).exitCode !== 0) return // state.mjs does it with node
    await sandbox.exec(`cd /tmp; nohup setsid python3 -c '${program}' >/dev/null 2>&1 & echo $! >${file}.pid`)
    const port = Number(await eventually(async () => (await sandbox.exec(`cat ${file}`)).stdout, 'a server'))
    const headers = { Authorization: `Bearer ${key}` }
    const first = await fetch(sandbox.url(port, page), { headers })
    assert.equal(first.status, 200, await first.text())
    assert.equal(await (await fetch(sandbox.url(port, page), { headers })).text(), `${port}`)
    assert.equal((await fetch(sandbox.url(port, page))).status, 401)
    await sandbox.exec(`kill $(cat ${file}.pid); rm ${file} ${file}.pid`)
  })
}

// What else the client asks.

export async function network_profiles_are_shown() {
  const profiles = await client().networkProfiles()
  const byName = Object.fromEntries(profiles.map((one) => [one.name, one]))
  assert.deepEqual([byName.unrestricted.allow, byName.unrestricted.deny], [[], []])
  assert.deepEqual([byName['locked-down'].allow, byName['locked-down'].deny], [[], ['0.0.0.0/0']])
  for (const name of ['claude-code', 'openai', 'data-science', 'web-dev']) {
    assert.ok(byName[name].allow.length > 0, name)
    assert.deepEqual(byName[name].deny, ['0.0.0.0/0'])
  }
}

export async function snapshots_that_are_none_are_404() {
  const isorun = client()
  assert.ok(Array.isArray(await isorun.listSnapshots()))
  for (const id of ['no-such-snapshot', 'snap_0123456789abcdef', 'a/b']) {
    await refused(isorun.deleteSnapshot(id), 404)
    await refused(isorun.restore(id), 404)
  }
}

export async function fork_takes_1_to_100() {
  await withSandbox(async (sandbox) => {
    for (const count of [0, -1, 101, 1.5, 'x']) await refused(sandbox.fork(count), 400)
  })
}
