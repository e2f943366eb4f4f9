-- `seq` orders by creation and never by clock, so a clock that goes backwards changes no page and no order.
CREATE TABLE projects (
    id          TEXT PRIMARY KEY,
    created_at  DOUBLE PRECISION NOT NULL
);

CREATE TABLE keys (
    id            TEXT PRIMARY KEY,
    name          TEXT NOT NULL,
    project       TEXT NOT NULL REFERENCES projects (id),
    dialect       TEXT,
    scopes        TEXT NOT NULL,             -- words with a space between
    digest        TEXT NOT NULL UNIQUE,      -- SHA-256 of the key, 64 hex digits; the key itself is nowhere
    created_at    DOUBLE PRECISION NOT NULL,
    expires_at    DOUBLE PRECISION,
    revoked_at    DOUBLE PRECISION,
    last_used_at  DOUBLE PRECISION
);

-- `record` is the whole sandbox as JSON; the other columns repeat what a query asks for.
CREATE TABLE sandboxes (
    id        TEXT PRIMARY KEY,
    seq       BIGINT NOT NULL UNIQUE,
    project   TEXT NOT NULL,
    name      TEXT NOT NULL,
    state     TEXT NOT NULL,
    image     TEXT NOT NULL,
    driver    TEXT NOT NULL,
    ended_at  DOUBLE PRECISION,
    record    TEXT NOT NULL
);
CREATE INDEX sandboxes_by_project ON sandboxes (project, seq);
CREATE UNIQUE INDEX sandboxes_by_live_name ON sandboxes (project, name) WHERE ended_at IS NULL;
CREATE INDEX sandboxes_by_end ON sandboxes (ended_at);

CREATE TABLE sandbox_metadata (
    sandbox  TEXT NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
    key      TEXT NOT NULL,
    value    TEXT NOT NULL,
    PRIMARY KEY (sandbox, key)
);
CREATE INDEX sandbox_metadata_by_pair ON sandbox_metadata (key, value);

CREATE TABLE idempotency (
    project      TEXT NOT NULL,
    key          TEXT NOT NULL,
    body_sha256  TEXT NOT NULL,
    sandbox      TEXT NOT NULL,
    created_at   DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (project, key)
);
CREATE INDEX idempotency_by_time ON idempotency (created_at);

CREATE TABLE meta (
    key    TEXT PRIMARY KEY,
    value  TEXT NOT NULL
);
