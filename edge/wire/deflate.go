package wire

import (
	"bytes"
	"compress/flate"
	"net/http"
	"strings"
	"sync"
)

// negotiateDeflate accepts an offer of permessage-deflate without a bound on our window (RFC 7692, section 7.1), and
// leaves just that offer for the upgrader, so that both agree on the outcome.
func negotiateDeflate(h http.Header) bool {
	offers := strings.Join(h.Values("Sec-Websocket-Extensions"), ",")
	h.Del("Sec-Websocket-Extensions")
	for offer := range strings.SplitSeq(offers, ",") {
		name, params, _ := strings.Cut(offer, ";")
		if strings.TrimSpace(name) == "permessage-deflate" && !strings.Contains(params, "server_max_window_bits") {
			h.Set("Sec-Websocket-Extensions", "permessage-deflate")
			return true
		}
	}
	return false
}

var deflaters = sync.Pool{New: func() any {
	w, _ := flate.NewWriter(nil, flate.BestSpeed) // the level is valid
	return w
}}

// deflate compresses a message without context of others (RFC 7692, section 7.2.1).
func deflate(payload []byte) []byte {
	var b bytes.Buffer
	w := deflaters.Get().(*flate.Writer)
	defer deflaters.Put(w)
	w.Reset(&b)
	_, _ = w.Write(payload) // a bytes.Buffer takes everything
	_ = w.Flush()
	return bytes.TrimSuffix(b.Bytes(), []byte{0, 0, 0xff, 0xff})
}
