// Prints a line for each pool of a running proxy: name, membership fingerprint, members.
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	adminv1 "example.com/rings/spanring/admin/v1"
)

func main() {
	conn, err := grpc.NewClient(os.Args[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	rings, err := adminv1.NewRingClient(conn).GetRing(context.Background(), &adminv1.GetRingRequest{})
	if err != nil {
		log.Fatal(err)
	}
	for _, pool := range rings.Pools {
		fmt.Println(pool.Pool, pool.MembershipFingerprint, len(pool.Members))
	}
}
