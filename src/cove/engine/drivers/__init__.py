"""One file per isolation driver, named only by `engine/registry.py`."""
