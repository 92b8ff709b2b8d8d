// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"fmt"
	"iter"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/revsk/revsk/api"
	"github.com/revsk/revsk/inspect"
	"github.com/revsk/revsk/internal/kclock"
	"github.com/revsk/revsk/loader"
)

func newListCommand(env *env) *cobra.Command {
	var only listFlags
	var countBy string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the sockets that talk to a service",
		Long: `Lists every socket that holds a tuple, in all network namespaces: what it is
connected to and, for datagram sockets, what it has sent to. Each tuple has a line.

  PEER      the backend
  SERVICE   the address that the application used
  HOW       connected: the kernel has the socket connected to PEER
            disconnected: it was; now it is connected elsewhere or not at all
            former: a datagram socket was connected to PEER before
            sent: a datagram socket has sent to PEER
  AGE       since it connected, connected elsewhere, or last sent; - if unknown
  NETNS     name as in "ip netns", or inode number
  PROCESS   a process that has the socket open, as PID/COMMAND; +N: and N others

-o wide also shows the local address, the reverse-NAT index, the id of the
backend, whether the tuple was migrated, cookies, inodes and all processes.

Filters can be combined: a line is listed if it matches all of them.

The table is sorted. With -o json and -o jsonl sockets are printed as they are
read, unsorted: use these for many sockets. jsonl prints one document for each
socket, on a line of its own. json prints one document with all sockets.

Applications run meanwhile: sockets that are opened or closed may be missing.
Entries of the legacy maps (modes dual and legacy) are not listed.`,
		Example: `  revsk list
  revsk list --service 10.96.0.10:53/udp --state established
  revsk list --gone --count-by process
  revsk list -o wide
  revsk list -o json | jq '.sockets[].connected.service'
  revsk list -o jsonl | grep 10.96.0.10:53`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runList(cmd.Context(), env, only, countBy) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	only.add(flags)
	addChoice(cmd, flags, &countBy, countBys, "count-by", "", "count sockets instead of listing them")
	addChoice(cmd, flags, &env.output, []string{outputTable, outputWide, outputJSON, outputLines}, "output", "o", "output format")
	return cmd
}

func runList(ctx context.Context, env *env, only listFlags, countBy string) error {
	dp, err := env.openToInspect()
	if err != nil {
		return err
	}
	defer dp.Close()
	mode, err := dp.Mode()
	if err != nil {
		return err
	}
	reader, err := inspect.Open(dp.InspectMaps(), inspect.Options{
		SkipOwners: countBy != "" && countBy != byProcess && only.pid == 0, Reuse: true,
	})
	if err != nil {
		return err
	}
	defer reader.Close()
	filter, err := only.filter(ctx, env, reader)
	if err != nil {
		return err
	}
	if mode == loader.ModeLegacy && !env.quiet {
		fmt.Fprintln(env.Stderr, "mode is legacy: sockets that connect now are in the legacy maps, and not listed")
	}
	now, err := kclock.Monotonic()
	if err != nil {
		return err
	}
	// The heap is small: frequent garbage collections cost little.
	defer debug.SetGCPercent(debug.SetGCPercent(50))
	sockets := ownedBy(reader.Sockets(ctx, filter), only)
	out := bufio.NewWriterSize(env.Stdout, 64<<10)
	switch {
	case countBy != "":
		return printCounts(env, sockets, countBy, &filter)
	case env.output == outputLines:
		err = writeLines(out, sockets, now, &filter)
	case env.json():
		err = writeSockets(out, sockets, now, &filter)
	default:
		var sorted *inspect.Sorted
		if sorted, err = reader.Sorted(ctx, filter); err != nil {
			return err
		}
		defer sorted.Close()
		err = printSockets(out, ownedBy(sorted.Sockets(ctx), only), now, &filter, env.output == outputWide)
	}
	if err != nil {
		return err
	}
	return out.Flush()
}

// ownedBy leaves out the sockets that the process of --pid does not have open.
func ownedBy(sockets iter.Seq2[inspect.Socket, error], only listFlags) iter.Seq2[inspect.Socket, error] {
	return func(yield func(inspect.Socket, error) bool) {
		for s, err := range sockets {
			if (err != nil || only.owns(&s)) && !yield(s, err) {
				return
			}
		}
	}
}

func printCounts(env *env, sockets iter.Seq2[inspect.Socket, error], by string, wanted *inspect.Filter) error {
	counts, err := countSockets(sockets, by, wanted)
	if err != nil {
		return err
	}
	if env.json() {
		return env.printJSON(api.SocketCounts{Header: newHeader(api.SocketCountsSchema), By: by, Counts: counts})
	}
	var t table
	t.row(strings.ToUpper(by), "SOCKETS", "CONNECTED")
	for _, c := range counts {
		t.row(c.Name, c.Sockets, c.Connected)
	}
	return t.print(env.Stdout)
}
