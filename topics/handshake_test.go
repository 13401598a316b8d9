package topics_test

import (
	"encoding/json"
	"net/url"
	"reflect"
	"testing"

	"github.com/nexus/nexus/topics"
)

// parts are all parts of a handshake.
var parts = []topics.HandshakePart{topics.BareQuery, topics.SocketQuery, topics.SocketAuth}

func TestReadHandshake(t *testing.T) {
	for query, want := range map[string]topics.Handshake{
		"":                                   {},
		"userId=a&token=t":                   {UserID: "a", Token: "t"},
		"userId=a&userId=b&token=t":          {UserID: "a", Token: "t"}, // the first counts
		"userId=a&token=t&offset=":           {UserID: "a", Token: "t", WantsOffsets: true},
		"userId=a&token=t&offset=o":          {UserID: "a", Token: "t", Offset: "o", WantsOffsets: true},
		"userId=a&token=t&events=canonical":  {UserID: "a", Token: "t", Canonical: true},
		"userId=a&token=t&events=Canonical":  {UserID: "a", Token: "t"},
		"userid=a&TOKEN=t&pid=p&other=thing": {},
	} {
		q, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		if got := topics.ReadHandshake(q); got != want {
			t.Errorf("%s: %+v, want %+v", query, got, want)
		}
	}
}

// What auth says goes before the query, word by word; offset and pid are of auth alone.
func TestHandshakeConnect(t *testing.T) {
	query := topics.Handshake{UserID: "q", Token: "tq", Offset: "oq", WantsOffsets: true, Canonical: true}
	for auth, want := range map[string]topics.Handshake{
		``:                                   {UserID: "q", Token: "tq", Canonical: true},
		`{}`:                                 {UserID: "q", Token: "tq", Canonical: true},
		`null`:                               {UserID: "q", Token: "tq", Canonical: true},
		`{"userId":null,"token":null}`:       {UserID: "q", Token: "tq", Canonical: true},
		`{"userId":"","token":""}`:           {Canonical: true},
		`{"token":"t","pid":"p","more":[1]}`: {UserID: "q", Token: "t", PID: "p", Canonical: true},
		`{"userId":"a","pid":"p","offset":"o","events":"x"}`: {UserID: "a", Token: "tq", PID: "p", Offset: "o", Canonical: true},
	} {
		if got, err := query.Connect([]byte(auth)); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", auth, got, err, want)
		}
	}
	for _, auth := range []string{`"x"`, `[]`, `1`, `{"userId":1}`, `{"token":{}}`, `{"pid":1}`, `{"offset":[]}`, `{`} {
		if got, err := query.Connect([]byte(auth)); err == nil || got != (topics.Handshake{}) {
			t.Errorf("%s: %+v, %v", auth, got, err)
		}
	}
}

// The table is what is read: each of its words changes what is read, and no other does.
func TestHandshakeTable(t *testing.T) {
	read := map[topics.HandshakePart]func(word, value string) topics.Handshake{
		topics.BareQuery: func(word, value string) topics.Handshake { return topics.ReadHandshake(url.Values{word: {value}}) },
		topics.SocketQuery: func(word, value string) topics.Handshake {
			h, _ := topics.ReadHandshake(url.Values{word: {value}}).Connect(nil)
			return h
		},
		topics.SocketAuth: func(word, value string) topics.Handshake {
			auth, _ := json.Marshal(map[string]string{word: value})
			h, _ := topics.Handshake{}.Connect(auth)
			return h
		},
	}
	for _, p := range parts {
		known := make(map[string]bool)
		for _, f := range topics.HandshakeFields(p) {
			known[f.Name] = true
			value := "v"
			if len(f.Enum) > 0 {
				value = f.Enum[0]
			}
			if read[p](f.Name, value) == (topics.Handshake{}) {
				t.Errorf("part %d: %s is in the table and is not read", p, f.Name)
			}
		}
		for _, word := range []string{"userId", "token", "offset", "events", "pid", "sid", "canonical"} {
			for _, value := range []string{"v", "canonical"} {
				if !known[word] && read[p](word, value) != (topics.Handshake{}) {
					t.Errorf("part %d: %s is read and is not in the table", p, word)
				}
			}
		}
	}
}

func TestConnectAnswers(t *testing.T) {
	for want, got := range map[string][]byte{
		`{"sid":"s","pid":"p"}`:                     topics.ConnectAnswer{SID: "s", PID: "p"}.Data(),
		`{"message":"no","data":{"code":"teapot"}}`: topics.Failure{Code: "teapot", Message: "no"}.ConnectError(),
		`{"message":"Invalid namespace"}`:           topics.Failure{Message: "Invalid namespace"}.ConnectError(),
	} {
		if string(got) != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	var members map[string]string
	if err := json.Unmarshal(topics.ConnectAnswer{SID: "s", PID: "p"}.Data(), &members); err != nil {
		t.Fatal(err)
	}
	told := make(map[string]string)
	for _, f := range topics.ConnectAnswerFields() {
		told[f.Name] = f.Name[:1]
	}
	if !reflect.DeepEqual(members, told) {
		t.Errorf("the table says %v, the answer has %v", told, members)
	}
}
