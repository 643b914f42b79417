# Prints a line for each pool of a running proxy: name, membership fingerprint, members.
import sys
import grpc
from spanring.admin.v1 import ring_pb2, ring_pb2_grpc

with grpc.insecure_channel(sys.argv[1]) as channel:
    ring = ring_pb2_grpc.RingStub(channel)
    for pool in ring.GetRing(ring_pb2.GetRingRequest()).pools:
        print(pool.pool, pool.membership_fingerprint, len(pool.members))
