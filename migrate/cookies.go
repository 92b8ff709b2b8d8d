// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"context"

	"golang.org/x/sys/unix"
)

// chooseCookies has the kernel choose cookies for the sockets that have none yet, which iterators cannot
// do before Linux 5.12. A socket in no file table stays without.
func (r *rollback) chooseCookies(ctx context.Context) error {
	lacking := make(map[uint64]bool) // by inode
	for s, err := range r.dp.sockets(ctx) {
		if err != nil {
			return err
		}
		if s.Cookie == 0 {
			lacking[s.Inode] = true
		}
	}
	d := newDescriptors(nil, "")
	defer d.close()
	return d.eachSocket(ctx, make(map[uint64]bool), func(fd int) error {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil && lacking[st.Ino] {
			// Asking makes the kernel choose; what it says is in the next list.
			_, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
			return err
		}
		return nil
	})
}
