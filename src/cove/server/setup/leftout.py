"""Packages that an image does without although others ask for them: compilers, debuggers, toolkits of other trees.

Debian's dependencies are for everybody: scipy brings a C++ compiler with it, IPython a debugger, matplotlib a window
toolkit. To leave them out a package that is installed already provides their names, so that apt finds nothing missing,
during the build and later in a sandbox. A real one can still be installed by its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

PACKAGE: Final = "cove-left-out"
_VERSION: Final = "9999"
"""Above every version that a dependency asks for."""


def leave_out(rootfs: Path, image: str, names: Sequence[str]) -> None:
    """Note in the package database of a tree that `names` are provided. Nothing is noted without names."""
    if not names:
        return
    fields = {
        "Package": PACKAGE,
        "Status": "install ok installed",
        "Priority": "optional",
        "Section": "metapackages",
        "Installed-Size": "0",
        "Maintainer": "Cove <root@localhost>",
        "Architecture": "all",
        "Version": _VERSION,
        "Provides": ", ".join(f"{name} (= {_VERSION})" for name in sorted(names)),
        "Description": f"what the image {image} does without; install by name what you need",
    }
    database = rootfs / "var" / "lib" / "dpkg"
    with (database / "status").open("a", encoding="utf-8") as status:
        status.write("".join(f"{field}: {value}\n" for field, value in fields.items()) + "\n")
    (database / "info" / f"{PACKAGE}.list").write_text("/.\n", encoding="utf-8")
    (database / "info" / f"{PACKAGE}.md5sums").touch()
