// SPDX-License-Identifier: Apache-2.0

package api

import (
	"net/netip"

	"github.com/revsk/revsk/lbmap"
)

// Schemas of the documents of revsk service.
const (
	ServicesSchema      = "revsk/services/v1"
	ServiceChangeSchema = "revsk/service/v1"
)

// Services is the JSON output of service list.
type Services struct {
	Header
	Services []Service `json:"services"`
}

// Service is a service in JSON output.
type Service struct {
	Frontend string         `json:"frontend"` // ADDR:PORT/PROTO, and /internal in that scope
	Address  netip.Addr     `json:"address"`
	Port     uint16         `json:"port"`
	Protocol lbmap.Protocol `json:"protocol"`
	Scope    lbmap.Scope    `json:"scope"`
	RevNat   uint16         `json:"rev_nat"`
	Flags    []string       `json:"flags"`
	// AffinitySeconds is how long a client keeps its backend; without the flag affinity it has no meaning.
	AffinitySeconds int64     `json:"affinity_seconds"`
	Algorithm       string    `json:"algorithm"` // default, random or maglev
	L7ProxyPort     uint16    `json:"l7_proxy_port,omitempty"`
	Backends        []Backend `json:"backends"`
}

// Backend is a backend in JSON output. Without an entry in the backend map it has an id only.
type Backend struct {
	ID          uint32         `json:"id"`
	Address     string         `json:"address,omitempty"` // ADDR:PORT
	Protocol    lbmap.Protocol `json:"protocol"`
	State       string         `json:"state"`
	Quarantined bool           `json:"quarantined"`
	ClusterID   uint16         `json:"cluster_id"`
	Zone        uint8          `json:"zone"`
}

// ServiceChange is the JSON output of the commands that change a service.
type ServiceChange struct {
	Header
	DryRun  bool         `json:"dry_run"`
	Action  lbmap.Action `json:"action"`
	Service Service      `json:"service"`
}
