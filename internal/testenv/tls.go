package testenv

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Certificate writes a certificate for loopback and its key to dir, as cert.pem and key.pem. It is its own authority.
func Certificate(dir string) (cert, key string, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "nexus test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, DNSNames: []string{"localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	if err != nil {
		return "", "", err
	}
	pk, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return "", "", err
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	if err := os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		return "", "", err
	}
	return cert, key, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pk}), 0o600)
}

// secure is where a local program is reached over TLS.
type secure struct{ addr, ca string }

var secured = map[string]secure{} // guarded by mu

// PostgresTLS is the URL of a new database that demands a good certificate; it is there for local programs only.
func PostgresTLS(t testing.TB) string {
	t.Helper()
	plain := Postgres(t)
	s := securely(t, "postgres")
	return strings.Replace(plain, "sslmode=disable", "sslmode=verify-full&sslrootcert="+s.ca, 1)
}

// ClickHouseTLS is the URL of a new database over TLS, and the certificate that a client has to trust.
func ClickHouseTLS(t testing.TB) (url, ca string) {
	t.Helper()
	plain := ClickHouse(t)
	s := securely(t, "clickhouse")
	database := plain[strings.LastIndexByte(plain, '/')+1:]
	return fmt.Sprintf("clickhouse://%s/%s?secure=true", s.addr, database), s.ca
}

func securely(t testing.TB, name string) secure {
	t.Helper()
	mu.Lock()
	defer mu.Unlock()
	s, ok := secured[name]
	if !ok {
		t.Skipf("%s comes from %s, which is not reached over TLS here", name, running[name].how)
	}
	return s
}
