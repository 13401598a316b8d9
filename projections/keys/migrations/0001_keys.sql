CREATE TABLE key_devices (
	user_id TEXT NOT NULL, device_id TEXT NOT NULL, identity_key TEXT NOT NULL, stored BIGINT NOT NULL,
	PRIMARY KEY (user_id, device_id));
CREATE TABLE prekeys (
	user_id TEXT NOT NULL, device_id TEXT NOT NULL, id TEXT NOT NULL, n BIGINT NOT NULL, key TEXT NOT NULL, taken_by TEXT,
	PRIMARY KEY (user_id, device_id, id));
CREATE INDEX prekeys_left ON prekeys (user_id, device_id, n) WHERE taken_by IS NULL;
