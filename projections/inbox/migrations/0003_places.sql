ALTER TABLE conversations ADD COLUMN last_part BIGINT NOT NULL DEFAULT 0;
UPDATE conversations SET last_part=COALESCE((SELECT part FROM messages WHERE messages.id=conversations.last_id), 0);
