// The package's tools for agents: its MCP server as a program of its own, LangChain, OpenAI Agents.
import assert from 'node:assert/strict'
import { fileURLToPath } from 'node:url'
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { StdioClientTransport } from '@modelcontextprotocol/sdk/client/stdio.js'
import { isorunTools as langchainTools } from 'isorun/langchain'
import { isorunTools as openaiTools } from 'isorun/openai-agents'
import { client, failure, key, url } from './support.mjs'

process.env.ISORUN_API_KEY = key
process.env.ISORUN_API_URL = url

export async function the_mcp_server_has_every_tool() {
  const bin = fileURLToPath(new URL('node_modules/isorun/dist/mcp-cli.js', import.meta.url))
  const env = { ISORUN_API_KEY: key, ISORUN_API_URL: url, PATH: process.env.PATH }
  const mcp = new Client({ name: 'test', version: '1' })
  await mcp.connect(new StdioClientTransport({ command: process.execPath, args: [bin], env }))
  const call = async (name, args = {}) => {
    const answer = await mcp.callTool({ name, arguments: args }, undefined, { timeout: 120_000 })
    return { text: answer.content[0].text, isError: answer.isError === true }
  }
  const tools = (await mcp.listTools()).tools.map((one) => one.name).sort()
  assert.deepEqual(tools, [
    'checkpoint', 'create_sandbox', 'destroy_sandbox', 'exec', 'hibernate', 'list_sandboxes', 'restore', 'resume', 'url',
  ])
  const sandboxId = (await call('create_sandbox', { memMiB: 512, timeoutSec: 600 })).text
  assert.match(sandboxId, /^run[0-9a-f]{16}$/)
  assert.deepEqual(await call('exec', { sandboxId, command: 'echo hi; echo no >&2; exit 3' }), {
    text: 'hi\nSTDERR:\nno\n[exit code: 3]', isError: false,
  })
  assert.ok((await call('list_sandboxes')).text.split('\n').includes(sandboxId))
  assert.equal((await call('url', { sandboxId, port: 3000, path: '/x' })).text, `${url}/v1/runs/${sandboxId}/proxy/3000/x`)
  await call('exec', { sandboxId, command: 'echo kept >/root/kept' })
  const snapshotId = (await call('checkpoint', { sandboxId })).text
  const restored = (await call('restore', { snapshotId })).text
  assert.match(restored, /^run[0-9a-f]{16}$/)
  assert.equal((await call('exec', { sandboxId: restored, command: 'cat /root/kept' })).text, 'kept')
  assert.equal((await call('hibernate', { sandboxId })).text, 'hibernated')
  assert.ok((await call('exec', { sandboxId, command: 'true' })).isError)
  assert.equal((await call('resume', { sandboxId })).text, 'running')
  for (const id of [sandboxId, restored]) {
    const done = JSON.parse((await call('destroy_sandbox', { sandboxId: id })).text)
    assert.equal(done.status, 'destroyed')
    assert.ok(done.costCents > 0)
  }
  assert.ok((await call('exec', { sandboxId, command: 'true' })).isError)
  await client().deleteSnapshot(snapshotId)
  await mcp.close()
}

export async function the_langchain_tools_share_one_sandbox() {
  const { tools, close } = await langchainTools()
  assert.deepEqual(tools.map((one) => one.name), ['code_interpreter', 'shell'])
  const [code, shell] = tools
  assert.equal(await code.invoke({ code: 'print("from", "python"); open("/tmp/x", "w").write("1")' }), 'from python')
  assert.equal(await shell.invoke({ command: 'cat /tmp/x; uname' }), '1Linux')
  assert.match(await code.invoke({ code: '1/0' }), /ZeroDivisionError[\s\S]*\[exit code: 1\]/)
  const before = (await client().list()).length
  await close()
  assert.equal((await client().list()).length, before - 1)
}

export async function the_openai_agents_tools_share_one_sandbox() {
  const isorun = client()
  const { tools, close } = await openaiTools({ isorun, image: 'python:3.12-slim', timeoutSec: 120 })
  const [code, shell] = tools
  assert.equal(await code.invoke({}, JSON.stringify({ code: 'print(6 * 7)' })), '42')
  assert.equal(await shell.invoke({}, JSON.stringify({ command: 'echo $((6 * 7))' })), '42')
  await close()
  assert.notEqual(await failure(client({ apiKey: 'nobody' }).list()), undefined)
}
