"""`cove`, the command line: a client of the SDK, with one file per noun.

Only `serve`, `setup`, `doctor`, `service`, `config` and `open` know the server's code, inside the functions that
use it.

To add a command: a file with a `click` command in it, a row in `main.COMMANDS`, a test, then
`python -m cove.cli.reference > docs/reference/cli.md`. Import nothing heavy at the top: `cove exec` has 80 ms for all.
"""
