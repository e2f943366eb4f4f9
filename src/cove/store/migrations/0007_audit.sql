-- The audit trail: one chain per project, and in it one per sandbox. Written only by appending; retention takes from the
-- front. What the HMACs cover is in model/auditchain.py. Each line's `seq` is one more than that of the line before.
CREATE TABLE audit (
    project       TEXT NOT NULL,
    seq           BIGINT NOT NULL,
    at            DOUBLE PRECISION NOT NULL,
    sandbox       TEXT,
    sandbox_seq   BIGINT,
    event         TEXT NOT NULL,
    actor         TEXT NOT NULL,              -- JSON
    data          TEXT NOT NULL,              -- JSON
    sandbox_hmac  TEXT,
    hmac          TEXT NOT NULL,
    PRIMARY KEY (project, seq)
) WITHOUT ROWID; -- a commit writes whole pages: the fewer trees, the cheaper each line
CREATE INDEX audit_by_sandbox ON audit (sandbox, seq) WHERE sandbox IS NOT NULL;

-- Where each chain goes on (`sandbox` empty: the project's own), and, once its beginning is gone, the signed line that
-- says so.
CREATE TABLE audit_chains (
    project     TEXT NOT NULL,
    sandbox     TEXT NOT NULL DEFAULT '',
    seq         BIGINT NOT NULL,
    last        TEXT NOT NULL,
    anchor      TEXT,
    anchor_seq  BIGINT,
    PRIMARY KEY (project, sandbox)
) WITHOUT ROWID;

-- The last ticket that became a line, in the same transaction as the line: so each becomes one once.
CREATE TABLE audit_mark (
    id      INTEGER PRIMARY KEY CHECK (id = 0),
    ticket  BIGINT NOT NULL
);
INSERT INTO audit_mark (id, ticket) VALUES (0, 0);
