-- Keys for services that sandboxes use through the broker. `sandbox` '' : the project's own. Gone with the sandbox's end.
CREATE TABLE credentials (
    sandbox     TEXT NOT NULL,
    project     TEXT NOT NULL REFERENCES projects (id),
    service     TEXT NOT NULL,
    sealed      TEXT,                        -- the key, encrypted by secrets.key; null: the project's is used
    endpoints   TEXT NOT NULL,               -- which requests may be made, as JSON
    created_at  DOUBLE PRECISION NOT NULL,
    changed_at  DOUBLE PRECISION NOT NULL,   -- when the key was
    PRIMARY KEY (sandbox, project, service)
);

-- Services that the operator added to the catalogue.
CREATE TABLE services (
    name    TEXT PRIMARY KEY,
    record  TEXT NOT NULL
);
