// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"iter"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/childproc"
	"github.com/revsk/revsk/internal/sockaddr"
)

var manySockets = flag.Int("inspect.sockets", 20000, "how many sockets there are while they are listed; 1,000,000 take 5 GB and many minutes")

// manyEnv makes the test binary a process that opens many sockets: it is an errand.
const manyEnv = "REVSK_INSPECT_TEST_MANY"

// errand is what such a process is to do.
type errand struct {
	Number   int // of the process
	Sockets  int
	OwnNetNS bool
	Services []netip.AddrPort
}

// The sockets of an errand: those that come and go, and those that send instead of connecting.
func (e *errand) churns(i int) bool { return i%10 == 0 }
func (e *errand) sends(i int) bool  { return i%10 == 9 || i%40 == 0 }

func holdMany(text string) {
	var e errand
	err := json.Unmarshal([]byte(text), &e)
	if err == nil {
		err = e.run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "opening sockets:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// run opens the sockets and writes the cookies of those that stay. From the first byte of input until its end it closes and
// opens the others; then it writes how often.
func (e *errand) run() error {
	limit, err := fileLimit()
	if err == nil {
		limit.Cur = limit.Max
		err = unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	}
	if err != nil {
		return fmt.Errorf("allowing open files: %w", err)
	}
	if e.OwnNetNS {
		if err := loopbackUp(); err != nil {
			return err
		}
	}
	out := bufio.NewWriter(os.Stdout)
	fds := make([]int, e.Sockets)
	for i := range fds {
		if err := e.open(fds, i); err != nil {
			return err
		}
		if !e.churns(i) {
			cookie, err := unix.GetsockoptUint64(fds[i], unix.SOL_SOCKET, unix.SO_COOKIE)
			if err != nil {
				return err
			}
			_ = binary.Write(out, binary.NativeEndian, cookie)
		}
	}
	if err := out.Flush(); err != nil {
		return err
	}
	if _, err := os.Stdin.Read(make([]byte, 1)); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		_, _ = os.Stdin.Read(make([]byte, 1))
		close(ended)
	}()
	var opened uint64
	for i := 0; ; i = (i + 10) % e.Sockets {
		select {
		case <-ended:
			return binary.Write(os.Stdout, binary.NativeEndian, opened)
		default:
		}
		if e.churns(i) {
			unix.Close(fds[i])
			if err := e.open(fds, i); err != nil {
				return err
			}
			opened++
		}
		if i%200 == 0 {
			time.Sleep(50 * time.Millisecond) // others are to run, too
		}
	}
}

func fileLimit() (limit unix.Rlimit, err error) {
	err = unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
	return limit, err
}

func (e *errand) open(fds []int, i int) (err error) {
	if fds[i], err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return err
	}
	const perAddress, firstPort = 50000, 2000
	local := &unix.SockaddrInet4{Addr: [4]byte{127, 4, byte(e.Number), byte(1 + i/perAddress)}, Port: firstPort + i%perAddress}
	for err = unix.Bind(fds[i], local); err == unix.EADDRINUSE; err = unix.Bind(fds[i], local) {
		time.Sleep(time.Millisecond) // who goes through open files keeps the former socket a little longer
	}
	if err != nil {
		return err
	}
	service := e.Services[i%len(e.Services)]
	to := sockaddr.Of(unix.AF_INET, service)
	if !e.sends(i) {
		return unix.Connect(fds[i], to)
	}
	// Nobody receives it: the next call may say so.
	if err := unix.Sendto(fds[i], nil, 0, to); err != nil && err != unix.ECONNREFUSED {
		return err
	}
	return nil
}

// lasting are the sockets that stay, by cookie.
type lasting struct {
	cookies []uint64
	pids    map[uint64]int
}

// openMany has n sockets opened by several processes, each other one in a network namespace of its own.
func openMany(t *testing.T, services []service, n int) lasting {
	t.Helper()
	limit, err := fileLimit()
	require.NoError(t, err)
	perProcess := min(int(limit.Max)-100, 100000)
	all := lasting{pids: make(map[uint64]int, n)}
	processes := max(4, (n+perProcess-1)/perProcess)
	var inputs []io.Writer
	for number := range processes {
		e := errand{Number: number, Sockets: n / processes / 20 * 20, OwnNetNS: number%2 == 1}
		for _, s := range services {
			e.Services = append(e.Services, s.front)
		}
		text, err := json.Marshal(e)
		require.NoError(t, err)
		cmd := exec.Command("/proc/self/exe")
		cmd.Env, cmd.Stderr = append(os.Environ(), manyEnv+"="+string(text)), os.Stderr
		if e.OwnNetNS {
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
		}
		stdin, err := cmd.StdinPipe()
		require.NoError(t, err)
		stdout, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, childproc.Start(cmd))
		t.Cleanup(func() {
			stdin.Close()
			var opened uint64
			assert.NoError(t, binary.Read(stdout, binary.NativeEndian, &opened))
			assert.NoError(t, cmd.Wait())
			t.Logf("process %d: %d sockets, own namespace: %v, %d opened meanwhile", number, e.Sockets, e.OwnNetNS, opened)
		})
		cookies := make([]uint64, e.Sockets*9/10)
		require.NoError(t, binary.Read(bufio.NewReader(io.LimitReader(stdout, int64(8*len(cookies)))), binary.NativeEndian, cookies))
		for _, c := range cookies {
			all.pids[c] = cmd.Process.Pid
		}
		all.cookies = append(all.cookies, cookies...)
		inputs = append(inputs, stdin)
	}
	_, err = io.MultiWriter(inputs...).Write([]byte{1})
	require.NoError(t, err)
	slices.Sort(all.cookies)
	return all
}

// Of the sockets that live throughout none is missed while others come and go, and none is listed twice. What the reader
// has in memory does not depend on how many they are.
func TestManySocketsAreListedWhileOthersComeAndGo(t *testing.T) {
	n := *manySockets
	d := newDatapath(t)
	sockets := openMany(t, d.addServices(t, 0, 100, false), n)
	buffer := min(defaultBuffer, 16*n) // some parts
	for name, opts := range map[string]Options{
		"without owners": {SkipOwners: true, Reuse: true, BufferSize: buffer},
		"with owners":    {Reuse: true, BufferSize: buffer},
		"sorted":         {Reuse: true, BufferSize: buffer},
	} {
		r, err := Open(d.Maps, opts)
		require.NoError(t, err)
		list := r.Sockets(t.Context(), Filter{})
		if name == "sorted" {
			list = sortedOnce(t.Context(), r)
		}
		sockets.assertListed(t, name, list, !opts.SkipOwners)
		require.NoError(t, r.Close())
	}
}

func sortedOnce(ctx context.Context, r *Reader) iter.Seq2[Socket, error] {
	return func(yield func(Socket, error) bool) {
		s, err := r.Sorted(ctx, Filter{})
		if err != nil {
			yield(Socket{}, err)
			return
		}
		defer s.Close()
		s.Sockets(ctx)(yield)
	}
}

func (l *lasting) assertListed(t *testing.T, name string, list iter.Seq2[Socket, error], owners bool) {
	t.Helper()
	seen := make([]bool, len(l.cookies))
	others := make(map[uint64]bool, len(l.cookies)) // so that it need not grow
	before := heap()
	var most uint64
	found, listed, start := 0, 0, time.Now()
	for s, err := range list {
		require.NoError(t, err)
		if listed++; listed%(len(l.cookies)/4) == 0 {
			most = max(most, heap())
		}
		i, lasts := slices.BinarySearch(l.cookies, s.Cookie)
		if !lasts {
			require.False(t, others[s.Cookie] && s.Cookie != 0, "%v is listed twice", s)
			others[s.Cookie] = true
			continue
		}
		require.False(t, seen[i], "%v is listed twice", s)
		seen[i] = true
		found++
		if owners && (len(s.Owners) != 1 || s.Owners[0].ID != l.pids[s.Cookie]) {
			require.Fail(t, "another owner", "%v, not %d", s, l.pids[s.Cookie])
		}
	}
	assert.Equal(t, len(l.cookies), found, "%s: sockets that lived throughout", name)
	held := int64(most) - int64(before)
	t.Logf("%s: %d sockets that stay and %d others in %v; on the heap: %d KiB", name, found, listed-found, time.Since(start), held>>10)
	if !owners {
		assert.Less(t, held, int64(4<<20), "what the reader has on the heap")
	}
}

// heap is how much there is in use.
func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
