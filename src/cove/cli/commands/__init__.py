"""The commands, one file per noun; verbs on a sandbox share files by subject. Loaded one at a time by `cove.cli.tree`.

May import the SDK and the parts of the command line beside it; `serve`, `down`, `machine`, `service` and `config` also
import `cove.server`, inside the functions that need it. No module here imports another one.
"""
