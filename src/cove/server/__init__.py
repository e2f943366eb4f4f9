"""The composition root: settings, wiring, process. The only layer that reads the environment and names every other."""
