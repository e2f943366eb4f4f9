-- Limits of projects and keys (`quota` as JSON, NULL: none). `parent`: the key that made a key; its limits hold too.
CREATE TABLE quotas (
    subject  TEXT NOT NULL,                    -- project or key
    id       TEXT NOT NULL,
    quota    TEXT,
    parent   TEXT,
    PRIMARY KEY (subject, id)
);
