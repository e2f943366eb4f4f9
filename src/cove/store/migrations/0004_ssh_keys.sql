-- Public keys that may log in over SSH as their project. One key may be of several projects.
CREATE TABLE ssh_keys (
    id            TEXT PRIMARY KEY,
    project       TEXT NOT NULL REFERENCES projects (id),
    name          TEXT NOT NULL,
    type          TEXT NOT NULL,
    public_key    TEXT NOT NULL,             -- the base64 of a line of authorized_keys
    fingerprint   TEXT NOT NULL,             -- SHA256:…, as ssh-keygen -l shows it
    created_at    DOUBLE PRECISION NOT NULL,
    last_used_at  DOUBLE PRECISION,
    UNIQUE (project, fingerprint)
);
CREATE INDEX ssh_keys_by_fingerprint ON ssh_keys (fingerprint, created_at);
