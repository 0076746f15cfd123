// Echo server in Go: one goroutine per connection (package net sets TCP_NODELAY itself).
//
// Usage: echo_go HOST PORT BUFFER, with GOMAXPROCS=1 in the environment: one core, like every other server.
package main

import (
	"log"
	"net"
	"os"
	"strconv"
)

func handle(connection net.Conn, size int) {
	defer connection.Close()
	buffer := make([]byte, size)
	for {
		n, err := connection.Read(buffer)
		if err != nil {
			return
		}
		if _, err := connection.Write(buffer[:n]); err != nil {
			return
		}
	}
}

func main() {
	if len(os.Args) != 4 {
		log.Fatal("usage: echo_go HOST PORT BUFFER")
	}
	size, err := strconv.Atoi(os.Args[3])
	if err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(os.Args[1], os.Args[2]))
	if err != nil {
		log.Fatal(err)
	}
	for {
		connection, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go handle(connection, size)
	}
}
