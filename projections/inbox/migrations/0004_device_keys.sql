ALTER TABLE devices RENAME TO devices_by_token;
DROP INDEX devices_by_user;
CREATE TABLE devices (
	hash TEXT NOT NULL PRIMARY KEY, token TEXT NOT NULL, user_id TEXT NOT NULL, platform TEXT NOT NULL, registered BIGINT NOT NULL,
	at BIGINT NOT NULL, part BIGINT NOT NULL, pos BIGINT NOT NULL);
CREATE INDEX devices_by_user ON devices (user_id);
