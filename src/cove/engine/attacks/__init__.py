"""Attacks from inside a sandbox: named coroutines against real boxes of every driver. For `cove doctor --attack`.

`python -m cove.engine.attacks --driver NAME --data-dir DIR` prints one JSON line per attack (`name`, `outcome`,
`tried`, `seen`, `ms`) and exits 1 when a defence broke or an attack could not be carried out. Needs root, `cove setup`,
and a data directory of its own that no server uses.

To add an attack: a coroutine `attack_<case>_<what it tries>` in the module of its group, whose docstring says what is
tried; it is found by its name. Cases are those of docs/security.md ("The cases, one by one").
"""
