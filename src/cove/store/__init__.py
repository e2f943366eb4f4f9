"""What Cove remembers: one SQLite database in WAL mode. It holds rows, not rules.

`database.py` opens and migrates, `writer.py` is the one thread that writes, and each noun has its own module with
its SQL as named constants. It imports `model` only. Only SQL that PostgreSQL also takes is used in statements
(`ON CONFLICT`, `RETURNING`), because that is the store when several nodes share one.

To change the schema: a new `migrations/NNNN_words.sql`, never an edit of one that was released.
"""
