package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// kafkaHint explains what the errors of a broker mean that does not answer as one.
func kafkaHint(err error) error {
	var large *kgo.ErrFirstReadEOF
	switch {
	case err == nil:
		return nil
	case errors.Is(err, kerr.IllegalSaslState), errors.Is(err, kerr.UnsupportedSaslMechanism):
		return fmt.Errorf("%w (the broker does not take this SASL mechanism on this port: KAFKA_SASL_MECHANISM, or the port of another "+
			"listener)", err)
	case errors.Is(err, kerr.SaslAuthenticationFailed):
		return fmt.Errorf("%w (the SASL credentials are not good: KAFKA_SASL_USERNAME, KAFKA_SASL_PASSWORD)", err)
	case strings.Contains(err.Error(), "invalid large response size"), strings.Contains(err.Error(), "unexpected correlation"):
		return fmt.Errorf("%w (what listens there is no Kafka: is it another server's port?)", err)
	case errors.Is(err, io.EOF), errors.As(err, &large):
		return fmt.Errorf("%w (it hangs up: the SASL credentials are not good, KAFKA_SASL_*, or one of the two speaks TLS and the other "+
			"does not, KAFKA_TLS)", err)
	}
	return err
}

// clickHouseHint tells where the URL has the port of ClickHouse's HTTP interface: the driver speaks the native protocol,
// which that port does not answer.
func clickHouseHint(ctx context.Context, dsn string, err error) error {
	u, wrong := url.Parse(dsn)
	if err == nil || wrong != nil || !speaksHTTP(ctx, u.Host) {
		return err
	}
	return fmt.Errorf("%w (this is an HTTP port; CLICKHOUSE_URL needs that of the native protocol, 9000, or 9440 with TLS)", err)
}

// speaksHTTP asks an address for ClickHouse's answer to a ping by HTTP, within a second. The port of the native protocol
// answers HTTP too: with 400.
func speaksHTTP(ctx context.Context, addr string) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return false
	}
	defer c.Close()
	end, _ := ctx.Deadline()
	_ = c.SetDeadline(end)
	if _, err := io.WriteString(c, "GET /ping HTTP/1.0\r\n\r\n"); err != nil {
		return false
	}
	answer := make([]byte, len("HTTP/1.x nnn"))
	_, err = io.ReadFull(c, answer)
	return err == nil && strings.HasPrefix(string(answer), "HTTP/1.") && !strings.HasSuffix(string(answer), " 400")
}

// listenHint explains why an address cannot be listened on.
func listenHint(host, port string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("PORT: %s is in use: stop what listens there or set PORT to another port", port)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("PORT: this user may not listen on %s: set PORT to one above 1023", port)
	}
	var dns *net.DNSError
	if errors.Is(err, syscall.EADDRNOTAVAIL) || errors.As(err, &dns) {
		return fmt.Errorf("HOST: %s is no address of this machine: set HOST to one, or leave it empty to listen on all", host)
	}
	return fmt.Errorf("PORT: %w", err)
}
