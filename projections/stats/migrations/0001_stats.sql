CREATE TABLE events (
	user_id TEXT NOT NULL, type TEXT NOT NULL, topic TEXT NOT NULL, part BIGINT NOT NULL, pos BIGINT NOT NULL,
	at BIGINT NOT NULL, detail TEXT NOT NULL, PRIMARY KEY (user_id, type, topic, part, pos)) WITHOUT ROWID;
