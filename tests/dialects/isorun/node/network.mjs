// What a sandbox may reach, as the client asks for it. For a server whose internet is the tests' world: good.example and
// evil.example answer there.
import assert from 'node:assert/strict'
import { IsorunError } from 'isorun'
import { client, failure, withSandbox } from './support.mjs'

async function reaches(sandbox, name) {
  const { exitCode, stdout } = await sandbox.exec(`curl -sS -m 20 -o /dev/null -w '%{http_code}' http://${name}/`, 60)
  return exitCode === 0 && stdout === '200'
}

async function seen(options) {
  return await withSandbox(
    async (sandbox) => [await reaches(sandbox, 'good.example'), await reaches(sandbox, 'evil.example')],
    { image: 'python:3.12-slim', ...options },
  )
}

export async function without_a_wish_all_is_open() {
  assert.deepEqual(await seen({}), [true, true])
  assert.deepEqual(await seen({ network: {} }), [true, true])
  assert.deepEqual(await seen({ networkProfile: 'unrestricted' }), [true, true])
}

export async function lists_allow_and_deny() {
  assert.deepEqual(await seen({ network: { allow: ['good.example'], deny: ['0.0.0.0/0'] } }), [true, false])
  assert.deepEqual(await seen({ network: { allow: ['good.example'] } }), [true, false])
  assert.deepEqual(await seen({ network: { deny: ['evil.example'] } }), [true, false])
  assert.deepEqual(await seen({ network: { deny: ['0.0.0.0/0'] } }), [false, false])
}

export async function a_profile_may_lock_all_and_what_is_refused_is_on_record() {
  await withSandbox(async (sandbox) => {
    assert.equal(await reaches(sandbox, 'good.example'), false)
    assert.equal((await sandbox.exec('curl -s -m 2 http://11.0.0.10/')).exitCode === 0, false)
    const deadline = Date.now() + 30_000
    let blocked = []
    while (blocked.length === 0 && Date.now() < deadline) {
      blocked = (await sandbox.auditLog()).filter((entry) => entry.event === 'network.blocked')
    }
    assert.ok(blocked.length > 0)
  }, { image: 'python:3.12-slim', networkProfile: 'locked-down' })
}

export async function credentials_stay_outside() {
  const secret = 'sk-a-real-key-that-stays-outside'
  await withSandbox(async (sandbox) => {
    const { stdout } = await sandbox.exec('env; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | tr "\\0" "\\n"')
    assert.match(stdout, /^OPENAI_API_KEY=sk-isorun-proxy-managed$/m)
    assert.match(stdout, /^OPENAI_BASE_URL=http:\/\/169\.254\.1\.1:\d+\/proxy\/openai/m)
    assert.match(stdout, /^ANTHROPIC_API_KEY=sk-ant-isorun-proxy-managed$/m)
    assert.ok(!stdout.includes(secret))
    assert.ok(!JSON.stringify(await sandbox.auditLog()).includes(secret))
  }, { image: 'python:3.12-slim', credentials: { openai: secret, anthropic: secret } })
}

export async function what_cannot_be_is_refused() {
  const isorun = client()
  for (const wrong of [
    { networkProfile: 'nobody-knows' }, { network: { allow: ['not a rule!'] } }, { network: { deny: [''] } },
    { credentials: { nobody: 'key' } },
  ]) {
    const error = await failure(isorun.create({ image: 'python:3.12-slim', ...wrong }))
    assert.ok(error instanceof IsorunError, String(error?.stack))
    assert.equal(error.status, 400, `${JSON.stringify(wrong)}: ${error.message}`)
  }
}
