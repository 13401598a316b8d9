CREATE TABLE events (
	user_id TEXT NOT NULL, type TEXT NOT NULL, topic TEXT NOT NULL, part BIGINT NOT NULL, pos BIGINT NOT NULL,
	at BIGINT NOT NULL, detail TEXT NOT NULL, ref_topic TEXT NOT NULL, ref_part BIGINT NOT NULL, ref_pos BIGINT NOT NULL,
	sessions BIGINT NOT NULL, latency_ms BIGINT NOT NULL, PRIMARY KEY (user_id, type, topic, part, pos)) WITHOUT ROWID;
CREATE VIEW nexus_events_per_hour AS
	SELECT type, strftime('%Y-%m-%d %H:00:00', at / 1000, 'unixepoch') AS hour, count(DISTINCT topic || '/' || part || '/' || pos) AS events
	FROM events GROUP BY 1, 2;
CREATE VIEW nexus_active_users AS
	SELECT date(at / 1000, 'unixepoch') AS day, count(DISTINCT user_id) AS users
	FROM events WHERE user_id <> '' AND (type IN ('presence.connected', 'message.read', 'notification.read', 'notification.deleted', 'device.registered')
		OR type = 'message' AND detail = 'sent')
	GROUP BY 1;
CREATE VIEW nexus_delivery_latency AS
	SELECT event, hour, count(*) AS deliveries,
		min(CASE WHEN place >= 0.50 * total THEN latency_ms END) AS p50_ms,
		min(CASE WHEN place >= 0.95 * total THEN latency_ms END) AS p95_ms,
		min(CASE WHEN place >= 0.99 * total THEN latency_ms END) AS p99_ms
	FROM (SELECT detail AS event, strftime('%Y-%m-%d %H:00:00', at / 1000, 'unixepoch') AS hour, latency_ms,
			row_number() OVER w AS place, count(*) OVER (PARTITION BY detail, strftime('%Y-%m-%d %H:00:00', at / 1000, 'unixepoch')) AS total
		FROM events WHERE type = 'delivery.websocket'
		WINDOW w AS (PARTITION BY detail, strftime('%Y-%m-%d %H:00:00', at / 1000, 'unixepoch') ORDER BY latency_ms))
	GROUP BY event, hour;
CREATE VIEW nexus_delivery_funnel AS
	SELECT event, count(DISTINCT CASE WHEN stage = 'log' THEN k END) AS appended,
		count(DISTINCT CASE WHEN stage = 'delivery.websocket' THEN k END) AS websocket,
		count(DISTINCT CASE WHEN stage = 'delivery.push' THEN k END) AS push,
		count(DISTINCT CASE WHEN stage <> 'log' THEN k END) AS reached
	FROM (SELECT type AS event, topic || '/' || part || '/' || pos AS k, 'log' AS stage FROM events
			WHERE type IN ('message', 'notification', 'activity', 'announcement')
		UNION ALL SELECT detail, ref_topic || '/' || ref_part || '/' || ref_pos, type FROM events
			WHERE type IN ('delivery.websocket', 'delivery.push') AND sessions > 0)
	GROUP BY event;
