// SPDX-License-Identifier: Apache-2.0

package api_test

import (
	"bytes"
	"encoding"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/invopop/jsonschema"
	"github.com/stretchr/testify/require"

	"github.com/revsk/revsk/api"
)

var update = flag.Bool("update", false, "write the schemas into docs/schemas")

// documents are the types of the documents, by their schema.
var documents = map[string]any{
	api.ErrorSchema:          api.Error{},
	api.SocketsSchema:        api.Sockets{},
	api.SocketSchema:         api.Socket{},
	api.SocketCountsSchema:   api.SocketCounts{},
	api.TerminateSchema:      api.Terminate{},
	api.ServicesSchema:       api.Services{},
	api.ServiceChangeSchema:  api.ServiceChange{},
	api.MigratePlanSchema:    api.MigratePlan{},
	api.MigrateReportSchema:  api.MigrateReport{},
	api.RollbackReportSchema: api.RollbackReport{},
	api.FeaturesSchema:       api.Features{},
	api.VersionSchema:        api.Version{},
	api.StatusSchema:         api.Status{},
	api.ModeSchema:           api.Mode{},
	api.ChangesSchema:        api.Changes{},
	api.SelftestSchema:       api.Selftest{},
}

// schemaOf is the schema of a type, as docs/schemas has it.
func schemaOf(t *testing.T, name string, document any) []byte {
	t.Helper()
	r := jsonschema.Reflector{
		Anonymous: true,
		// Within a version fields are added.
		AllowAdditionalProperties: true,
		// Types of several packages have the same name.
		Namer: func(t reflect.Type) string {
			if strings.HasSuffix(t.PkgPath(), "/api") {
				return t.Name()
			}
			return strings.TrimPrefix(filepath.Base(t.PkgPath())+"_"+t.Name(), "._")
		},
		Mapper: func(t reflect.Type) *jsonschema.Schema {
			if t != reflect.TypeFor[time.Time]() && t.Implements(reflect.TypeFor[encoding.TextMarshaler]()) {
				return &jsonschema.Schema{Type: "string"}
			}
			return nil
		},
	}
	for _, dir := range []string{"api", "loader", "migrate", "selftest"} {
		require.NoError(t, r.AddGoComments("github.com/revsk/revsk", "./"+dir, jsonschema.WithFullComment()))
	}
	schema := r.Reflect(document)
	schema.Title = name
	text, err := json.MarshalIndent(schema, "", "  ")
	require.NoError(t, err)
	return append(text, '\n')
}

// fileOf is where the schema of revsk/NAME/vN is.
func fileOf(name string) string {
	return filepath.Join("docs", "schemas", strings.ReplaceAll(strings.TrimPrefix(name, "revsk/"), "/", "-")+".json")
}

func TestSchemasAreThoseOfTheTypes(t *testing.T) {
	t.Chdir("..") // comments are looked for from there
	files := make(map[string]bool)
	for name, document := range documents {
		want := schemaOf(t, name, document)
		if *update {
			require.NoError(t, os.MkdirAll(filepath.Dir(fileOf(name)), 0o755))
			require.NoError(t, os.WriteFile(fileOf(name), want, 0o644))
		}
		have, err := os.ReadFile(fileOf(name))
		require.NoError(t, err, "run the test with -update")
		require.True(t, bytes.Equal(want, have), "%s is not what the type says: run the test with -update", fileOf(name))
		files[filepath.Base(fileOf(name))] = true
	}
	entries, err := os.ReadDir(filepath.Join("docs", "schemas"))
	require.NoError(t, err)
	for _, e := range entries {
		require.True(t, files[e.Name()] || e.Name() == "README.md", "%s is of no document", e.Name())
	}
}
