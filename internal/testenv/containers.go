package testenv

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"
)

// image is made by internal/testenv/setup.sh image; elsewhere NEXUS_TEST_IMAGE may name one with the same entry points.
func image() string {
	if i := os.Getenv("NEXUS_TEST_IMAGE"); i != "" {
		return i
	}
	return "nexus-test/services:2"
}

// container starts a service of the image and returns where it is reached.
func container(ctx context.Context, port, entrypoint string, ready wait.Strategy, hooks ...testcontainers.ContainerHook) (string, func(), error) {
	os.Setenv("TESTCONTAINERS_RYUK_DISABLED", "true")
	if _, err := os.Stat("/.dockerenv"); err == nil && os.Getenv("TESTCONTAINERS_HOST_OVERRIDE") == "" {
		os.Setenv("TESTCONTAINERS_HOST_OVERRIDE", "127.0.0.1")
	}
	c, err := testcontainers.GenericContainer(ctx, testcontainers.GenericContainerRequest{Started: true, ContainerRequest: testcontainers.ContainerRequest{
		Image: image(), Entrypoint: []string{"/usr/local/bin/" + entrypoint}, ExposedPorts: []string{port + "/tcp"}, WaitingFor: ready,
		LifecycleHooks: []testcontainers.ContainerLifecycleHooks{{PostStarts: hooks}},
	}})
	stop := func() {
		if c != nil {
			none := time.Duration(0)
			_ = c.Terminate(context.Background(), testcontainers.StopTimeout(none))
		}
	}
	if err != nil {
		return "", stop, fmt.Errorf("container %s: %w", entrypoint, err)
	}
	addr, err := c.PortEndpoint(ctx, port+"/tcp", "")
	return addr, stop, err
}

func kafkaContainer(ctx context.Context) (string, func(), error) {
	// Kafka has to be told the port that it is reached at, which is known only now.
	advertise := func(ctx context.Context, c testcontainers.Container) error {
		addr, err := c.PortEndpoint(ctx, "9092/tcp", "")
		if err != nil {
			return err
		}
		return c.CopyToContainer(ctx, []byte(addr), "/tmp/advertised", 0o644)
	}
	return container(ctx, "9092", "run-kafka", wait.ForListeningPort("9092/tcp").WithStartupTimeout(time.Minute), advertise)
}

func postgresContainer(ctx context.Context) (string, func(), error) {
	return container(ctx, "5432", "run-postgres", wait.ForLog("database system is ready to accept connections").WithStartupTimeout(time.Minute))
}

func clickhouseContainer(ctx context.Context) (string, func(), error) {
	return container(ctx, "9000", "run-clickhouse", wait.ForListeningPort("9000/tcp").WithStartupTimeout(time.Minute))
}
