// Command client shows a user's notifications as they come, over a bare WebSocket. It reconnects by itself and is given what
// it missed.
//
//	NEXUS_TOKEN=… go run ./examples/go/client
package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/gorilla/websocket"
)

// frame is what the server sends: one event in each text message.
type frame struct {
	Event  string          `json:"event"`
	Data   json.RawMessage `json:"data"`
	Offset string          `json:"offset"` // where this client stands after the frame
}

// notification is what this program uses of a notification.
type notification struct {
	ID, Title, Body string
}

func main() {
	base := strings.Replace(cmp.Or(os.Getenv("NEXUS_URL"), "http://localhost:3000"), "http", "ws", 1)
	user, token := cmp.Or(os.Getenv("NEXUS_USER"), "alice"), os.Getenv("NEXUS_TOKEN")
	offset := "" // empty: only what is new
	for pause := time.Second; ; pause = min(2*pause, 30*time.Second) {
		address := base + "/dashboard?" + url.Values{"userId": {user}, "token": {token}, "offset": {offset}}.Encode()
		if ws, answer, err := websocket.DefaultDialer.Dial(address, nil); err == nil { //nolint:bodyclose // gorilla: it need not be closed
			pause = time.Second
			log.Print("the connection has ended: ", show(ws, &offset))
			ws.Close()
		} else if answer != nil && answer.StatusCode < 500 && answer.StatusCode != http.StatusTooManyRequests {
			log.Fatal("refused: ", answer.Status, "; is NEXUS_TOKEN a token of ", user, "?")
		}
		time.Sleep(pause)
	}
}

// show prints notifications until the connection ends, and keeps the offset for the next one.
func show(ws *websocket.Conn, offset *string) error {
	for {
		var f frame
		if err := ws.ReadJSON(&f); err != nil { // pings of the server are answered while reading
			return err
		}
		switch f.Event {
		case "connected":
			fmt.Println("connected")
		case "notification":
			var n notification
			if err := json.Unmarshal(f.Data, &n); err != nil {
				return err
			}
			// After a reconnect the same notification may come again; who must not show it twice remembers its id.
			fmt.Printf("%s: %s (%s)\n", n.Title, n.Body, n.ID)
		case "error":
			fmt.Printf("the server says: %s\n", f.Data)
		}
		if f.Offset != "" {
			*offset = f.Offset
		}
	}
}
