package main

import "syscall"

const sysFstatat = syscall.SYS_FSTATAT // fstatat(2), which Linux spells differently on each architecture
