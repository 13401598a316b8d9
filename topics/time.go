package topics

import (
	"errors"
	"regexp"
	"time"
)

// TimeLayout is how Nexus writes timestamps: RFC 3339, UTC, milliseconds, Z.
const TimeLayout = "2006-01-02T15:04:05.000Z"

// CheckTimestamp accepts RFC 3339 timestamps of any offset, as JavaScript's Date can read them: two digits for every
// part, T and Z in capitals, no leap second.
func CheckTimestamp(s string) error {
	if _, err := time.Parse(time.RFC3339Nano, s); err != nil || !timestampShape.MatchString(s) {
		return errors.New("must be an RFC 3339 timestamp, like 2025-12-01T10:00:00.000Z or 2025-12-01T11:00:00+01:00")
	}
	return nil
}

// timestampShape is what time.Parse is more lenient about (ECMA-262, Date Time String Format; a fraction of up to nine
// digits, an offset of less than a day).
var timestampShape = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)$`)

// FormatTime writes Unix milliseconds in TimeLayout.
func FormatTime(ms int64) string { return time.UnixMilli(ms).UTC().Format(TimeLayout) }
