// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"context"

	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/inspect"
)

// withCookies has the kernel choose cookies for the sockets that have none yet, which iterators cannot
// do before Linux 5.12, and returns the list with them. A socket in no file table stays without.
func (r *rollback) withCookies(ctx context.Context, list []inspect.Socket) ([]inspect.Socket, error) {
	lacking := make(map[uint64]bool) // by inode
	for _, s := range list {
		if s.Cookie == 0 {
			lacking[s.Inode] = true
		}
	}
	if len(lacking) == 0 {
		return list, nil
	}
	d := newDescriptors(nil, "")
	defer d.close()
	err := d.eachSocket(ctx, make(map[uint64]bool), func(fd int) error {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil && lacking[st.Ino] {
			// Asking makes the kernel choose; what it says is in the next list.
			_, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
			return err
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return r.dp.sockets(ctx, false)
}
