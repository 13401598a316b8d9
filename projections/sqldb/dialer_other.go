//go:build !linux

package sqldb

import "syscall"

// setUserTimeout does nothing: keep-alives and deadlines have to do.
func setUserTimeout(string, string, syscall.RawConn) error { return nil }
