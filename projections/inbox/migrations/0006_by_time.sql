DROP INDEX notifications_by_time;
CREATE INDEX notifications_by_time ON notifications (user_id, at, id) WHERE deleted_at IS NULL;
CREATE INDEX notifications_unread ON notifications (user_id, at, id) WHERE deleted_at IS NULL AND read_at IS NULL;
