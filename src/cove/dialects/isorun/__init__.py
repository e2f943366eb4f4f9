"""The isorun protocol: runs, their commands, files, snapshots and ports. What it says: docs/protocols/isorun.md."""
