-- Which drivers a project may use (words with a space between, empty: any) and which it gets unasked.
ALTER TABLE projects ADD COLUMN default_driver TEXT;
ALTER TABLE projects ADD COLUMN drivers TEXT NOT NULL DEFAULT '';
