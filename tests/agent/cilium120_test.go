// SPDX-License-Identifier: Apache-2.0

//go:build !cilium119

package agent

import (
	"context"
	"log/slog"

	datapathplugins "github.com/cilium/cilium/api/v1/datapathplugins"
	"github.com/cilium/cilium/pkg/bpf"
	"github.com/cilium/cilium/pkg/datapath/config"
	"github.com/cilium/cilium/pkg/datapath/linux/sysctl"
	"github.com/cilium/cilium/pkg/option"
	"github.com/cilium/cilium/pkg/socketlb"
	"github.com/cilium/ebpf"
	"github.com/spf13/afero"
)

// collections loads what the agent gives it, as its own loader does on a node without plugins.
type collections struct{}

func (collections) Load(_ context.Context, logger *slog.Logger, spec *ebpf.CollectionSpec, opts *bpf.CollectionOptions,
	_ *config.Config, _ *datapathplugins.AttachmentContext, _ string) (*ebpf.Collection, func() error, func(), error) {
	coll, commit, err := bpf.LoadCollection(logger, spec, opts)
	return coll, commit, func() {}, err
}

func (c configuration) node() *config.Config {
	n := new(config.Config)
	n.KPRConfig.KubeProxyReplacement = true
	n.LBConfig.NodePortMin, n.LBConfig.NodePortMax = 30000, 32767
	n.SvcRouteConfig.EnableNoServiceEndpointsRoutable = true
	return n
}

// start is what the agent does when it starts.
func (c configuration) start() error {
	option.Config.EnableIPv4, option.Config.EnableIPv6 = c.ipv4, c.ipv6
	option.Config.UnsafeDaemonConfigOption.EnableSocketLBPeer = c.peer
	option.Config.UnsafeDaemonConfigOption.EnableHealthDatapath = c.health
	option.Config.NodePortBindProtection = c.bindProtection
	return socketlb.Enable(context.Background(), logger, nil, collections{}, sysctl.NewDirectSysctl(afero.NewOsFs(), "/proc"), c.node())
}

// constants are what the agent sets.
func (c configuration) constants() any { return config.NewBPFSock(config.NodeConfig(c.node())) }
