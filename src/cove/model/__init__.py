"""L0: frozen values, ids, units, states, errors. No I/O, no import of any other layer."""
