ALTER TABLE prekeys ADD COLUMN taken_at BIGINT;
UPDATE prekeys SET taken_at=0 WHERE taken_by IS NOT NULL;
CREATE INDEX prekeys_spent ON prekeys (user_id, device_id, taken_at) WHERE taken_by<>'';
