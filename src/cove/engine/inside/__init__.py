"""Files that every sandbox has: not imported by Cove, read and put into the skeleton layer (`engine/rootfs.py`)."""
