-- Templates: a name of a project for a snapshot, of which `ready` copies are kept ready to be claimed.
CREATE TABLE templates (
    project     TEXT NOT NULL REFERENCES projects (id),
    name        TEXT NOT NULL,
    snapshot    TEXT NOT NULL,
    ready       INTEGER NOT NULL,
    created_at  DOUBLE PRECISION NOT NULL,
    created_by  TEXT NOT NULL,
    PRIMARY KEY (project, name)
);
CREATE INDEX templates_by_snapshot ON templates (snapshot);
