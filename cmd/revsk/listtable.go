// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/revsk/revsk/inspect"
	"github.com/revsk/revsk/revnat"
)

// age is the time since that of the tuple; false if it is unknown.
func age(t revnat.Tuple, now time.Duration) (time.Duration, bool) {
	return max(0, (now - t.Time).Truncate(time.Second)), t.Time != 0
}

func ageText(t revnat.Tuple, now time.Duration) string {
	if age, known := age(t, now); known {
		return age.String()
	}
	return "-"
}

// printSockets prints a line for each tuple, sorted.
func printSockets(w io.Writer, sockets iter.Seq2[inspect.Socket, error], now time.Duration, wanted tupleFilter) error {
	var all []*inspect.Socket
	for s, err := range sockets {
		if err != nil {
			return err
		}
		all = append(all, &s)
	}
	slices.SortFunc(all, (*inspect.Socket).Compare)
	var t table
	t.row("PROTO", "STATE", "LOCAL", "PEER", "SERVICE", "REV-NAT", "HOW", "AGE", "NETNS", "COOKIE", "PROCESS")
	for _, s := range all {
		for role, tuple := range s.Tuples() {
			if wanted(s, role, tuple) {
				t.row(s.Protocol, s.StateName(), s.Local, tuple.Peer, tuple.Service, tuple.RevNATIndex, role,
					ageText(*tuple, now), netnsText(s.NetNS), cookieText(s.Cookie), ownersText(s.Owners))
			}
		}
	}
	return t.print(w)
}

func netnsText(ns inspect.NetNS) string {
	if ns.Name != "" {
		return cell(ns.Name)
	}
	return strconv.FormatUint(ns.Inode, 10)
}

func cookieText(cookie uint64) string {
	if cookie == 0 {
		return ""
	}
	return strconv.FormatUint(cookie, 10)
}

func ownersText(owners []inspect.Process) string {
	var texts []string
	for _, p := range owners {
		texts = append(texts, processText(p))
	}
	return strings.Join(texts, ",")
}

func processText(p inspect.Process) string { return fmt.Sprintf("%d/%s", p.ID, cell(p.Command)) }

// cell is printable text that does not look like several cells of a table, or several processes.
func cell(s string) string { return strings.NewReplacer(" ", "?", ",", "?").Replace(printable(s)) }

// printable is for text that a process chose for itself.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !strconv.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
