"""The host's end of the agent protocol (agent/PROTOCOL.md): codec, connection, client.

Everything that arrives here was written by a sandbox, so all of it is hostile: sizes are capped before memory is taken,
replies are decoded into closed types, a breach closes the connection. It opens no path and knows no driver, store or
dialect; it may import `cove.model` and nothing else of Cove.
"""
