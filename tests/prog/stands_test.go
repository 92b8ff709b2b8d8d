// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"fmt"
	"testing"

	"github.com/revsk/revsk/lbmap"
)

// ends are the ways in which service n stops standing for its backend.
var ends = []struct {
	name string
	end  func(s *scene, n int)
}{
	{"service gone", func(s *scene, n int) { s.deleteService(n) }},
	{"index reused", func(s *scene, n int) {
		s.putService(n, lbmap.ServiceValue{Count: 1, RevNat: uint16(n) + 100})
	}},
	{"no backends", func(s *scene, n int) {
		s.putService(n, lbmap.ServiceValue{Count: 0, RevNat: uint16(n)})
	}},
}

// inEach makes a rule of each way in which a service ends.
func inEach(rules ...endRule) []rule {
	var all []rule
	for _, e := range ends {
		for _, r := range rules {
			all = append(all, rule{fmt.Sprintf("%s: %s", e.name, r.name), func(s *scene) {
				s.serve(1, 2, 3)
				r.play(s, func(n int) { e.end(s, n) })
			}})
		}
	}
	return all
}

type endRule struct {
	name string
	play func(s *scene, end func(n int))
}

// Which service a socket is connected to is a fact, whatever becomes of the service.
func TestAConnectionStaysTrueWhateverBecomesOfTheService(t *testing.T) {
	holdForAll(t, inEach(
		endRule{"getpeername reports it, for as long as it lasts", func(s *scene, end func(int)) {
			s.connect(s.tuple(1, 1))
			end(1)
			s.now += 1_000_000
			s.unchangedBy("a read", func() { s.wantPeername(s.family.backend(1), s.family.service(1)) })
			s.counted(counts{stored: 1})
		}},
		endRule{"getpeername reports another peer as it is", func(s *scene, end func(int)) {
			s.connect(s.tuple(1, 1))
			end(1)
			s.wantPeername(s.family.backend(2), s.family.backend(2))
		}},
	)...)
	holdForDatagrams(t, inEach(
		endRule{"recvmsg reports it, for as long as it lasts", func(s *scene, end func(int)) {
			s.connect(s.tuple(1, 1))
			end(1)
			s.now += 1_000_000
			s.unchangedBy("a read", func() { s.wantSource(s.family.backend(1), s.family.service(1)) })
			s.counted(counts{stored: 1})
		}},
		endRule{"getpeername reports the former one, if the kernel has rejected the one after it", func(s *scene, end func(int)) {
			s.connect(s.tuple(1, 1))
			s.connect(s.tuple(2, 2))
			end(1)
			s.now += 1_000_000
			s.unchangedBy("a read", func() { s.wantPeername(s.family.backend(1), s.family.service(1)) })
		}},
		endRule{"recvmsg reports the former one for as long, too, if the socket is still in it", func(s *scene, end func(int)) {
			const port = 20001
			s.connect(s.tupleOn(1, port))
			s.associate(s.on(port))
			s.connect(s.tuple(2, 2))
			end(1)
			s.now += 1_000_000
			s.unchangedBy("a read", func() { s.wantSource(s.on(port), s.family.service(1)) })
			s.dissociate()
			s.wantSource(s.on(port), s.on(port))
		}},
		endRule{"recvmsg reports one that others have overtaken, if the kernel comes to it last", func(s *scene, end func(int)) {
			const port = 20001
			s.connect(s.tupleOn(1, port))
			s.connect(s.tuple(2, 2))
			s.connect(s.tuple(3, 3))
			s.associate(s.on(port))
			end(1)
			s.now += 1_000_000
			s.unchangedBy("a read", func() { s.wantSource(s.on(port), s.family.service(1)) })
			s.dissociate()
			s.wantSource(s.on(port), s.on(port))
		}},
	)...)
}

// What was sent to is true as long as an answer can be expected, and then as long as the service stands.
func TestWhatWasSentIsTrueForAsLongAsAnAnswerCanBeExpected(t *testing.T) {
	holdForDatagrams(t, inEach(
		endRule{"recvmsg reports the service for five minutes", func(s *scene, end func(int)) {
			s.send(s.tuple(1, 1))
			end(1)
			s.unchangedBy("a read", func() { s.wantSource(s.family.backend(1), s.family.service(1)) })
			s.now += answerTime
			s.unchangedBy("a read", func() { s.wantSource(s.family.backend(1), s.family.service(1)) })
			s.counted(counts{stored: 1})
		}},
		endRule{"recvmsg reports the backend after that, and the tuple stays", func(s *scene, end func(int)) {
			s.send(s.tuple(1, 1))
			end(1)
			s.now += answerTime + 1
			s.unchangedBy("a read", func() { s.wantSource(s.family.backend(1), s.family.backend(1)) })
			s.serve(1)
			s.wantSource(s.family.backend(1), s.family.service(1))
			s.counted(counts{stored: 1})
		}},
		endRule{"the five minutes begin with the last send", func(s *scene, end func(int)) {
			s.send(s.tuple(1, 1))
			s.now += answerTime
			s.send(s.tuple(1, 1))
			end(1)
			s.now += answerTime
			s.wantSource(s.family.backend(1), s.family.service(1))
			s.now++
			s.wantSource(s.family.backend(1), s.family.backend(1))
		}},
		endRule{"in the table, too", func(s *scene, end func(int)) {
			s.send(s.tuple(4, 4), s.tuple(3, 3), s.tuple(2, 2), s.tuple(1, 1))
			s.wantTable(s.tuple(1, 1))
			end(1)
			s.now += answerTime
			s.wantSource(s.family.backend(1), s.family.service(1))
			s.now++
			s.wantSource(s.family.backend(1), s.family.backend(1))
			s.wantTable(s.tuple(1, 1).at(firstTime))
		}},
		endRule{"it hides the connection to the same backend no longer", func(s *scene, end func(int)) {
			s.connect(s.tuple(1, 1))
			s.send(s.tuple(2, 1))
			end(1)
			end(2)
			s.now += answerTime
			s.wantSource(s.family.backend(1), s.family.service(2))
			s.now++
			s.wantSource(s.family.backend(1), s.family.service(1))
			s.wantPeername(s.family.backend(1), s.family.service(1))
			s.counted(counts{stored: 2})
		}},
		endRule{"it hides the former connection to the same backend no longer, which answers for as long", func(s *scene, end func(int)) {
			s.connect(s.tuple(1, 1))
			s.send(s.tuple(2, 1))
			s.now += answerTime
			s.connect(s.tuple(3, 3))
			end(1)
			end(2)
			s.wantSource(s.family.backend(1), s.family.service(2))
			s.now++
			s.wantSource(s.family.backend(1), s.family.service(1))
			s.now += answerTime - 1
			s.wantSource(s.family.backend(1), s.family.service(1))
			s.now++
			s.unchangedBy("a read", func() { s.wantSource(s.family.backend(1), s.family.backend(1)) })
		}},
		endRule{"getpeername says nothing of it", func(s *scene, end func(int)) {
			s.send(s.tuple(1, 1))
			end(1)
			s.wantPeername(s.family.backend(1), s.family.backend(1))
		}},
	)...)
	holdForDatagrams(t, rule{"a service that stands is reported for ever", func(s *scene) {
		s.serve(1)
		s.send(s.tuple(1, 1))
		s.now += 1_000_000
		s.wantSource(s.family.backend(1), s.family.service(1))
	}})
}

// What a socket remembers from up to the mark may have changed unnoticed: it answers while the service stands,
// until the application has confirmed it.
func TestUpToTheMark(t *testing.T) {
	holdForAll(t, inEach(
		endRule{"a connection from before is reported while its service stands, and stays", func(s *scene, end func(int)) {
			s.connect(s.tuple(1, 1))
			s.setMark(firstTime)
			s.wantPeername(s.family.backend(1), s.family.service(1))
			end(1)
			s.unchangedBy("a read", func() { s.wantPeername(s.family.backend(1), s.family.backend(1)) })
			s.serve(1)
			s.wantPeername(s.family.backend(1), s.family.service(1))
			s.counted(counts{stored: 1})
		}},
		endRule{"a connect by the same service confirms it", func(s *scene, end func(int)) {
			s.connect(s.tuple(1, 1))
			s.setMark(firstTime)
			s.now++
			s.connect(s.tuple(1, 1))
			end(1)
			s.wantPeername(s.family.backend(1), s.family.service(1))
			s.counted(counts{stored: 1})
		}},
		endRule{"a connection from after it is true, in the same second, too", func(s *scene, end func(int)) {
			s.setMark(firstTime)
			s.connect(s.tuple(1, 1))
			s.wantConn(s.tuple(1, 1).at(firstTime + 1))
			end(1)
			s.wantPeername(s.family.backend(1), s.family.service(1))
		}},
	)...)
	holdForDatagrams(t, inEach(
		endRule{"recvmsg judges a connection from before in the same way", func(s *scene, end func(int)) {
			s.connect(s.tuple(1, 1))
			s.setMark(firstTime)
			s.wantSource(s.family.backend(1), s.family.service(1))
			end(1)
			s.unchangedBy("a read", func() { s.wantSource(s.family.backend(1), s.family.backend(1)) })
		}},
		endRule{"getpeername judges a connect that others have overtaken in the same way", func(s *scene, end func(int)) {
			for i := 1; i <= 3; i++ {
				s.connect(s.tuple(i, i))
			}
			s.setMark(firstTime)
			s.wantPeername(s.family.backend(1), s.family.service(1))
			end(1)
			s.unchangedBy("a read", func() { s.wantPeername(s.family.backend(1), s.family.backend(1)) })
		}},
		endRule{"what was sent before is judged though an answer can be expected", func(s *scene, end func(int)) {
			s.send(s.tuple(1, 1))
			s.setMark(firstTime)
			s.wantSource(s.family.backend(1), s.family.service(1))
			end(1)
			s.unchangedBy("a read", func() { s.wantSource(s.family.backend(1), s.family.backend(1)) })
		}},
		endRule{"a send by the same service confirms what was sent", func(s *scene, end func(int)) {
			s.send(s.tuple(1, 1))
			s.setMark(firstTime)
			s.send(s.tuple(1, 1))
			end(1)
			s.wantSource(s.family.backend(1), s.family.service(1))
		}},
		endRule{"a send does not confirm the connection", func(s *scene, end func(int)) {
			s.connect(s.tuple(1, 1))
			s.setMark(firstTime)
			s.send(s.tuple(1, 1))
			end(1)
			s.wantPeername(s.family.backend(1), s.family.backend(1))
		}},
		endRule{"a connection from before is not confirmed by becoming the former one", func(s *scene, end func(int)) {
			s.connect(s.tuple(1, 1))
			s.setMark(firstTime)
			s.now += 10
			s.connect(s.tuple(2, 2))
			s.wantFormer(s.tuple(1, 1).at(firstTime))
			s.wantPeername(s.family.backend(1), s.family.service(1))
			s.wantSource(s.family.backend(1), s.family.service(1))
			end(1)
			s.wantPeername(s.family.backend(1), s.family.backend(1))
			s.wantSource(s.family.backend(1), s.family.backend(1))
		}},
	)...)
}
