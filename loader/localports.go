// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Where the kernel says which ports it gives to sockets that ask for any, and which of them it does not.
const (
	localPortRange     = "/proc/sys/net/ipv4/ip_local_port_range"
	localReservedPorts = "/proc/sys/net/ipv4/ip_local_reserved_ports"
)

// warnOfLocalPorts says so if the kernel gives NodePorts to sockets that ask for any port: those of services are
// refused by the hooks, and such a bind then fails with EADDRINUSE now and then.
func (o Options) warnOfLocalPorts() {
	if !o.Features.NodePort {
		return
	}
	local, err := os.ReadFile(localPortRange)
	if err != nil {
		return // there is nothing to warn of that is known
	}
	reserved, err := os.ReadFile(localReservedPorts)
	if err != nil {
		return
	}
	if n := overlap(string(local), string(reserved), o.Features); n > 0 {
		o.Logger.Warn("sockets that bind to any port can be given NodePorts, and are refused those that have a service",
			"ports", n, "ip_local_port_range", strings.Join(strings.Fields(string(local)), "-"),
			"nodeport_range", fmt.Sprintf("%d-%d", o.Features.NodePortMin, o.Features.NodePortMax),
			"mend", fmt.Sprintf("sysctl net.ipv4.ip_local_reserved_ports=%d-%d", o.Features.NodePortMin, o.Features.NodePortMax))
	}
}

// overlap counts the NodePorts in the kernel's range that are not reserved, such as "8080,9000-9010".
func overlap(local, reserved string, f *Features) int {
	var first, last int
	if _, err := fmt.Sscan(local, &first, &last); err != nil {
		return 0
	}
	kept := make(map[int]bool)
	for part := range strings.SplitSeq(strings.TrimSpace(reserved), ",") {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		a, errA := strconv.Atoi(from)
		b, errB := strconv.Atoi(to)
		if errA != nil || errB != nil {
			continue
		}
		for port := a; port <= b; port++ {
			kept[port] = true
		}
	}
	n := 0
	for port := max(first, int(f.NodePortMin)); port <= min(last, int(f.NodePortMax)); port++ {
		if !kept[port] {
			n++
		}
	}
	return n
}
