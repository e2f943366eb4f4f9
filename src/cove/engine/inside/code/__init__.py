"""What runs code inside a sandbox: kernels that keep their state from one run to the next.

These files are the sandbox's: they run with its own Python (3.8 or newer, the standard library alone) as `kernel.py`
below /run/cove/code, and Cove itself imports none of them. PROTOCOL.md says how they and the host speak.

`kernel.py` starts; `relay.py` is the process that speaks to the host; `executor.py` the one that runs code, by one of
the engines `plain.py`, `rich.py` (IPython) and `bridge.py` (a Jupyter kernel); `kernel.mjs` is all of it for node.
"""
