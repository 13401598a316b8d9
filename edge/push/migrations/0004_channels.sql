CREATE TABLE push_jobs_of_channels (
	channel TEXT NOT NULL DEFAULT 'fcm', id TEXT NOT NULL, user_id TEXT NOT NULL, token TEXT NOT NULL, topic TEXT NOT NULL, part BIGINT NOT NULL,
	pos BIGINT NOT NULL, at BIGINT NOT NULL, note BYTEA NOT NULL, attempts BIGINT NOT NULL, due BIGINT NOT NULL, lease BIGINT NOT NULL,
	PRIMARY KEY (channel, id));
INSERT INTO push_jobs_of_channels (id, user_id, token, topic, part, pos, at, note, attempts, due, lease)
	SELECT id, user_id, token, topic, part, pos, at, note, attempts, due, lease FROM push_jobs;
DROP TABLE push_jobs;
ALTER TABLE push_jobs_of_channels RENAME TO push_jobs;
CREATE INDEX push_jobs_by_due ON push_jobs (channel, due);
CREATE TABLE push_quarantine_of_channels (channel TEXT NOT NULL DEFAULT 'fcm', hash TEXT NOT NULL, at BIGINT NOT NULL, PRIMARY KEY (channel, hash));
INSERT INTO push_quarantine_of_channels (hash, at) SELECT hash, at FROM push_quarantine;
DROP TABLE push_quarantine;
ALTER TABLE push_quarantine_of_channels RENAME TO push_quarantine;
CREATE TABLE push_pause_of_channels (channel TEXT NOT NULL DEFAULT 'fcm' PRIMARY KEY, ends BIGINT NOT NULL);
INSERT INTO push_pause_of_channels (ends) SELECT ends FROM push_pause WHERE id=1;
DROP TABLE push_pause;
ALTER TABLE push_pause_of_channels RENAME TO push_pause;
