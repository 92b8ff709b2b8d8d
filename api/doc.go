// SPDX-License-Identifier: Apache-2.0

// Package api has the Go types of the JSON documents that the command revsk prints with -o json and -o jsonl, from which
// revsk itself makes them. docs/schemas has the same as JSON Schemas.
//
// A document names its type in the field "schema": revsk/NAME/vN. Within a version fields are added, but none
// is removed or changes its meaning. Cookies are strings, because many readers of JSON have no numbers so large.
// Addresses with a port are ADDR:PORT, those of IPv6 in brackets; PROTO is tcp, udp, … or any.
package api
