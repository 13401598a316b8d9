package testenv

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// PgBouncer is the URL of a new, empty PostgreSQL database behind a PgBouncer in transaction mode: each transaction may get
// another connection to the server.
func PgBouncer(t testing.TB) string {
	t.Helper()
	u, err := url.Parse(Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	local := func(ctx context.Context) (string, func(), error) {
		return localPgBouncer(ctx, u.Host, u.User.Username())
	}
	none := func(context.Context) (string, func(), error) {
		return "", nil, errors.New("the image has no PgBouncer")
	}
	u.Host = get(t, "pgbouncer", "NEXUS_TEST_PGBOUNCER", local, none).addr
	return u.String()
}

const pgbouncerConfig = `[databases]
* = host=%[1]s port=%[2]s
[pgbouncer]
listen_addr=127.0.0.1
listen_port=%[3]s
unix_socket_dir=
auth_type=trust
auth_file=%[4]s/users
pool_mode=transaction
default_pool_size=6
max_client_conn=500
pidfile=%[4]s/pid
`

func localPgBouncer(ctx context.Context, server, user string) (string, func(), error) {
	program := "/usr/sbin/pgbouncer" // of Debian, where PATH has no sbin
	if found, err := exec.LookPath("pgbouncer"); err == nil {
		program = found
	} else if _, err := os.Stat(program); err != nil {
		return "", nil, errors.New("pgbouncer is not installed")
	}
	host, port, err := net.SplitHostPort(server)
	if err != nil {
		return "", nil, err
	}
	dir, err := os.MkdirTemp("", "nexus-pgbouncer")
	if err != nil {
		return "", nil, err
	}
	ports, err := freePorts(1)
	if err != nil {
		return "", nil, err
	}
	for name, text := range map[string]string{"users": fmt.Sprintf("%q \"\"\n", user),
		"config": fmt.Sprintf(pgbouncerConfig, host, port, ports[0], dir)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return "", nil, err
		}
	}
	addr := "127.0.0.1:" + ports[0]
	name, args := program, []string{filepath.Join(dir, "config")}
	if os.Geteuid() == 0 { // it refuses to run as root
		if out, err := exec.CommandContext(ctx, "chown", "postgres", dir).CombinedOutput(); err != nil {
			return "", nil, fmt.Errorf("chown: %w: %s", err, out)
		}
		name, args = "setpriv", append([]string{"--reuid=postgres", "--regid=postgres", "--clear-groups", program}, args...)
	}
	stop, err := launch(ctx, dir, addr, name, args...)
	return addr, stop, err
}
