// What cases share: how they reach the server (URL with the prefix, KEY, IMAGE of their sandboxes), and what they wait for.
import { Isorun } from 'isorun'

export const url = process.env.URL
export const key = process.env.KEY
export const image = process.env.IMAGE

/** A client as a caller makes it. */
export function client(options = {}) {
  return new Isorun({ apiKey: key, apiUrl: url, ...options })
}

/** A sandbox for one case. */
export async function withSandbox(use, options = {}) {
  const isorun = client()
  const sandbox = await isorun.create({ image, ...options })
  try {
    return await use(sandbox, isorun)
  } finally {
    await sandbox.destroy().catch(() => {})
    isorun.close()
  }
}

/** Ask until the answer is true: other things happen on the machine. */
export async function eventually(ask, what) {
  const deadline = Date.now() + 30_000
  for (;;) {
    const answer = await ask()
    if (answer) return answer
    if (Date.now() > deadline) throw new Error(`not within 30 s: ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
}

/** The error that a promise ends with. */
export async function failure(promise) {
  try {
    await promise
  } catch (error) {
    return error
  }
  throw new Error('it did not fail')
}
