package inbox

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/nexus/nexus/topics"
)

// Whose a token is does not depend on which partition is folded first: users who take one another's phones, in the order of
// time and partition by partition, forwards and backwards.
func TestDevicesInAnyOrder(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	users, tokens := []string{"u0", "u1", "u2"}, []string{"phone", "tablet"}
	onEach(t, func(t *testing.T, in *Inbox) {
		for round := range 15 {
			type step struct {
				user, second int
				typ, token   string
			}
			var steps []step
			for second := range 8 {
				s := step{r.IntN(len(users)), second, topics.TypeDeviceRegistered, tokens[r.IntN(len(tokens))]}
				switch r.IntN(5) {
				case 0, 1:
					s.typ = topics.TypeDeviceUnregistered
				case 2:
					s.typ, s.token = topics.TypeDeviceUnregistered, ""
				}
				steps = append(steps, s)
			}
			fold := func(order ...int) string {
				if err := in.Reset(t.Context()); err != nil {
					t.Fatal(err)
				}
				for _, only := range order {
					for _, s := range steps {
						if only >= 0 && s.user != only {
							continue
						}
						fields := []any{"token", s.token}
						if s.token == "" {
							fields = nil
						}
						apply(t, in, topics.Devices, int32(s.user), int64(s.second), marking(users[s.user], s.typ, fields...))
					}
				}
				var out []string
				for _, u := range users {
					list, err := in.Devices(t.Context(), u)
					if err != nil {
						t.Fatal(err)
					}
					out = append(out, fmt.Sprint(u, list))
				}
				return strings.Join(out, " ")
			}
			want := fold(-1)
			for _, order := range [][]int{{0, 1, 2}, {2, 1, 0}, {1, 2, 0}} {
				if got := fold(order...); got != want {
					t.Fatalf("round %d, partitions %v: %s, want %s\n%v", round, order, got, want, steps)
				}
			}
		}
	})
}
