"""The awaited surface, published as `cove.aio`: the same names as `cove`, the same arguments.

It adds nothing of its own: requests, parsing, retries and errors are those of `cove.sdk`. What differs: properties
answer from what is known and never ask the server, and `files` has `read` and `write` where the other has a mapping.
"""
