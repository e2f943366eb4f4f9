"""HTTP machinery without a dialect: operations as a table, authentication, bodies, streams, limits, metrics, OpenAPI.

Not here: any wire format (that is `dialects/`) and any rule (that is `core/`). May import core and model.
"""
