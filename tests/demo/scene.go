// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/revsk/revsk/inspect"
	"github.com/revsk/revsk/internal/childproc"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
)

// result is what became of the requests after the backend went.
type result struct {
	requests, failed int
	// longest is from when the backend went until the last request that failed.
	longest   time.Duration
	recovered bool
	disturbed int
}

func (r result) row(title string) string {
	length := fmt.Sprintf("%.1f s", r.longest.Seconds())
	if !r.recovered {
		length = "until nginx is restarted"
	}
	return fmt.Sprintf("| %s | %d | %d | %s | %d |", title, r.requests, r.failed, length, r.disturbed)
}

var front = lbmap.Frontend{AddrPort: netip.MustParseAddrPort("10.96.0.10:53"), Protocol: lbmap.ProtocolUDP}

// play lets the backend go that nginx is connected to.
func play(ctx context.Context, opts loader.Options, length time.Duration) (r result, err error) {
	servers := make(map[netip.AddrPort]*dnsServer)
	service := lbmap.Service{Frontend: front}
	for range 2 {
		s, err := newDNSServer(fmt.Sprintf("127.0.0.%d:0", servedBy.Add(1)))
		if err != nil {
			return r, err
		}
		defer s.Close()
		servers[s.addr()] = s
		service.Backends = append(service.Backends, lbmap.Backend{AddrPort: s.addr(), Protocol: lbmap.ProtocolUDP})
	}
	full, err := opts.WithDefaults()
	if err != nil {
		return r, err
	}
	w, err := lbmap.OpenWriter(full.MapsDir)
	if err != nil {
		return r, err
	}
	defer w.Close()
	if _, err := w.Upsert(ctx, service); err != nil {
		return r, err
	}
	// A cluster has other services, too.
	others := lbmap.Service{Frontend: lbmap.Frontend{AddrPort: netip.MustParseAddrPort("10.96.0.11:80"), Protocol: lbmap.ProtocolTCP}}
	for i := range 10 {
		addr := netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})
		others.Backends = append(others.Backends, lbmap.Backend{AddrPort: netip.AddrPortFrom(addr, 80), Protocol: lbmap.ProtocolTCP})
	}
	if _, err := w.Upsert(ctx, others); err != nil {
		return r, err
	}
	page, err := startNginx(ctx)
	if err != nil {
		return r, err
	}
	defer page.stop()
	if err := page.awaits(ctx); err != nil {
		return r, err
	}
	goes, err := backendOf(ctx, opts, "nginx")
	if err != nil {
		return r, err
	}
	stays, err := connectTo(ctx, opts, goes)
	if err != nil {
		return r, err
	}

	time.Sleep(8 * time.Second) // what the last scene has left is done with
	// The server is silent: nobody says that its port is closed.
	servers[goes].silent.Store(true)
	for _, b := range service.Backends {
		if b.AddrPort != goes {
			service.Backends = []lbmap.Backend{b}
			break
		}
	}
	if _, err := w.Upsert(ctx, service); err != nil {
		return r, err
	}
	r = page.ask(ctx, length)
	for _, conn := range stays {
		if !answers(conn) {
			r.disturbed++
		}
		conn.Close()
	}
	return r, nil
}

// dnsServer answers every question for an address with 127.0.0.1.
type dnsServer struct {
	net.PacketConn
	silent atomic.Bool
}

// servedBy counts addresses: each server has one of its own, as a pod has.
var servedBy atomic.Int64

func newDNSServer(addr string) (*dnsServer, error) {
	conn, err := net.ListenPacket("udp4", addr)
	if err != nil {
		return nil, err
	}
	s := &dnsServer{PacketConn: conn}
	go s.serve()
	return s, nil
}

func (s *dnsServer) addr() netip.AddrPort { return s.LocalAddr().(*net.UDPAddr).AddrPort() }

func (s *dnsServer) serve() {
	buf := make([]byte, 512)
	for {
		n, from, err := s.ReadFrom(buf)
		if err != nil {
			return
		}
		if s.silent.Load() || n < 12 {
			continue
		}
		// The question as it is, then an answer: its name is that of the question.
		reply := append([]byte(nil), buf[:n]...)
		reply[2], reply[3] = 0x81, 0x80
		if reply[n-4] == 0 && reply[n-3] == 1 { // A
			reply[7] = 1
			reply = append(reply, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 127, 0, 0, 1)
		}
		_, _ = s.WriteTo(reply, from)
	}
}

// nginx is a proxy that looks up the name of each request.
type nginx struct {
	*exec.Cmd
	dir, url string
	upstream *http.Server
}

func startNginx(ctx context.Context) (*nginx, error) {
	dir, err := os.MkdirTemp("", "revsk-demo-")
	if err != nil {
		return nil, err
	}
	behind, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	n := &nginx{dir: dir, upstream: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "hello") })}}
	go n.upstream.Serve(behind)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	listen := l.Addr().String()
	l.Close()
	n.url = "http://" + listen + "/"
	config := fmt.Sprintf(`
daemon off;
worker_processes 1;
pid %[1]s/pid;
error_log %[1]s/error.log;
events {}
http {
	access_log off;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	resolver %[2]s valid=1s ipv6=off;
	resolver_timeout 1s;
	server {
		listen %[3]s;
		location / { proxy_pass http://$arg_name:%[4]d; }
	}
}
`, dir, front.AddrPort, listen, behind.Addr().(*net.TCPAddr).Port)
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	n.Cmd = exec.CommandContext(ctx, "nginx", "-c", file)
	n.Stderr = os.Stderr
	n.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := childproc.Start(n.Cmd); err != nil {
		return nil, fmt.Errorf("nginx (Debian: apt-get install nginx-light): %w", err)
	}
	return n, nil
}

func (n *nginx) stop() {
	_ = n.Process.Signal(syscall.SIGTERM)
	_ = n.Wait()
	n.upstream.Close()
	os.RemoveAll(n.dir)
}

var names atomic.Int64

var client = http.Client{Timeout: 3 * time.Second}

// get asks for a page by a name that was not asked for yet.
func (n *nginx) get(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("%s?name=n%d.test", n.url, names.Add(1)), nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		return errors.New(resp.Status)
	}
	return nil
}

func (n *nginx) awaits(ctx context.Context) error {
	var err error
	for range 100 {
		if err = n.get(ctx); err == nil {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("nginx does not answer: %w", err)
}

// ask makes 50 requests a second.
func (n *nginx) ask(ctx context.Context, length time.Duration) (r result) {
	begin := time.Now()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for time.Since(begin) < length && ctx.Err() == nil {
		asked := time.Since(begin)
		wg.Go(func() {
			err := n.get(ctx)
			mu.Lock()
			defer mu.Unlock()
			r.requests++
			if err != nil {
				r.failed++
				r.longest = max(r.longest, asked)
			}
		})
		time.Sleep(20 * time.Millisecond)
	}
	wg.Wait()
	r.recovered = r.longest < length-2*time.Second
	return r
}

// backendOf is the backend that a process is connected to by the service.
func backendOf(ctx context.Context, opts loader.Options, command string) (netip.AddrPort, error) {
	dp, err := loader.Open(opts)
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer dp.Close()
	all, err := inspect.Sockets(ctx, dp.InspectMaps(), inspect.Options{})
	if err != nil {
		return netip.AddrPort{}, err
	}
	for i := range all {
		c := all[i].Connection()
		for _, owner := range all[i].Owners {
			if c != nil && owner.Command == command {
				return c.Peer, nil
			}
		}
	}
	return netip.AddrPort{}, fmt.Errorf("%s is not connected to %v", command, front)
}

// connectTo connects sockets by the service to another backend than the one that goes.
func connectTo(ctx context.Context, opts loader.Options, not netip.AddrPort) (all []net.Conn, err error) {
	local := make(map[netip.AddrPort]net.Conn)
	for range 40 {
		conn, err := net.Dial("udp", front.AddrPort.String())
		if err != nil {
			return nil, err
		}
		local[conn.LocalAddr().(*net.UDPAddr).AddrPort()] = conn
	}
	dp, err := loader.Open(opts)
	if err != nil {
		return nil, err
	}
	defer dp.Close()
	sockets, err := inspect.Sockets(ctx, dp.InspectMaps(), inspect.Options{SkipOwners: true})
	if err != nil {
		return nil, err
	}
	for _, s := range sockets {
		conn := local[s.Local]
		if conn == nil {
			continue
		}
		if s.Peer == not {
			conn.Close()
		} else {
			all = append(all, conn)
		}
	}
	return all, nil
}

// answers tells whether the socket still gets answers.
func answers(conn net.Conn) bool {
	question := []byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 'a', 0, 0, 1, 0, 1}
	if _, err := conn.Write(question); err != nil {
		return false
	}
	_ = conn.SetReadDeadline(time.Now().Add(2 * time.Second))
	_, err := conn.Read(make([]byte, 512))
	return err == nil
}
