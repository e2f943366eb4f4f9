"""SSH into sandboxes: the protocol by asyncssh, everything that is done through the core. No sshd in any image.

`listener.py` opens and closes it; `gate.py` is one connection: who comes in, and what may be opened; `duplex.py` moves
bytes between a channel and the sandbox; `channel.py` is a shell, a command or sftp; `forward.py` a forwarded port.

Nothing here touches the host's files or network for a client: asyncssh's own sftp and scp servers and its forwarding
are never given the chance (`gate.py` answers every request itself; tests/unit/server/ssh holds that).
"""
