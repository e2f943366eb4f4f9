-- Who is told of a project's events. `seq`: the last line of the project's audit trail that was told, so the trail is the
-- outbox of every hook. `secret` is sealed.
CREATE TABLE webhooks (
    id             TEXT PRIMARY KEY,
    project        TEXT NOT NULL REFERENCES projects (id),
    url            TEXT NOT NULL,
    events         TEXT NOT NULL,             -- beginnings of events, with a space between
    secret         TEXT NOT NULL,
    created_at     DOUBLE PRECISION NOT NULL,
    seq            BIGINT NOT NULL,
    delivered_at   DOUBLE PRECISION,
    failing_since  DOUBLE PRECISION,
    failure        TEXT,
    disabled_at    DOUBLE PRECISION
);
CREATE INDEX webhooks_by_project ON webhooks (project, created_at);
