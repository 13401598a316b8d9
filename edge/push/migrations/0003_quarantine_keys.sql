CREATE TABLE push_quarantine_by_hash (hash TEXT NOT NULL PRIMARY KEY, at BIGINT NOT NULL);
INSERT INTO push_quarantine_by_hash (hash, at)
	SELECT d.hash, q.at FROM push_quarantine q JOIN devices d ON d.token=q.token;
DROP TABLE push_quarantine;
ALTER TABLE push_quarantine_by_hash RENAME TO push_quarantine;
