package main

import "syscall"

const sysFstatat = syscall.SYS_NEWFSTATAT // fstatat(2), which Linux spells differently on each architecture
