ALTER TABLE devices RENAME TO devices_by_hash;
DROP INDEX devices_by_user;
CREATE TABLE devices (
	hash TEXT NOT NULL, user_id TEXT NOT NULL, token TEXT NOT NULL, platform TEXT NOT NULL, registered BIGINT NOT NULL,
	at BIGINT NOT NULL, part BIGINT NOT NULL, pos BIGINT NOT NULL, reg_at BIGINT NOT NULL, reg_part BIGINT NOT NULL, reg_pos BIGINT NOT NULL,
	PRIMARY KEY (hash, user_id));
CREATE INDEX devices_by_user ON devices (user_id);
INSERT INTO devices (hash, user_id, token, platform, registered, at, part, pos, reg_at, reg_part, reg_pos)
	SELECT hash, user_id, token, platform, registered, at, part, pos, at, part, pos FROM devices_by_hash;
DROP TABLE devices_by_hash;
CREATE VIEW registered_devices AS
	SELECT d.hash, d.user_id, d.token, d.platform FROM devices d WHERE d.registered=1
		AND NOT EXISTS (SELECT 1 FROM devices o WHERE o.hash=d.hash AND (o.reg_at, o.reg_part, o.reg_pos) > (d.reg_at, d.reg_part, d.reg_pos));
