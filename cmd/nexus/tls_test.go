package main

import (
	"crypto/tls"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/nexus/nexus/internal/testenv"
	"github.com/nexus/nexus/internal/testenv/witness"
)

// Every engine over TLS, Kafka with SASL as well: a node works, and one with the wrong password or an untrusted
// certificate says what is wrong and ends.
func TestTLSAndSASL(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cert, key, err := testenv.Certificate(dir)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	for _, mechanism := range []string{"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"} {
		t.Run("Kafka, "+mechanism, func(t *testing.T) {
			t.Parallel()
			kafka, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.TLS(&tls.Config{Certificates: []tls.Certificate{pair}}),
				kfake.EnableSASL(), kfake.Superuser(mechanism, "nexus", "hunter2"))
			if err != nil {
				t.Fatal(err)
			}
			defer kafka.Close()
			env := map[string]string{"PORT": "0", "HOST": "127.0.0.1", "DATA_DIR": t.TempDir(), "JWT_SECRET": testSecret,
				"KAFKA_BROKERS": strings.Join(kafka.ListenAddrs(), ","),
				"KAFKA_TLS":     "true", "SSL_CERT_FILE": cert, "KAFKA_SASL_MECHANISM": mechanism, "KAFKA_SASL_USERNAME": "nexus",
				"KAFKA_SASL_PASSWORD": "hunter2"}
			n := launch(t, env)
			s := n.open("/dashboard", "alice")
			n.must(202, "POST", "/notifications", tokenFor(t, "service", "publish"),
				`{"userId":"alice","title":"over TLS","body":"","type":"SYSTEM"}`)
			s.expect("notification", map[string]any{"title": "over TLS"})
			s.ws.Close()
			if strings.Contains(n.log.String(), "hunter2") {
				t.Error("the password is in the log")
			}
			if mechanism == "PLAIN" {
				env["KAFKA_SASL_PASSWORD"], env["STARTUP_TIMEOUT"] = "wrong-password", "2s"
				refusesToStart(t, env, "SASL", "wrong-password")
				env["KAFKA_SASL_PASSWORD"], env["SSL_CERT_FILE"] = "hunter2", "/dev/null"
				refusesToStart(t, env, "certificate", "hunter2")
			}
		})
	}
	t.Run("PostgreSQL and ClickHouse", func(t *testing.T) {
		t.Parallel()
		clickhouse, ca := testenv.ClickHouseTLS(t)
		env := map[string]string{"PORT": "0", "HOST": "127.0.0.1", "DATA_DIR": t.TempDir(), "EMBEDDED_KAFKA_PORT": "0", "JWT_SECRET": testSecret,
			"DATABASE_URL": testenv.PostgresTLS(t), "CLICKHOUSE_URL": clickhouse, "SSL_CERT_FILE": ca}
		n := launch(t, env)
		n.must(202, "POST", "/notifications", tokenFor(t, "service", "publish"),
			`{"userId":"alice","title":"t","body":"","type":"CONNECTION_ACCEPTED"}`)
		testenv.Eventually(t, "both have it", func() bool {
			return n.must(200, "GET", "/notifications/unread-count", tokenFor(t, "alice"), "")["count"] == 1.0 &&
				n.must(200, "GET", "/stats", tokenFor(t, "alice"), "")["connections"] == 1.0
		})
	})
}

// refusesToStart runs a node that must end by itself and say why.
func refusesToStart(t *testing.T, env map[string]string, say, never string) {
	t.Helper()
	n := &node{instance: &instance{t: t, log: &testenv.Buffer{}, Witness: witness.New(t)}}
	t.Cleanup(func() { n.Tell(t) })
	n.cmd = commandWith(t, env, n.log)
	if err := n.cmd.Run(); err == nil || n.cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("exit code %d, want 1", n.cmd.ProcessState.ExitCode())
	}
	if !strings.Contains(n.log.String(), say) || strings.Contains(n.log.String(), never) {
		t.Errorf("no word of %s, or a secret, in:\n%s", say, n.log)
	}
}
