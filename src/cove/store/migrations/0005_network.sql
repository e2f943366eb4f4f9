-- What a project's sandboxes get when they ask for no network of their own (JSON of a NetworkRequest; null: none).
ALTER TABLE projects ADD COLUMN network TEXT;

-- Network profiles that the operator made, or changed of those that come with Cove.
CREATE TABLE network_profiles (
    name        TEXT PRIMARY KEY,
    profile     TEXT NOT NULL,              -- JSON
    changed_at  DOUBLE PRECISION NOT NULL
);
