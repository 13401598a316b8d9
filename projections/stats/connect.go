package stats

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/nexus/nexus/pipeline"
	"github.com/nexus/nexus/projections/sqldb"
)

// serverSilence is how long ClickHouse may say nothing while it is being waited for, where no deadline comes first.
const serverSilence = 10 * time.Second

// connect opens a pool on a CLICKHOUSE_URL. What the URL sets itself (dial_timeout, read_timeout, conn_max_lifetime) stays as
// it is there. No error quotes the URL.
func connect(url string, l sqldb.Limits) (driver.Conn, error) {
	if err := sqldb.CheckURL("CLICKHOUSE_URL", url); err != nil {
		return nil, err
	}
	o, err := clickhouse.ParseDSN(url)
	if err != nil { // the driver repeats parts of the URL
		return nil, errors.New("CLICKHOUSE_URL is not a URL like clickhouse://user:password@host:9000/database")
	}
	if o.DialTimeout == 0 {
		o.DialTimeout = l.Dial
	}
	if o.ReadTimeout == 0 {
		o.ReadTimeout = min(serverSilence, l.Tx)
	}
	if o.ConnMaxLifetime == 0 {
		o.ConnMaxLifetime = l.Life
	}
	dialer := sqldb.Dialer(o.DialTimeout)
	o.DialContext = func(ctx context.Context, addr string) (net.Conn, error) {
		if o.TLS != nil {
			return (&tls.Dialer{NetDialer: dialer, Config: o.TLS}).DialContext(ctx, "tcp", addr)
		}
		return dialer.DialContext(ctx, "tcp", addr)
	}
	conn, err := clickhouse.Open(o)
	if err != nil {
		return nil, fmt.Errorf("stats: %w", err)
	}
	return conn, nil
}

// dataErrors are ClickHouse's codes (src/Common/ErrorCodes.cpp) for values that it cannot take. Those that a changed table
// brings about (53 TYPE_MISMATCH, 16 NO_SUCH_COLUMN, 60 UNKNOWN_TABLE) are none: every row would be set aside.
var dataErrors = map[int32]bool{
	6:   true, // CANNOT_PARSE_TEXT
	27:  true, // CANNOT_PARSE_INPUT_ASSERTION_FAILED
	38:  true, // CANNOT_PARSE_DATE
	41:  true, // CANNOT_PARSE_DATETIME
	69:  true, // ARGUMENT_OUT_OF_BOUND
	72:  true, // CANNOT_PARSE_NUMBER
	117: true, // INCORRECT_DATA
	128: true, // TOO_LARGE_ARRAY_SIZE
	131: true, // TOO_LARGE_STRING_SIZE
	321: true, // VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE
	349: true, // CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN
	469: true, // VIOLATED_CONSTRAINT
}

// classify marks as permanent what ClickHouse says of values; all else may pass.
func classify(err error) error {
	if e := (*clickhouse.Exception)(nil); errors.As(err, &e) && dataErrors[e.Code] {
		return pipeline.Permanent(err)
	}
	return err
}
