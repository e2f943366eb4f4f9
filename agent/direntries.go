package main

import (
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"syscall"
)

const (
	direntHead      = 19 // linux_dirent64: inode 8, offset 8, length 2, type 1; getdents64(2)
	typeUnknown     = 0
	typeIsDirectory = 4
)

// eachEntry calls `found` for every entry of a directory, in no order, without holding more than a piece of it.
func eachEntry(dir string, found func(name string, directory bool)) error {
	fd, err := syscall.Open(dir, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return at(dir, err)
	}
	defer syscall.Close(fd)
	buffer := make([]byte, 16<<10)
	for {
		n, err := syscall.Getdents(fd, buffer)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return at(dir, err)
		}
		if n <= 0 {
			return nil
		}
		for piece := buffer[:n]; len(piece) >= direntHead; {
			size := int(binary.NativeEndian.Uint16(piece[16:]))
			if size < direntHead || size > len(piece) {
				return at(dir, syscall.EIO)
			}
			readEntry(dir, piece[:size], found)
			piece = piece[size:]
		}
	}
}

func readEntry(dir string, record []byte, found func(name string, directory bool)) {
	name := string(record[direntHead:])
	if end := strings.IndexByte(name, 0); end >= 0 {
		name = name[:end]
	}
	if name == "." || name == ".." || name == "" {
		return
	}
	kind := record[18]
	if kind == typeUnknown { // a file system that does not say
		if info, err := os.Lstat(strings.TrimRight(dir, "/") + "/" + name); err == nil && info.IsDir() {
			kind = typeIsDirectory
		}
	}
	found(name, kind == typeIsDirectory)
}
