// A server that is full, as the client sees it. For one with room for two sandboxes, and for sixteen connections.
import assert from 'node:assert/strict'
import net from 'node:net'
import { IsorunError } from 'isorun'
import { client, failure, image, url } from './support.mjs'

export async function a_full_server_is_429_with_its_reason() {
  const isorun = client()
  const made = [await isorun.create({ image }), await isorun.create({ image })]
  const error = await failure(isorun.create({ image }))
  assert.ok(error instanceof IsorunError)
  assert.equal(error.status, 429, error.message)
  assert.deepEqual(Object.keys(JSON.parse(error.body)), ['error'])
  await made.pop().destroy()
  made.push(await isorun.create({ image }))
  await Promise.all(made.map((one) => one.destroy()))
  isorun.close()
}

export async function no_more_connections_are_503() {
  const { hostname, port } = new URL(url)
  const held = await Promise.all(Array.from({ length: 20 }, () => new Promise((resolve) => {
    const socket = net.connect(Number(port), hostname, () => resolve(socket))
    socket.on('error', () => {})
  })))
  const error = await failure(client().list())
  assert.ok(error instanceof IsorunError, String(error?.stack))
  assert.equal(error.status, 503, error.message)
  held.forEach((socket) => socket.destroy())
}
