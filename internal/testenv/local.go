package testenv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// launch starts a program that listens on addr; its output goes to a file in dir. What it leaves in dir is removed when
// it is stopped.
func launch(ctx context.Context, dir, addr string, name string, args ...string) (func(), error) {
	out, err := os.Create(filepath.Join(dir, "output"))
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, out, out
	cmd.SysProcAttr = dieWithParent()
	if err := cmd.Start(); err != nil {
		out.Close()
		return nil, err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // its output tells why it ended
		out.Close()
	}()
	stop := func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
		}
		os.RemoveAll(dir)
	}
	if err := awaitPort(ctx, addr, ended); err != nil {
		tail, _ := os.ReadFile(filepath.Join(dir, "output"))
		tail = tail[max(0, len(tail)-2000):]
		return stop, fmt.Errorf("%s: %w\n%s", name, err, bytes.TrimSpace(tail))
	}
	return stop, nil
}

// freePorts are n different free ports.
func freePorts(n int) ([]string, error) {
	ports := make([]string, 0, n)
	for range n {
		p, err := FreePort()
		if err != nil {
			return nil, err
		}
		ports = append(ports, strconv.Itoa(p))
	}
	return ports, nil
}

const kafkaProperties = `process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:%[2]s
listeners=PLAINTEXT://127.0.0.1:%[1]s,CONTROLLER://127.0.0.1:%[2]s
advertised.listeners=PLAINTEXT://127.0.0.1:%[1]s
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs=%[3]s
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=100
auto.create.topics.enable=false
`

func localKafka(ctx context.Context) (string, func(), error) {
	root, err := Root()
	if err != nil {
		return "", nil, err
	}
	libs := filepath.Join(root, ".cache/kafka/libs")
	if _, err := os.Stat(libs); err != nil {
		return "", nil, errors.New("no jars of Apache Kafka; run internal/testenv/setup.sh (needs Maven)")
	}
	java, err := exec.LookPath("java")
	if err != nil {
		return "", nil, err
	}
	dir, err := os.MkdirTemp("", "nexus-kafka")
	if err != nil {
		return "", nil, err
	}
	ports, err := freePorts(2)
	if err != nil {
		return "", nil, err
	}
	properties := filepath.Join(dir, "server.properties")
	if err := os.WriteFile(properties, fmt.Appendf(nil, kafkaProperties, ports[0], ports[1], filepath.Join(dir, "data")), 0o600); err != nil {
		return "", nil, err
	}
	cp := filepath.Join(libs, "*")
	out, err := exec.CommandContext(ctx, java, "-cp", cp, "kafka.tools.StorageTool", "format", "--standalone", "-t", "4L6g3nShT-eMCtK--X86sw",
		"-c", properties).CombinedOutput()
	if err != nil {
		return "", nil, fmt.Errorf("format Kafka's storage: %w\n%s", err, out)
	}
	addr := "127.0.0.1:" + ports[0]
	stop, err := launch(ctx, dir, addr, java, "-Xmx512m", "-cp", cp, "kafka.Kafka", properties)
	return addr, stop, err
}

func localPostgres(ctx context.Context) (string, func(), error) {
	var bin string
	if found, _ := filepath.Glob("/usr/lib/postgresql/*/bin"); len(found) > 0 {
		bin = found[len(found)-1]
	} else if initdb, err := exec.LookPath("initdb"); err == nil {
		bin = filepath.Dir(initdb)
	} else {
		return "", nil, errors.New("no PostgreSQL is installed")
	}
	dir, err := os.MkdirTemp("", "nexus-postgres")
	if err != nil {
		return "", nil, err
	}
	data := filepath.Join(dir, "data")
	ports, err := freePorts(1)
	if err != nil {
		return "", nil, err
	}
	cert, key, err := Certificate(dir)
	if err != nil {
		return "", nil, err
	}
	as := func(command string) (string, []string) { return "sh", []string{"-c", command} }
	if os.Geteuid() == 0 { // PostgreSQL refuses to run as root
		if out, err := exec.CommandContext(ctx, "chown", "postgres", dir, key).CombinedOutput(); err != nil {
			return "", nil, fmt.Errorf("chown: %w: %s", err, out)
		}
		as = func(command string) (string, []string) {
			return "setpriv", []string{"--reuid=postgres", "--regid=postgres", "--clear-groups", "sh", "-c", command}
		}
	}
	name, args := as(fmt.Sprintf("%s/initdb -D %s -U nexus -A trust -E UTF8", bin, data))
	init := exec.CommandContext(ctx, name, args...)
	init.Dir = dir
	if out, err := init.CombinedOutput(); err != nil {
		return "", nil, fmt.Errorf("initdb: %w\n%s", err, out)
	}
	addr := "127.0.0.1:" + ports[0]
	name, args = as(fmt.Sprintf("exec %s/postgres -D %s -p %s -k %s -c listen_addresses=127.0.0.1 -c fsync=off -c ssl=on "+
		"-c ssl_cert_file=%s -c ssl_key_file=%s", bin, data, ports[0], dir, cert, key))
	secured["postgres"] = secure{addr, cert}
	stop, err := launch(ctx, dir, addr, name, args...)
	return addr, stop, err
}

func localClickHouse(ctx context.Context) (string, func(), error) {
	if _, err := exec.LookPath("clickhouse-server"); err != nil {
		return "", nil, errors.New("clickhouse-server is not installed")
	}
	dir, err := os.MkdirTemp("", "nexus-clickhouse")
	if err != nil {
		return "", nil, err
	}
	configs, _ := filepath.Glob("/etc/clickhouse-server/*.xml")
	for _, c := range configs {
		b, err := os.ReadFile(c)
		if err != nil {
			return "", nil, err
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(c)), b, 0o600); err != nil {
			return "", nil, err
		}
	}
	ports, err := freePorts(4)
	if err != nil {
		return "", nil, err
	}
	cert, key, err := Certificate(dir)
	if err != nil {
		return "", nil, err
	}
	secured["clickhouse"] = secure{"127.0.0.1:" + ports[3], cert}
	args := []string{"--config-file=" + filepath.Join(dir, "config.xml"), "--"}
	for k, v := range map[string]string{"path": dir + "/data/", "tmp_path": dir + "/tmp/", "user_files_path": dir + "/uf/",
		"format_schema_path": dir + "/fs/",
		"tcp_port":           ports[0], "http_port": ports[1], "interserver_http_port": ports[2], "listen_host": "127.0.0.1",
		"tcp_port_secure": ports[3], "openSSL.server.certificateFile": cert, "openSSL.server.privateKeyFile": key,
		"openSSL.server.dhParamsFile": "",
		"logger.log":                  dir + "/log", "logger.errorlog": dir + "/err"} {
		args = append(args, "--"+k+"="+v)
	}
	addr := "127.0.0.1:" + ports[0]
	stop, err := launch(ctx, dir, addr, "clickhouse-server", args...)
	return addr, stop, err
}

// Name makes an identifier that no other test uses.
func Name(prefix string) string {
	return prefix + strings.ReplaceAll(strconv.FormatInt(time.Now().UnixNano(), 36), "-", "")
}
