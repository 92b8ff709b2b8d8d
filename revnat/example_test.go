// SPDX-License-Identifier: Apache-2.0

package revnat_test

import (
	"errors"
	"fmt"
	"log"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/bpf/sock"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/revnat"
)

// openConn makes a map like the one that revsk load pins: ebpf.LoadPinnedMap("/sys/fs/bpf/revsk/revsk_conn", nil) opens that.
func openConn() *ebpf.Map {
	if err := rlimit.RemoveMemlock(); err != nil {
		log.Fatal(err)
	}
	spec, err := sock.LoadSock()
	if err != nil {
		log.Fatal(err)
	}
	m, err := ebpf.NewMap(spec.Maps[sock.SockMapRevskConn])
	if err != nil {
		log.Fatal(err)
	}
	return m
}

// The process that has a socket open reads and writes what the kernel keeps on it.
func ExampleConnValue() {
	conn := openConn()
	defer conn.Close()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		log.Fatal(err)
	}
	defer unix.Close(fd)

	var v revnat.ConnValue
	fmt.Println(errors.Is(conn.Lookup(uint32(fd), &v), ebpf.ErrKeyNotExist))
	err = conn.Put(uint32(fd), revnat.ConnValue{Tuple: revnat.Tuple{
		Peer:        netip.MustParseAddrPort("10.0.1.1:5353"),
		Service:     netip.MustParseAddrPort("10.96.0.10:53"),
		RevNATIndex: 7,
		Time:        1000 * revnat.TimeUnit,
	}})
	if err != nil {
		log.Fatal(err)
	}
	if err := conn.Lookup(uint32(fd), &v); err != nil {
		log.Fatal(err)
	}
	fmt.Println(v.Tuple.Service, "is", v.Tuple.Peer, "since", v.Tuple.Time)
	// Output:
	// true
	// 10.96.0.10:53 is 10.0.1.1:5353 since 17m53.741824s
}

// In the map IPv4 addresses are v4-mapped, so a v4-mapped one has no form of its own.
func ExampleTuple_MarshalBinary() {
	b, err := revnat.Tuple{Peer: netip.MustParseAddrPort("10.0.1.1:53")}.MarshalBinary()
	fmt.Printf("%x %x %v\n", b[:16], b[32:34], err)
	_, err = revnat.Tuple{Peer: netip.MustParseAddrPort("[::ffff:10.0.1.1]:53")}.MarshalBinary()
	fmt.Println(errors.Is(err, lbmap.ErrFamily), err)
	// Output:
	// 00000000000000000000ffff0a000101 0035 <nil>
	// true encoding tuple: peer: ::ffff:10.0.1.1 is v4-mapped, give it as 10.0.1.1: wrong address family
}

// With the kernel's default of net.core.optmem_max a socket has room for two tables of the largest class; since Linux 6.6
// the default is 131072.
func ExampleTableLimits() {
	for _, optmem := range []int{20480, 131072} {
		class, maps := revnat.TableLimits(optmem)
		fmt.Println("class", class, "maps", maps)
	}
	// Output:
	// class 5 maps 2
	// class 5 maps 16
}
