"""The isol8 protocol: run code for a result, alone or in a session. What it says: docs/protocols/isol8.md."""
