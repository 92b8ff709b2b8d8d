// SPDX-License-Identifier: Apache-2.0

package api

// Schemas of the documents of revsk list and revsk terminate.
const (
	SocketsSchema      = "revsk/sockets/v1"
	SocketSchema       = "revsk/socket/v1" // of a line of list -o jsonl, which does not say so
	SocketCountsSchema = "revsk/socket-counts/v1"
	TerminateSchema    = "revsk/terminate/v1"
)

// Sockets is the output of revsk list -o json. With -o jsonl there is a [Socket] on each line, and nothing else.
type Sockets struct {
	Header
	Sockets []Socket `json:"sockets"` // in no order
}

// Socket is a socket and the tuples that it holds.
type Socket struct {
	Protocol string `json:"protocol"` // tcp, udp, …
	Family   string `json:"family"`   // ipv4 or ipv6
	// State is the kernel's; of a datagram socket established or unconnected.
	State string `json:"state"`
	Local string `json:"local"` // ADDR:PORT
	// Peer is what the kernel has the socket connected to; missing if it is not connected.
	Peer      string `json:"peer,omitempty"`
	NetNS     NetNS  `json:"netns"`
	Cookie    uint64 `json:"cookie,string"`
	Inode     uint64 `json:"inode"` // 0: no application has it open
	Connected *Tuple `json:"connected" jsonschema:"nullable"`
	// Disconnected is what it was connected to last; the kernel has it connected elsewhere, or not at all.
	Disconnected *Tuple    `json:"disconnected,omitempty"`
	Former       *Tuple    `json:"former,omitempty"` // of a datagram socket that has connected elsewhere
	Sent         []Tuple   `json:"sent"`
	Processes    []Process `json:"processes"`
}

// NetNS is a network namespace.
type NetNS struct {
	Inode  uint64 `json:"inode"`
	Cookie uint64 `json:"cookie,string"`
	Name   string `json:"name,omitempty"` // as of ip netns
}

// Tuple says that what goes to Service goes to Peer.
type Tuple struct {
	Peer       string `json:"peer"`    // ADDR:PORT
	Service    string `json:"service"` // ADDR:PORT
	RevNat     uint16 `json:"rev_nat"`
	BackendID  uint32 `json:"backend_id"`                        // 0: unknown
	AgeSeconds *int64 `json:"age_seconds" jsonschema:"nullable"` // null: unknown
	// Migrated tuples were brought from the legacy maps.
	Migrated bool `json:"migrated"`
}

// Process is a process that has a socket open.
type Process struct {
	PID     int    `json:"pid"`
	Command string `json:"command"`
}

// SocketCounts is the output of revsk list --count-by.
type SocketCounts struct {
	Header
	By     string        `json:"by"` // service, backend, netns or process
	Counts []SocketCount `json:"counts"`
}

// SocketCount is a number of sockets.
type SocketCount struct {
	Name string `json:"name"` // as in the table of sockets; with the protocol, of services and backends
	// Sockets is how many have tuples of it.
	Sockets int `json:"sockets"`
	// Connected is how many of them are connected by one.
	Connected int `json:"connected"`
}

// Terminate is the output of revsk terminate.
type Terminate struct {
	Header
	DryRun bool `json:"dry_run"`
	// Mechanism is bpf_sock_destroy or sock_diag; missing if no socket was connected.
	Mechanism string   `json:"mechanism,omitempty"`
	Backends  []string `json:"backends"`          // ADDR:PORT/PROTO
	Service   string   `json:"service,omitempty"` // ADDR:PORT or ADDR:PORT/PROTO
	Destroyed int      `json:"destroyed"`
	Left      int      `json:"left"`
	Failed    int      `json:"failed"`
	// Unmigrated sockets are connected to the backends too; only the legacy maps say by which service.
	Unmigrated int `json:"unmigrated"`
	// Sockets are as they were before.
	Sockets []TerminatedSocket `json:"sockets"`
}

// TerminatedSocket is what became of a socket.
type TerminatedSocket struct {
	Socket
	// Outcome is destroyed, left or failed, and found in a dry run.
	Outcome string `json:"outcome"`
	Error   string `json:"error,omitempty"`
}
