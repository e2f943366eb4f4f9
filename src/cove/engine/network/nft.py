"""libnftables: rules as text, for what is said once at the start. What changes per sandbox goes by `nfnetlink.py`.

Linked at run time (libnftables.so.1, the library of the program `nft`), so that a machine without it still starts: its
sandboxes have no network then, and say why.
"""

from __future__ import annotations

import ctypes
from typing import Final

LIBRARY: Final = "libnftables.so.1"


class NfTables:
    """A context of libnftables, for the network namespace of the thread that makes it. Used by that thread only.

    Raises: OSError where the library is not installed.
    """

    def __init__(self) -> None:
        self._library = ctypes.CDLL(LIBRARY)
        self._library.nft_ctx_new.restype = ctypes.c_void_p
        self._library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
        self._library.nft_ctx_get_output_buffer.restype = ctypes.c_char_p
        self._context = ctypes.c_void_p(self._library.nft_ctx_new(0))
        if not self._context:
            raise OSError("libnftables cannot speak to the kernel")
        self._library.nft_ctx_buffer_output(self._context)
        self._library.nft_ctx_buffer_error(self._context)

    def run(self, text: str) -> str:
        """Do what `text` says, as `nft -f` would: all of it or nothing. Returns what is printed. Raises: OSError."""
        code = self._library.nft_run_cmd_from_buffer(self._context, text.encode())
        said: bytes = self._library.nft_ctx_get_error_buffer(self._context) or b""
        printed: bytes = self._library.nft_ctx_get_output_buffer(self._context) or b""
        if code != 0:
            lines = said.decode(errors="replace").strip().splitlines()
            raise OSError(lines[0] if lines else "nftables refused")
        return printed.decode(errors="replace")

    def close(self) -> None:
        """Free the context. Idempotent."""
        if self._context:
            self._library.nft_ctx_free(self._context)
            self._context = ctypes.c_void_p()


def run_once(text: str) -> str:
    """Do what `text` says in the namespace of the calling thread, with a context of its own. Raises: OSError."""
    context = NfTables()
    try:
        return context.run(text)
    finally:
        context.close()
