package session

import (
	"testing"

	"github.com/nexus/nexus/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Exit(m) }
