package pipeline

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Position is where a store stands in a partition, and in which log: an offset means nothing in another log (decision 0021).
type Position struct {
	// Next is the offset of the next record to apply.
	Next int64
	// Log is the identity of the topic that Next counts in (Log.Identity). Empty: the store does not say, because it lives
	// in memory only or was written by an earlier version.
	Log string
	// Mark is the record time, in Unix milliseconds, of the last record below Next. A log that was truncated or restored and
	// has grown since has another record there. 0: there is none, or the store does not say.
	Mark int64
}

// ErrMoved is what Sink.Apply returns where the stored position is not Batch.From any more: another consumer has the partition. The
// consumer then reads the position again and begins anew from it.
var ErrMoved = errors.New("pipeline: the position was moved by another consumer")

// metadata is the position's log and mark as the metadata of a committed offset; readMetadata undoes it.
func (p Position) metadata() string { return p.Log + " " + strconv.FormatInt(p.Mark, 10) }

func readMetadata(next int64, text string) Position {
	log, mark, _ := strings.Cut(text, " ")
	ms, _ := strconv.ParseInt(mark, 10, 64) // of an earlier version: none
	return Position{Next: next, Log: log, Mark: ms}
}

// permanent is an error that no repeat can mend.
type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

// Permanent marks an error of Sink.Apply that no repeat can mend: a value that the store can never hold. The consumer finds
// the record, sets it aside with this reason, and goes on with the rest. The text must not quote the record's contents. Any
// other error is transient: the same batch is offered again. Permanent(nil) is nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return permanent{err}
}

// IsPermanent tells whether an error was marked by Permanent.
func IsPermanent(err error) bool {
	var p permanent
	return errors.As(err, &p)
}

// WrongLogError reports that a store remembers another log than the one that is there. Nothing may be applied before an operator has
// decided: below the position there are other events, or none (decision 0022).
type WrongLogError struct {
	Consumer  string // whose store it is
	Topic     string // the topic's name in Kafka
	Partition int32  // its number
	Why       string // what does not fit
	WayOut    string // what the operator can do
}

// Error is a sentence for the operator, with the way out.
func (e *WrongLogError) Error() string {
	text := fmt.Sprintf("%s: %s/%d: %s", e.Consumer, e.Topic, e.Partition, e.Why)
	if e.WayOut != "" {
		text += "; " + e.WayOut
	}
	return text
}

// extent is what there is of a partition.
type extent struct {
	start, end int64  // the first offset that is kept, and the one after the last (Kafka: the high watermark)
	before     record // the last record below the position in question
}

// record is where a record stands in its partition, and when it was appended.
type record struct {
	offset, time int64 // time in Unix milliseconds
	found        bool
}

// misfit says why a position cannot be one of the log that is there; empty where it can. forgets tells that the topic's old
// records are removed in time.
func (p Position) misfit(identity string, x extent, expires bool) string {
	switch {
	case p.Log != "" && p.Log != identity:
		return fmt.Sprintf("the store has read %s up to offset %d, and this log is %s: the topic was made anew, or the store is another "+
			"installation's",
			p.Log, p.Next, identity)
	case p.Next > x.end:
		return fmt.Sprintf("the store has read up to offset %d, and the log ends at %d: the log has lost records (a loss of power, an older "+
			"backup, a wiped log)",
			p.Next, x.end)
	case p.Next < x.start && !expires && (p.Next > 0 || p.Log != ""):
		return fmt.Sprintf("the store has read up to offset %d, and the log begins at %d: records that it has not read were removed", p.Next,
			x.start)
	case p.Mark != 0 && x.before.found && x.before.time != p.Mark:
		return fmt.Sprintf("the store has read up to offset %d, and the log has another record before that: it was truncated or restored from "+
			"a backup, and has grown since",
			p.Next)
	}
	return ""
}
