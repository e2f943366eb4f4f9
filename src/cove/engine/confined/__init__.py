"""Programs that touch what strangers made (registries, layers, trees), each in a world that holds only what it needs.

`process.py` is the server's side: it starts a program in namespaces and a root of its own. The others run inside and
use nothing but the standard library: `enter.py` makes that world, `unpack.py` applies layers, `measure.py` digests a
tree. To add a program: a script here and a `Confinement` that says what it may see.
"""
