package main

// renameat2(2) is newer than the frozen table of package syscall.
const sysRenameat2 = 316
