package edge

import "testing"

func FuzzParseRaw(f *testing.F) {
	f.Add([]byte(`{"event":"subscribe","data":{"channels":["a"]},"id":1}`))
	f.Add([]byte(`{"event":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parseRaw(b)
		if err == nil && len(c.ack) > maxAck {
			t.Error("an id beyond its bound")
		}
	})
}
