package api

import (
	"embed"
	"io/fs"
	"net/http"
	"path"

	"github.com/labstack/echo/v4"

	"github.com/nexus/nexus/internal/apierr"
)

// contract holds the documents that internal/contract makes (make contracts).
//
//go:embed contract
var contract embed.FS

// Media types of the documents (RFC 9512; RFC 8259 with the JSON Schema specification, section 14).
const (
	mediaYAML   = "application/yaml"
	mediaSchema = "application/schema+json"
	mediaHTML   = "text/html; charset=utf-8"
)

// document answers with a file of the contract.
func document(name, media string) func(*API, echo.Context) error {
	return func(_ *API, c echo.Context) error { return serveDocument(c, name, media) }
}

// schema answers with a JSON Schema.
func (a *API) schema(c echo.Context) error {
	name, err := param(c, "name")
	if err != nil {
		return err
	}
	return serveDocument(c, path.Join("schemas", path.Base("/"+name)), mediaSchema)
}

func serveDocument(c echo.Context, name, media string) error {
	b, err := fs.ReadFile(contract, path.Join("contract", name))
	if err != nil {
		return &apierr.Error{Code: apierr.CodeNotFound, Message: "there is no such document; /docs lists them"}
	}
	if media == mediaHTML { // it needs no script and nothing from elsewhere
		c.Response().Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	}
	return c.Blob(http.StatusOK, media, b)
}
