package push

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/nexus/nexus/internal/testenv"
	"github.com/nexus/nexus/projections/inbox"
	"github.com/nexus/nexus/projections/sqldb"
	"github.com/nexus/nexus/topics"
)

// told is a channel that answers what a test tells it to.
type told struct {
	name      string
	answer    Response
	forgetful bool // it can forget targets now
	sends     int
}

func (c *told) Name() string  { return c.name }
func (*told) On() bool        { return true }
func (*told) Fit(n Note) Note { return n }

func (*told) Targets(context.Context, []string) (map[string][]string, error) { return nil, nil }

func (c *told) Send(context.Context, string, Note, time.Duration) Response {
	c.sends++
	return c.answer
}

func (c *told) Forget(context.Context, string, string) error {
	if c.forgetful {
		return nil
	}
	return errors.New("not now")
}

// records gathers what became of pushes, by channel and partition-offset of the event.
type records map[string][]string

func (r records) Post(e *topics.Event, _ func(error)) {
	if topics.Valid(e) != nil {
		panic(fmt.Sprintf("not valid: %s", e.Value))
	}
	d := topics.ReadDelivery(e)
	id := d.Channel + "/" + strconv.FormatInt(d.At.Offset, 10)
	r[id] = append(r[id], d.Outcome)
}

type nowhere struct{}

func (nowhere) Ends(context.Context, topics.Topic) (topics.Ends, error) { return nil, nil }

// modelJob is what the model knows of a job.
type modelJob struct {
	due, lease, attempts int64
	ended                bool
}

// modelNode is a node: its process, the jobs that it has claimed, and until when it knows its channels to pause.
type modelNode struct {
	p     *Pusher
	held  []job
	pause map[string]time.Time
}

// model drives some nodes that share a database, and compares every row with what it expects.
type model struct {
	t        *testing.T
	r        *rand.Rand
	db       *sqldb.DB
	at       time.Time
	channels []*told
	nodes    []*modelNode
	jobs     map[string]*modelJob // by channel and offset
	pause    map[string]time.Time // in the database
	became   records
	late     int // answers that came after their lease was another's, or the job had ended
}

func (m *model) now() time.Time { return m.at }

// boot starts a node's process, or starts it again: what it had claimed it has forgotten.
func (m *model) boot() *modelNode {
	m.t.Helper()
	var list []Channel
	for _, c := range m.channels {
		list = append(list, c)
	}
	p, err := New(m.t.Context(), Options{DB: m.db, Log: nowhere{}, Producer: m.became, Channels: list, Node: "n1",
		Logger:   slog.New(slog.DiscardHandler),
		Settings: Settings{TTL: 1e6 * time.Hour, Rate: 1, Lease: 90 * time.Second}, Now: m.now})
	if err != nil {
		m.t.Fatal(err)
	}
	return &modelNode{p: p, pause: make(map[string]time.Time)}
}

func (m *model) add() {
	c := m.channels[m.r.IntN(len(m.channels))]
	n := len(m.jobs)
	j := job{channel: c.name, user: "u", target: "t", at: topics.Notifications.Partition(0).At(int64(n)), key: "user:u",
		note: Note{ID: strconv.Itoa(n), Event: topics.TypeNotification, RecordTime: m.at.UnixMilli()}}
	for range 1 + m.r.IntN(2) { // a batch may come twice
		if err := m.db.Tx(m.t.Context(), func(tx *sql.Tx) error { return m.nodes[0].p.queue.add(m.t.Context(), tx, []job{j}) }); err != nil {
			m.t.Fatal(err)
		}
	}
	m.jobs[key(j)] = &modelJob{due: m.at.UnixMilli()}
}

func key(j job) string { return j.channel + "/" + strconv.FormatInt(j.at.Offset, 10) }

// claim has a node claim jobs of a channel: those that are due longest, of all that are due and nobody's, unless it pauses.
func (m *model) claim(n *modelNode) {
	m.t.Helper()
	l, most, now := n.p.lanes[m.r.IntN(len(n.p.lanes))], m.r.IntN(4), m.at.UnixMilli()
	may := make(map[string]*modelJob)
	if !m.at.Before(n.pause[l.name]) && m.pause[l.name].UnixMilli() <= now {
		for id, j := range m.jobs {
			if !j.ended && j.due <= now && j.lease < now && id[:len(l.name)] == l.name {
				may[id] = j
			}
		}
	}
	got, err := l.claim(m.t.Context(), most)
	if err != nil {
		m.t.Fatal(err)
	}
	if len(got) != min(most, len(may)) {
		m.t.Fatalf("claimed %d jobs of %s, want %d of %d", len(got), l.name, most, len(may))
	}
	last := int64(0)
	for _, j := range got {
		want := may[key(j)]
		if want == nil {
			m.t.Fatalf("claimed %s, which was not to be had: %+v", key(j), m.jobs[key(j)])
		}
		delete(may, key(j))
		last = max(last, want.due)
		want.attempts++
		want.lease = m.at.Add(90 * time.Second).UnixMilli()
		if int64(j.attempts) != want.attempts || j.lease != want.lease {
			m.t.Fatalf("claimed %s for the %d. time until %d, want %+v", key(j), j.attempts, j.lease, *want)
		}
		n.held = append(n.held, j)
	}
	for id, j := range may {
		if j.due < last {
			m.t.Fatalf("%s was due at %d and left for one due at %d", id, j.due, last)
		}
	}
}

// take takes one of the jobs that a node holds.
func (m *model) take(n *modelNode) (job, bool) {
	if len(n.held) == 0 {
		return job{}, false
	}
	i := m.r.IntN(len(n.held))
	j := n.held[i]
	n.held = slices.Delete(n.held, i, i+1)
	return j, true
}

// answer has a node do a job that it holds, perhaps long after its lease has run out.
func (m *model) answer(n *modelNode) {
	m.t.Helper()
	j, ok := m.take(n)
	if !ok {
		return
	}
	want, l := m.jobs[key(j)], n.p.lane(j.channel)
	c := l.ch.(*told)
	c.answer = Response{Kind: Kind(m.r.IntN(6)), After: time.Duration(m.r.IntN(3)) * 20 * time.Second, Err: errors.New("as told")}
	c.forgetful = m.r.IntN(2) == 0
	ours := !want.ended && want.lease == j.lease
	if !ours {
		m.late++
	}
	paused, sends := n.pause[j.channel], c.sends
	l.do(m.t.Context(), j)
	if m.at.Before(paused) { // it sends nothing, and the job waits
		if c.sends != sends {
			m.t.Fatalf("%s was sent while the channel pauses", key(j))
		}
		if ours {
			want.due, want.lease = paused.UnixMilli(), 0
		}
		return
	}
	if c.sends != sends+1 {
		m.t.Fatalf("%s was sent %d times", key(j), c.sends-sends)
	}
	switch kind := c.answer.Kind; {
	case kind == Accepted, kind == Refused, kind == SetAside, kind == Dead && c.forgetful:
		want.ended = true
	case kind == Pause:
		until := l.pause.until()
		m.within("a pause", until.Sub(m.at), c.answer.After, j.attempts)
		n.pause[j.channel] = until
		if until.UnixMilli() > m.pause[j.channel].UnixMilli() {
			m.pause[j.channel] = until
		}
		if ours {
			want.due, want.lease = until.UnixMilli(), 0
		}
	default:
		after := c.answer.After
		if kind == Dead {
			after = 0
		}
		if ours {
			due := m.row(j)
			m.within("another attempt", time.UnixMilli(due).Sub(m.at), after, j.attempts)
			want.due, want.lease = due, 0
		}
	}
}

// within checks a pause that is random in part: what the service asked for and a little, or 1 s doubling to 60 s and half of it.
func (m *model) within(what string, got, asked time.Duration, attempts int) {
	m.t.Helper()
	least, most := asked, asked+asked/10+time.Second
	if asked == 0 {
		most = min(time.Second<<min(attempts-1, 6), time.Minute)
		least = most / 2
	}
	if got < least-time.Millisecond || got > most {
		m.t.Fatalf("%s after %s, want %s to %s", what, got, least, most)
	}
}

func (m *model) row(j job) (due int64) {
	m.t.Helper()
	if err := m.db.Write.QueryRow(`SELECT due FROM push_jobs WHERE channel=$1 AND id=$2`, j.channel, j.id).Scan(&due); err != nil {
		m.t.Fatal(err)
	}
	return due
}

func (m *model) giveBack(n *modelNode) {
	j, ok := m.take(n)
	if !ok {
		return
	}
	n.p.lane(j.channel).giveBack(m.t.Context(), j)
	if want := m.jobs[key(j)]; !want.ended && want.lease == j.lease {
		want.lease, want.attempts = 0, want.attempts-1
	}
}

// check compares the tables and the records with the model.
func (m *model) check() {
	m.t.Helper()
	rows, err := m.db.Write.Query(`SELECT channel, pos, due, lease, attempts FROM push_jobs`)
	if err != nil {
		m.t.Fatal(err)
	}
	defer rows.Close()
	left := maps.Clone(m.jobs)
	for rows.Next() {
		var channel string
		var at int64
		var got modelJob
		if err := rows.Scan(&channel, &at, &got.due, &got.lease, &got.attempts); err != nil {
			m.t.Fatal(err)
		}
		id := channel + "/" + strconv.FormatInt(at, 10)
		if want := left[id]; want == nil || *want != got {
			m.t.Fatalf("%s is %+v, want %+v", id, got, want)
		}
		delete(left, id)
	}
	if err := rows.Err(); err != nil {
		m.t.Fatal(err)
	}
	for id, j := range left {
		if !j.ended {
			m.t.Fatalf("%s is lost: %+v", id, *j)
		}
	}
	for _, c := range m.channels {
		var ends int64
		err := m.db.Write.QueryRow(`SELECT ends FROM push_pause WHERE channel=$1`, c.name).Scan(&ends)
		if want, paused := m.pause[c.name]; paused && (err != nil || ends != want.UnixMilli()) || !paused && !errors.Is(err, sql.ErrNoRows) {
			m.t.Fatalf("%s pauses until %d, %v; want %d", c.name, ends, err, want.UnixMilli())
		}
	}
	for id, j := range m.jobs {
		if n := len(m.became[id]); n > 1 || (n == 1) != j.ended {
			m.t.Fatalf("%s was told %q; ended: %v", id, m.became[id], j.ended)
		}
	}
}

func (p *Pusher) lane(name string) *lane {
	return p.lanes[slices.IndexFunc(p.lanes, func(l *lane) bool { return l.name == name })]
}

// The life of push jobs (queue.go) against a model: two nodes and two channels on one database, random claims, answers in time
// and too late, pauses, crashes, jobs given back. No job is lost, or held by two but after its lease, or told of twice; a pause holds
// over nodes and restarts and concerns its channel alone. SEED= repeats a run.
func TestJobs(t *testing.T) {
	open := map[string]func(*testing.T) (*sqldb.DB, error){
		"sqlite":   func(t *testing.T) (*sqldb.DB, error) { return sqldb.OpenSQLite(filepath.Join(t.TempDir(), "inbox.db")) },
		"postgres": func(t *testing.T) (*sqldb.DB, error) { return sqldb.OpenPostgres(testenv.Postgres(t)) },
	}
	for store, steps := range map[string]int{"sqlite": 1500, "postgres": 1000} {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			db, err := open[store](t)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { db.Close() })
			if _, err := inbox.Open(t.Context(), db, time.Hour, slog.New(slog.DiscardHandler)); err != nil {
				t.Fatal(err)
			}
			seed := rand.Uint64()
			if s, err := strconv.ParseUint(os.Getenv("SEED"), 10, 64); err == nil {
				seed = s
			}
			t.Logf("SEED=%d", seed)
			m := &model{t: t, r: rand.New(rand.NewPCG(seed, 0)), db: db, at: time.UnixMilli(1764583200000),
				channels: []*told{{name: "mail"}, {name: "hook"}},
				jobs:     make(map[string]*modelJob), pause: make(map[string]time.Time), became: make(records)}
			m.nodes = []*modelNode{m.boot(), m.boot()}
			for range steps {
				n := m.r.IntN(len(m.nodes))
				switch m.r.IntN(20) {
				case 0, 1, 2:
					m.add()
				case 3, 4, 5, 6, 7, 8:
					m.claim(m.nodes[n])
				case 9, 10, 11, 12, 13:
					m.answer(m.nodes[n])
				case 14:
					m.giveBack(m.nodes[n])
				case 15: // a crash
					if m.r.IntN(4) == 0 {
						m.nodes[n] = m.boot()
					}
				default:
					m.at = m.at.Add(time.Duration(m.r.IntN([]int{1, 1000, 20_000, 120_000}[m.r.IntN(4)])) * time.Millisecond)
				}
				m.check()
			}
			ended := 0
			for _, j := range m.jobs {
				if j.ended {
					ended++
				}
			}
			t.Logf("%d jobs, %d ended, %d answers too late", len(m.jobs), ended, m.late)
			if ended == 0 || m.late == 0 {
				t.Error("too little happened")
			}
		})
	}
}

// Jobs, a pause and a token set aside that a build before channels has left are FCM's.
func TestJobsOfEarlierBuild(t *testing.T) {
	db, err := sqldb.OpenSQLite(filepath.Join(t.TempDir(), "inbox.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	now := time.UnixMilli(1764583200000)
	for _, statement := range []string{
		`CREATE TABLE push_jobs (id TEXT NOT NULL PRIMARY KEY, user_id TEXT NOT NULL, token TEXT NOT NULL, topic TEXT NOT NULL, part BIGINT NOT NULL,
			pos BIGINT NOT NULL, at BIGINT NOT NULL, note BYTEA NOT NULL, attempts BIGINT NOT NULL, due BIGINT NOT NULL, lease BIGINT NOT NULL)`,
		`CREATE INDEX push_jobs_by_due ON push_jobs (due)`,
		`CREATE TABLE push_quarantine (hash TEXT NOT NULL PRIMARY KEY, at BIGINT NOT NULL)`,
		`CREATE TABLE push_pause (id BIGINT NOT NULL PRIMARY KEY, ends BIGINT NOT NULL)`,
		`CREATE TABLE migrations (name TEXT PRIMARY KEY)`,
		`INSERT INTO migrations (name) VALUES ('push/0001_push.sql'), ('push/0002_pause.sql'), ('push/0003_quarantine_keys.sql')`,
		`INSERT INTO push_jobs VALUES ('n0-7/x', 'a', 'tok', 'notifications', 3, 7, 1764583200000, '{"ID":"n0-7","Event":"notification","Title":"T","Body":"B",` +
			`"Icon":"","Badge":"","Link":"","High":true,"Data":{"_from":"x","k":"{\"n\":1}"},"RecordTime":1764583200000,"NotificationT":"SYSTEM"}', 2, 5, 0)`,
		`INSERT INTO push_quarantine VALUES ('` + topics.DeviceKey("foreign") + `', 1)`,
		`INSERT INTO push_pause VALUES (1, 1764583260000)`,
	} {
		if _, err := db.Write.Exec(statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	p, err := New(t.Context(), Options{DB: db, Log: nowhere{}, Producer: make(records),
		Channels: []Channel{&told{name: "fcm"}, &told{name: "hook"}},
		Logger:   slog.New(slog.DiscardHandler), Settings: Settings{TTL: time.Hour, Rate: 1, Lease: time.Minute},
		Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	claim := func(channel string) []job {
		t.Helper()
		jobs, err := p.lane(channel).claim(t.Context(), 9)
		if err != nil {
			t.Fatal(err)
		}
		return jobs
	}
	if jobs := claim("fcm"); len(jobs) != 0 {
		t.Errorf("%d jobs were claimed before the pause was over", len(jobs))
	}
	now = now.Add(time.Minute)
	if jobs := claim("hook"); len(jobs) != 0 {
		t.Errorf("another channel claimed %d jobs of FCM's", len(jobs))
	}
	jobs := claim("fcm")
	if len(jobs) != 1 {
		t.Fatalf("%d jobs", len(jobs))
	}
	j := jobs[0]
	if j.target != "tok" || j.attempts != 3 || j.at != topics.Notifications.Partition(3).At(7) || j.key != "user:a" ||
		j.note.Type != topics.NotificationSystem ||
		j.note.Title != "T" || !j.note.High || string(j.note.Data) != `{"_from":"x","k":"{\"n\":1}"}` {
		t.Errorf("%+v", j)
	}
	for channel, want := range map[string]int{"fcm": 1, "hook": 2} {
		usable, err := p.queue.usable(t.Context(), channel, map[string][]string{"a": {"tok", "foreign"}})
		if err != nil || len(usable["a"]) != want {
			t.Errorf("%s may use %v, %v; want %d", channel, usable["a"], err, want)
		}
	}
}
