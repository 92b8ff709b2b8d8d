// SPDX-License-Identifier: Apache-2.0

package loader_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	"github.com/revsk/revsk/inspect"
	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/loader"
)

// exampleOptions are the defaults but for the cgroup, which is the root if it is not named.
func exampleOptions() loader.Options { return loader.Options{Cgroup: sandbox.Cgroup()} }

// unload detaches the hooks and removes the maps.
func unload(ctx context.Context) {
	if err := loader.Unload(ctx, exampleOptions(), true); err != nil {
		log.Fatal(err)
	}
}

// What an agent does when it starts: it attaches the hooks, or replaces those that run.
func Example() {
	ctx := context.Background()
	dp, err := loader.Load(ctx, exampleOptions())
	if err != nil {
		log.Fatal(err)
	}
	defer unload(ctx)
	defer dp.Close()

	status, err := dp.Status()
	if err != nil {
		log.Fatal(err)
	}
	attached := 0
	for _, h := range status.Hooks {
		if h.Attached {
			attached++
		}
	}
	fmt.Println("mode", status.Mode, "hooks", attached, "problems", len(status.Problems))
	// Output: mode storage hooks 11 problems 0
}

// Another process, such as a command, opens what is loaded.
func ExampleOpen() {
	ctx := context.Background()
	if _, err := loader.Open(exampleOptions()); errors.Is(err, loader.ErrNotLoaded) {
		fmt.Println("not loaded")
	}
	dp, err := loader.Load(ctx, exampleOptions())
	if err != nil {
		log.Fatal(err)
	}
	dp.Close() // the hooks stay attached
	defer unload(ctx)

	dp, err = loader.Open(exampleOptions())
	if err != nil {
		log.Fatal(err)
	}
	defer dp.Close()
	mode, err := dp.Mode()
	if err != nil {
		log.Fatal(err)
	}
	sockets, err := inspect.Sockets(ctx, dp.InspectMaps(), inspect.Options{SkipOwners: true})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("mode", mode, "sockets", len(sockets))
	// Output:
	// not loaded
	// mode storage sockets 0
}

// A plan checks everything and changes nothing.
func ExamplePlanLoad() {
	changes, err := loader.PlanLoad(context.Background(), exampleOptions())
	if err != nil {
		log.Fatal(err)
	}
	kinds := make(map[string]int)
	for _, c := range changes {
		kinds[c.Action]++
	}
	fmt.Println(kinds[loader.ActionAttach], "programs to attach")
	_, err = loader.Open(exampleOptions())
	fmt.Println(errors.Is(err, loader.ErrNotLoaded))
	// Output:
	// 11 programs to attach
	// true
}

// The modes mirror, dual and legacy keep the hash, which other programs read.
func ExampleDatapath_SetMode() {
	ctx := context.Background()
	dp, err := loader.Load(ctx, exampleOptions())
	if err != nil {
		log.Fatal(err)
	}
	defer unload(ctx)
	defer dp.Close()
	if err := dp.SetMode(ctx, loader.ModeDual, false); err != nil {
		log.Fatal(err)
	}
	mode, err := dp.Mode()
	fmt.Println(mode, err)
	// Output: dual <nil>
}

func ExampleParseMode() {
	mode, err := loader.ParseMode("mirror")
	fmt.Println(mode, err)
	_, err = loader.ParseMode("both")
	fmt.Println(err)
	// Output:
	// mirror <nil>
	// unknown mode "both": use storage, mirror, dual or legacy
}
