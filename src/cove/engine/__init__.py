"""L2: runs sandboxes: drivers (how a box is isolated), what they stand on, the warm pool, one supervisor per sandbox.

Knows nothing of callers, keys, projects or HTTP. May import `agentlink` and `model` only; reports upwards by values and
by the ports it declares (`supervisor.Journal`).
"""
