// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
)

const (
	serviceCount    = 1000
	backendsPerSvc  = 4
	hookServices    = 64 // over which the sockets of most sections spread
	firstServiceIdx = 1
)

// publish fills the maps of services, which all variants share: serviceCount services for UDP and TCP
// in each family, with several backends each, of as many backends as services. Backend k of service
// i is backend i+k, so that the sockets that choose the same slot everywhere have a peer per service.
func publish(dp *loader.Datapath) error {
	for _, f := range families {
		services, backends := dp.Map(lbmap.Services4Map), dp.Map(lbmap.Backends4Map)
		if f == ipv6 {
			services, backends = dp.Map(lbmap.Services6Map), dp.Map(lbmap.Backends6Map)
		}
		if err := f.publish(services, backends); err != nil {
			return fmt.Errorf("writing services: %w", err)
		}
	}
	return nil
}

func (f *family) publish(services, backends *ebpf.Map) error {
	for i := range serviceCount {
		id := uint32(firstServiceIdx + i)
		if err := backends.Put(id, lbmap.BackendValue{AddrPort: f.backend(i)}); err != nil {
			return err
		}
		for _, protocol := range []lbmap.Protocol{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			revNat := uint16(2 * id)
			if protocol == unix.IPPROTO_UDP {
				revNat++
			}
			key := lbmap.ServiceKey{AddrPort: f.service(i), Protocol: protocol}
			if err := services.Put(key, lbmap.ServiceValue{RevNat: revNat, Count: backendsPerSvc}); err != nil {
				return err
			}
			for k := range backendsPerSvc {
				key.Slot = uint16(k + 1)
				slot := lbmap.ServiceValue{RevNat: revNat}
				slot.SetBackendID(uint32(firstServiceIdx + (i+k)%serviceCount))
				if err := services.Put(key, slot); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// backendOf is the number of the backend that the datagrams of a socket go to: the hooks choose by
// cookie.
func backendOf(service, fd int) int {
	return (service + int(uint32(cookie(fd))%backendsPerSvc)) % serviceCount
}
