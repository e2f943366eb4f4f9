"""Images on this machine: those that `cove setup` made (`builtin.py`) and those of projects (`store.py`).

Pulling: `transfer.py` has skopeo fetch manifests and blobs through `outlet.py`, which decides what may be reached
(`addresses.py`); `manifests.py` reads them; `unpack.py` makes a tree of the layers. Which image a name means is decided
in `core/images.py`.
"""
