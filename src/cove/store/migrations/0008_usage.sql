-- The meter of each sandbox, live and ended. `boot` and `at_ms` (CLOCK_MONOTONIC of that boot) say up to when it was
-- read; `rate` what is counted since, as JSON. `carry`: what is left of a nano-unit (core/prices.py).
CREATE TABLE usage_sandboxes (
    sandbox            TEXT PRIMARY KEY,
    project            TEXT NOT NULL,
    key                TEXT NOT NULL,
    name               TEXT NOT NULL,
    started_at         DOUBLE PRECISION NOT NULL,
    ended_at           DOUBLE PRECISION,
    boot               TEXT NOT NULL,
    at_ms              BIGINT NOT NULL,
    rate               TEXT NOT NULL,
    carry              BIGINT NOT NULL,
    memory_peak_bytes  BIGINT NOT NULL,
    disk_bytes         BIGINT NOT NULL,
    running_ms         BIGINT NOT NULL,
    paused_ms          BIGINT NOT NULL,
    vcpu_us            BIGINT NOT NULL,
    mib_ms             BIGINT NOT NULL,
    cpu_ms             BIGINT NOT NULL,
    sent_bytes         BIGINT NOT NULL,
    received_bytes     BIGINT NOT NULL,
    cost_nano          BIGINT NOT NULL
);
CREATE INDEX usage_sandboxes_by_end ON usage_sandboxes (ended_at);

-- What was used in each span (an hour; a day once that is old), by `start` in Unix seconds. Only ever added to.
CREATE TABLE usage_spans (
    start           BIGINT NOT NULL,
    span            TEXT NOT NULL,             -- hour or day
    project         TEXT NOT NULL,
    key             TEXT NOT NULL,
    sandbox         TEXT NOT NULL,
    running_ms      BIGINT NOT NULL,
    paused_ms       BIGINT NOT NULL,
    vcpu_us         BIGINT NOT NULL,
    mib_ms          BIGINT NOT NULL,
    cpu_ms          BIGINT NOT NULL,
    sent_bytes      BIGINT NOT NULL,
    received_bytes  BIGINT NOT NULL,
    cost_nano       BIGINT NOT NULL,
    PRIMARY KEY (start, span, project, key, sandbox)
);
CREATE INDEX usage_spans_by_project ON usage_spans (project, start);
CREATE INDEX usage_spans_by_sandbox ON usage_spans (sandbox, start);

-- All that a project's key ever spent: budgets over everything outlast the spans.
CREATE TABLE usage_spent (
    project    TEXT NOT NULL,
    key        TEXT NOT NULL,
    cost_nano  BIGINT NOT NULL,
    PRIMARY KEY (project, key)
);
