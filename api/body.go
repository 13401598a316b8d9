package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"

	"github.com/labstack/echo/v4"

	"github.com/nexus/nexus/internal/apierr"
)

// read decodes a body, one JSON object, into v.
func read(c echo.Context, v any) error {
	b, err := io.ReadAll(c.Request().Body)
	if err != nil {
		return err
	}
	return decode(b, v)
}

// decode decodes one JSON value, of which v has every member, and says in the caller's words what is wrong with it.
func decode(b []byte, v any) error {
	if len(bytes.TrimSpace(b)) == 0 {
		return apierr.Invalid("the body is empty; send JSON")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return apierr.Invalid(mistake(err))
	}
	if _, err := d.Token(); err != io.EOF {
		return apierr.Invalid("the body has more than one JSON value; send one")
	}
	return nil
}

// mistake tells an error of encoding/json without its words.
func mistake(err error) string {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return "the body is not JSON: it ends too early"
	case errors.As(err, &syntax):
		return fmt.Sprintf("the body is not JSON: it is wrong at byte %d", syntax.Offset)
	case errors.As(err, &kind) && kind.Field != "":
		field := strings.TrimPrefix(kind.Field, "to.") // the path names embedded structs; clients know of none
		return fmt.Sprintf("field %s must be %s", clip(field), kindName(kind.Type))
	case errors.As(err, &kind):
		return "the body must be " + kindName(kind.Type)
	}
	if _, name, ok := strings.Cut(err.Error(), "unknown field "); ok {
		return "unknown field " + clip(name)
	}
	return "the body is not the JSON that is expected"
}

// kindName is JSON's word for what a Go type is decoded from.
func kindName(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Slice, reflect.Array:
		return "an array"
	case reflect.Int, reflect.Int64, reflect.Float64:
		return "a number"
	}
	return "an object"
}

// maxClip bounds what an error repeats of a request, in bytes.
const maxClip = 64

func clip(s string) string {
	if len(s) > maxClip {
		s = strings.ToValidUTF8(s[:maxClip], "") + "…"
	}
	return s
}
