// SPDX-License-Identifier: Apache-2.0

package revnat

import (
	"fmt"
	"slices"
)

// A socket with more peers than slots has the others in a table (bpf/lib/table.h): a value in one of the
// maps of [TableMaps], or in several of class [TableClasses].
const (
	// TableClasses is the largest class of size.
	TableClasses = 5
	// TableSplit is how many maps there are of the largest class.
	TableSplit = 16
)

// tableSizes are those of the values in bytes, by class.
var tableSizes = [TableClasses + 1]int{1: 440, 952, 1976, 4024, 7760}

// TableMap is one of the maps that hold tables (struct revsk_table_512_value to revsk_table_8k_value).
type TableMap struct {
	Name string
	// Class is 1 to [TableClasses].
	Class int
	// ValueSize is the size of a value in bytes.
	ValueSize int
}

// Tuples is the number of tuples that a value has room for.
func (m TableMap) Tuples() int { return 4 << m.Class }

// TableMaps are the maps that hold tables, the smallest class first.
func TableMaps() []TableMap {
	var all []TableMap
	for i, name := range []string{"512", "1k", "2k", "4k"} {
		all = append(all, TableMap{"revsk_tab_" + name, i + 1, tableSizes[i+1]})
	}
	for n := range TableSplit {
		all = append(all, TableMap{fmt.Sprintf("revsk_tab_8k_%d", n), TableClasses, tableSizes[TableClasses]})
	}
	return all
}

// DecodeTable reads tuples that stand one after the other, as in the value of a table behind the header, and leaves out
// free places. It returns the errors of [Tuple.UnmarshalBinary].
func DecodeTable(data []byte) ([]Tuple, error) {
	var tuples []Tuple
	for b := range slices.Chunk(data, TupleSize) {
		var t Tuple
		if err := t.UnmarshalBinary(b); err != nil {
			return nil, err
		}
		if t.Peer.Port() != 0 {
			tuples = append(tuples, t)
		}
	}
	return tuples, nil
}

// What the kernel charges to the optmem of a socket, in bytes.
const (
	// storageHeader is what a value has before it.
	storageHeader = 72
	// storageBase is the socket's own part of all its storage, rounded up: 168 bytes on Linux 5.10.
	storageBase = 192
	// optmemSpare is left for socket options and control messages.
	optmemSpare = 4096
)

// TableLimits says how far tables may grow, so that all storage of a socket leaves 4 KB of net.core.optmem_max, which is
// given in bytes: the largest class (0: no table), and how many maps of class [TableClasses].
func TableLimits(optmemMax int) (class, maps int) {
	room := optmemMax - optmemSpare - storageBase
	for _, size := range []int{ConnValueSize, FormerValueSize, PeersValueSize} {
		room -= storageHeader + size
	}
	for class < TableClasses && storageHeader+tableSizes[class+1] <= room {
		class++
	}
	if class == TableClasses {
		maps = min(TableSplit, room/(storageHeader+tableSizes[class]))
	}
	return class, maps
}
