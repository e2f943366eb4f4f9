-- How ports of sandboxes are reached; a port without a row: with a key of its project. Gone with the sandbox's end.
CREATE TABLE exposures (
    sandbox     TEXT NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
    port        INTEGER NOT NULL,
    access      TEXT NOT NULL,                -- key, token or public
    digest      TEXT,                         -- SHA-256 of the token, 64 hex digits; the token itself is nowhere
    host_port   INTEGER UNIQUE,               -- a port of the host that leads here
    created_at  DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (sandbox, port)
);
