"""Services that credentials are for: the catalogue as data (`*.toml`), and those that the operator adds.

To add one that everybody gets: a file here; its fields are those of `model/credentials.py:Service`.
"""
