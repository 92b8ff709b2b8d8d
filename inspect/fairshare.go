// SPDX-License-Identifier: Apache-2.0

package inspect

// fairShare chooses among sockets, of each process as many as of any other that has so many.
type fairShare struct {
	places  int
	of      map[int][]*Termination // by process; 0 are those without
	n       int
	full    bool // some found no place
	longest int  // the process that had most when it was looked last
	most    int  // no process has more
}

func newFairShare(places int) fairShare {
	return fairShare{places: places, of: make(map[int][]*Termination), most: places}
}

func (f *fairShare) add(c *Termination) {
	process := 0
	if len(c.Socket.Owners) > 0 {
		process = c.Socket.Owners[0].ID
	}
	if f.n >= f.places {
		f.full = true
		if !f.makeRoom(len(f.of[process])) {
			return
		}
	}
	f.of[process] = append(f.of[process], c)
	f.n++
}

// makeRoom takes a place from the process that has most, if that is more than one that has so many would have then.
func (f *fairShare) makeRoom(has int) bool {
	for f.most > has+1 {
		if of := f.of[f.longest]; len(of) == f.most {
			f.of[f.longest] = of[:len(of)-1]
			f.n--
			return true
		}
		f.most = 0
		for process, of := range f.of {
			if len(of) > f.most {
				f.longest, f.most = process, len(of)
			}
		}
	}
	return false
}
