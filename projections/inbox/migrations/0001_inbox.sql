CREATE TABLE notifications (
	user_id TEXT NOT NULL, id TEXT NOT NULL, part BIGINT NOT NULL, pos BIGINT NOT NULL, at BIGINT NOT NULL,
	value BYTEA NOT NULL, read_at BIGINT, deleted_at BIGINT, PRIMARY KEY (user_id, id));
CREATE INDEX notifications_by_time ON notifications (user_id, at, id);
CREATE TABLE announcements (
	id TEXT NOT NULL PRIMARY KEY, part BIGINT NOT NULL, pos BIGINT NOT NULL, at BIGINT NOT NULL, value BYTEA NOT NULL);
CREATE INDEX announcements_by_time ON announcements (at, id);
CREATE TABLE announcement_states (
	user_id TEXT NOT NULL, id TEXT NOT NULL, read_at BIGINT, deleted_at BIGINT, PRIMARY KEY (user_id, id));
CREATE TABLE marks (
	user_id TEXT NOT NULL PRIMARY KEY, read_to BIGINT NOT NULL, deleted_to BIGINT NOT NULL);
CREATE TABLE messages (
	id TEXT NOT NULL PRIMARY KEY, conversation TEXT NOT NULL, sender TEXT NOT NULL, receiver TEXT NOT NULL,
	part BIGINT NOT NULL, pos BIGINT NOT NULL, at BIGINT NOT NULL, value BYTEA NOT NULL, read_at BIGINT);
CREATE INDEX messages_by_conversation ON messages (conversation, part, pos);
CREATE INDEX messages_unread ON messages (conversation, receiver) WHERE read_at IS NULL;
CREATE TABLE conversations (
	user_id TEXT NOT NULL, conversation TEXT NOT NULL, other TEXT NOT NULL, last_pos BIGINT NOT NULL, last_at BIGINT NOT NULL,
	last_id TEXT NOT NULL, PRIMARY KEY (user_id, conversation));
CREATE INDEX conversations_by_time ON conversations (user_id, last_at, conversation);
CREATE TABLE devices (
	token TEXT NOT NULL PRIMARY KEY, user_id TEXT NOT NULL, platform TEXT NOT NULL, registered BIGINT NOT NULL,
	at BIGINT NOT NULL, part BIGINT NOT NULL, pos BIGINT NOT NULL);
CREATE INDEX devices_by_user ON devices (user_id);
CREATE TABLE feed (
	audience TEXT NOT NULL, topic TEXT NOT NULL, part BIGINT NOT NULL, pos BIGINT NOT NULL, at BIGINT NOT NULL,
	type TEXT NOT NULL, id TEXT NOT NULL, value BYTEA NOT NULL, PRIMARY KEY (audience, topic, part, pos));
CREATE INDEX feed_by_time ON feed (at);
