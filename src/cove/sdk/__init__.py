"""The Python client of Cove: one public surface, synchronous here and awaited in `cove.aio`.

What it is not: it knows the wire (`docs/reference/native-api.md`) and nothing of the server's code. It imports the
standard library, h11, where it speaks TCP or asyncio httpx2, and for terminals websockets. People import `cove`, never
`cove.sdk`.

To add an operation: a builder in `calls.py`, `file_calls.py` or `server_calls.py`, a method in `sandbox.py` (or
`files.py`, `jobs.py`, `client.py`), its awaited twin under `sdk/aio/`; `tests/unit/sdk/test_signatures.py` names the
twin that is missing.
"""
