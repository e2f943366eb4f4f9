// Runs the cases of one module and writes a line of JSON for each. A case is an exported async function; what it throws
// is its failure. Arguments: the module, then names of cases (none: all).
const [, , name, ...only] = process.argv
const cases = Object.entries(await import(new URL(name, import.meta.url)))
for (const [title, run] of cases.filter(([title]) => only.length === 0 || only.includes(title))) {
  const began = Date.now()
  let error
  try {
    await run()
  } catch (raised) {
    error = String(raised?.stack ?? raised)
  }
  process.stdout.write(JSON.stringify({ case: title, ms: Date.now() - began, error }) + '\n')
}
process.exit(0) // keep-alive connections of clients that no case closed
