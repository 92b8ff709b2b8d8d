// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"

	"github.com/revsk/revsk/api"
)

// schemas are those of docs/schemas, by what the field "schema" says.
var schemas = sync.OnceValues(func() (map[string]*jsonschema.Schema, error) {
	files, err := filepath.Glob("../../docs/schemas/*.json")
	if err != nil {
		return nil, err
	}
	all := make(map[string]*jsonschema.Schema)
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	for _, file := range files {
		schema, err := c.Compile(file)
		if err != nil {
			return nil, err
		}
		all[schema.Title] = schema
	}
	return all, nil
})

// requireDocuments requires of what a command has printed, if it is JSON, that it is as the schema says. Every test of a command
// comes by here.
func requireDocuments(t *testing.T, args []string, stdout string) {
	t.Helper()
	if !strings.HasPrefix(stdout, "{") {
		return
	}
	all, err := schemas()
	require.NoError(t, err)
	documents := []string{stdout}
	if slices.Contains(args, outputLines) {
		documents = strings.Split(strings.TrimSpace(stdout), "\n")
	}
	for _, text := range documents {
		document, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
		require.NoError(t, err, "%s", text)
		name, ok := document.(map[string]any)["schema"].(string)
		if !ok {
			require.Contains(t, args, outputLines, "a document without a schema: %s", text)
			name = api.SocketSchema
		}
		require.Contains(t, all, name, "docs/schemas has all")
		require.NoError(t, all[name].Validate(document), "%s", text)
	}
}

func TestEverySchemaNamesItsDocument(t *testing.T) {
	all, err := schemas()
	require.NoError(t, err)
	files, err := os.ReadDir("../../docs/schemas")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for name, schema := range all {
		require.NotEmpty(t, name)
		require.Error(t, schema.Validate(map[string]any{}), "an empty document is none")
	}
}

func TestAnErrorIsADocumentWhereJSONWasAskedFor(t *testing.T) {
	r := runCommand(t, "list", "--bpffs", t.TempDir(), "-o", "json")
	var doc api.Error
	require.NoError(t, json.Unmarshal([]byte(r.stdout), &doc))
	require.Equal(t, api.ErrorSchema, doc.Schema)
	require.Equal(t, r.code, doc.ExitCode)
	require.NotZero(t, doc.ExitCode)
	require.Contains(t, r.stderr, doc.Error)
	require.NotEmpty(t, doc.Node)
}
