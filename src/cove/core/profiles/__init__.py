"""Network profiles: policies with a name. `builtin.toml` has those of Cove; the operator's are in the store."""
