// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/revsk/revsk/loader"
)

// loss is how many of the live sockets still know their service.
type loss struct {
	Variant string  `json:"variant"`
	Room    int     `json:"hash_entries"`
	Load    float64 `json:"load"` // live sockets / Room
	Sockets int     `json:"sockets"`
	Know    int     `json:"know"`
}

// lossEntries is the size of the hash; what is lost depends on the load alone.
const lossEntries = 16384

var lossLoads = []float64{0.5, 1, 2, 4}

// benchLoss opens as many sockets as the hash has room for, and more, and asks each for its peer.
func benchLoss(ctx context.Context, b *bench) error {
	for _, mode := range []loader.Mode{loader.ModeLegacy, loader.ModeDual, loader.ModeStorage} {
		v, err := b.load(mode.String(), mode, lossEntries)
		if err != nil {
			return err
		}
		if err := b.lose(ctx, v); err != nil {
			return fmt.Errorf("%v: %w", mode, err)
		}
	}
	if *referenceFile == "" {
		return nil
	}
	v, err := b.load("reference", loader.ModeLegacy, lossEntries)
	if err != nil {
		return err
	}
	if err := v.runReference(); err != nil {
		return err
	}
	return b.lose(ctx, v)
}

func (b *bench) lose(ctx context.Context, v *variant) (err error) {
	all := new(holders)
	defer func() { err = errors.Join(err, all.kill()) }()
	live := 0
	for _, load := range lossLoads {
		if err := ctx.Err(); err != nil {
			return err
		}
		l := loss{Variant: v.name, Room: lossEntries, Load: load, Sockets: int(load * lossEntries)}
		if err := all.add(v, l.Sockets-live, false); err != nil {
			return err
		}
		live = l.Sockets
		if l.Know, err = all.remember(); err != nil {
			return err
		}
		b.report.Loss = append(b.report.Loss, l)
	}
	return nil
}
