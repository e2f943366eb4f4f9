package main

import "syscall"

// renameat2(2) is newer than the frozen table of package syscall.
const sysRenameat2 = 316

const sysNewfstatat = syscall.SYS_NEWFSTATAT
