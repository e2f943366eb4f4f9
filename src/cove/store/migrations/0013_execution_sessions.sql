-- Sessions of executions: a caller's own name for a sandbox, and what its first execution asked of it (sealed).
CREATE TABLE execution_sessions (
    project       TEXT NOT NULL,
    id            TEXT NOT NULL,
    runtime       TEXT NOT NULL,
    settings      TEXT NOT NULL,
    sandbox       TEXT,
    created_at    DOUBLE PRECISION NOT NULL,
    last_used_at  DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (project, id)
);

-- A word of its maker's about a key: who it is for. It decides nothing.
ALTER TABLE keys ADD COLUMN label TEXT NOT NULL DEFAULT '';
