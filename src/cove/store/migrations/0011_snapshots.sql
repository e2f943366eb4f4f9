-- `record` is the whole snapshot as JSON; the other columns repeat what a query asks for. A sandbox or a parent may be
-- gone, so neither is a reference.
CREATE TABLE snapshots (
    id            TEXT PRIMARY KEY,
    seq           BIGINT NOT NULL UNIQUE,
    project       TEXT NOT NULL,
    name          TEXT NOT NULL,
    state         TEXT NOT NULL,
    sandbox       TEXT NOT NULL,
    image_digest  TEXT NOT NULL,
    record        TEXT NOT NULL
);
CREATE INDEX snapshots_by_project ON snapshots (project, seq);
CREATE UNIQUE INDEX snapshots_by_name ON snapshots (project, name);

CREATE TABLE snapshot_tags (
    snapshot  TEXT NOT NULL REFERENCES snapshots (id) ON DELETE CASCADE,
    key       TEXT NOT NULL,
    value     TEXT NOT NULL,
    PRIMARY KEY (snapshot, key)
);
CREATE INDEX snapshot_tags_by_pair ON snapshot_tags (key, value);

-- Forks that are being made: all children or none, so a start ends those of a fork that it finds here. `id` is also that
-- of the checkpoint that they are made of; `children` are ids with a space between.
CREATE TABLE forks (
    id          TEXT PRIMARY KEY,
    project     TEXT NOT NULL,
    sandbox     TEXT NOT NULL,
    children    TEXT NOT NULL,
    created_at  DOUBLE PRECISION NOT NULL
);

-- What a request made is one sandbox, several, or a snapshot: ids with a space between.
ALTER TABLE idempotency RENAME COLUMN sandbox TO made;
