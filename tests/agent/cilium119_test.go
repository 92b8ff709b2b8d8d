// SPDX-License-Identifier: Apache-2.0

//go:build cilium119

package agent

import (
	"github.com/cilium/cilium/pkg/datapath/config"
	"github.com/cilium/cilium/pkg/datapath/linux/sysctl"
	datapath "github.com/cilium/cilium/pkg/datapath/types"
	"github.com/cilium/cilium/pkg/option"
	"github.com/cilium/cilium/pkg/socketlb"
	"github.com/spf13/afero"
)

func (c configuration) node() *datapath.LocalNodeConfiguration {
	n := new(datapath.LocalNodeConfiguration)
	n.KPRConfig.KubeProxyReplacement = true
	n.LBConfig.NodePortMin, n.LBConfig.NodePortMax = 30000, 32767
	n.SvcRouteConfig.EnableNoServiceEndpointsRoutable = true
	return n
}

// start is what the agent does when it starts.
func (c configuration) start() error {
	option.Config.EnableIPv4, option.Config.EnableIPv6 = c.ipv4, c.ipv6
	option.Config.EnableSocketLBPeer = c.peer
	option.Config.EnableHealthDatapath = c.health
	option.Config.NodePortBindProtection = c.bindProtection
	return socketlb.Enable(logger, sysctl.NewDirectSysctl(afero.NewOsFs(), "/proc"), c.node())
}

// constants are what the agent sets.
func (c configuration) constants() any { return config.NewBPFSock(config.NodeConfig(c.node())) }
