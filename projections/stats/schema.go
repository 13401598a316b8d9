package stats

import "strings"

// The tables and views on ClickHouse, in words that 18.16 knows as well as today's. A row that is written twice is the
// same row: ReplacingMergeTree drops it in time, and everything that counts, counts distinct places in the log.
var schema = []string{
	`CREATE TABLE IF NOT EXISTS nexus_events (
	user_id String, type String, topic String, part Int32, pos Int64, at DateTime, detail String,
	ref_topic String, ref_part Int32, ref_pos Int64, sessions Int64, latency_ms Int64
) ENGINE = ReplacingMergeTree() PARTITION BY toYYYYMM(at) ORDER BY (user_id, type, topic, part, pos)`,

	// A generation begins where the statistics take another log on (nexus adopt): its positions may be lower.
	`CREATE TABLE IF NOT EXISTS nexus_offsets (
	topic String, part Int32, generation Int32, next Int64, log String, mark Int64
) ENGINE = ReplacingMergeTree(next) ORDER BY (topic, part, generation)`,

	`CREATE VIEW IF NOT EXISTS nexus_events_per_hour AS
SELECT type, toStartOfHour(at) AS hour, uniqExact(topic, part, pos) AS events
FROM nexus_events GROUP BY type, hour`,

	`CREATE VIEW IF NOT EXISTS nexus_active_users AS
SELECT toDate(at) AS day, uniqExact(user_id) AS users
FROM nexus_events
WHERE user_id != '' AND (type IN ('presence.connected', 'message.read', 'notification.read', 'notification.deleted', 'device.registered')
	OR type = 'message' AND detail = 'sent')
GROUP BY day`,

	`CREATE VIEW IF NOT EXISTS nexus_delivery_latency AS
SELECT event, hour, count() AS deliveries, quantileExact(0.5)(latency) AS p50_ms, quantileExact(0.95)(latency) AS p95_ms,
	quantileExact(0.99)(latency) AS p99_ms
FROM (SELECT topic, part, pos, any(detail) AS event, any(toStartOfHour(at)) AS hour, any(latency_ms) AS latency
	FROM nexus_events WHERE type = 'delivery.websocket' GROUP BY topic, part, pos)
GROUP BY event, hour`,

	`CREATE VIEW IF NOT EXISTS nexus_delivery_funnel AS
SELECT event, uniqExactIf(place, stage = 'log') AS appended, uniqExactIf(place, stage = 'delivery.websocket') AS websocket,
	uniqExactIf(place, stage = 'delivery.push') AS push, uniqExactIf(place, stage != 'log') AS reached
FROM (SELECT type AS event, concat(topic, '/', toString(part), '/', toString(pos)) AS place, 'log' AS stage
		FROM nexus_events WHERE type IN ('message', 'notification', 'activity', 'announcement')
	UNION ALL SELECT detail AS event, concat(ref_topic, '/', toString(ref_part), '/', toString(ref_pos)) AS place, type AS stage
		FROM nexus_events WHERE type IN ('delivery.websocket', 'delivery.push') AND sessions > 0)
GROUP BY event`,
}

// The queries of the server itself.
const (
	insertEvents = `INSERT INTO nexus_events (user_id, type, topic, part, pos, at, detail, ref_topic, ref_part, ref_pos, sessions, latency_ms)`

	insertPositions = `INSERT INTO nexus_offsets (topic, part, generation, next, log, mark)`

	selectPositions = `SELECT topic, part, generation, max(next), argMax(log, next), argMax(mark, next)
		FROM nexus_offsets GROUP BY topic, part, generation`

	selectCounts = `SELECT user_id,
	uniqExactIf(topic, part, pos, type='notification' AND detail='` + detailConnection + `'),
	uniqExactIf(topic, part, pos, type='message'),
	uniqExactIf(topic, part, pos, type='activity' AND detail='` + detailPost + `')
FROM nexus_events WHERE user_id IN ? GROUP BY user_id`
)

// Script is every statement that the server sends to ClickHouse, filled with samples, for running it on other versions.
func Script() []string {
	return append(append([]string{}, schema...),
		insertEvents+` VALUES ('a','message','messages',0,0,now(),'sent','',0,0,0,0), ('b','message','messages',0,0,now(),'received','',0,0,0,0),
			('a','message','messages',0,0,now(),'sent','',0,0,0,0), ('b','delivery.websocket','deliveries',0,0,now(),'message','messages',0,0,1,7)`,
		insertPositions+` VALUES ('messages',0,0,1,'l',1), ('messages',0,0,2,'l',2)`,
		selectPositions,
		strings.Replace(selectCounts, "?", "('a','b')", 1),
		`SELECT sum(events) FROM nexus_events_per_hour WHERE type='message'`,
		`SELECT sum(users) FROM nexus_active_users`,
		`SELECT event, sum(deliveries), any(p50_ms), any(p95_ms), any(p99_ms) FROM nexus_delivery_latency GROUP BY event`,
		`SELECT event, appended, websocket, push, reached FROM nexus_delivery_funnel`)
}
