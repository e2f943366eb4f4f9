"""The native API, version 1: docs/reference/native-api.md is its contract."""
