"""A link between two network namespaces that takes its time and loses packets.

Arguments: namespace and address of each end, delay in each direction (ms), lost packets (fraction), rate (as tc wants it), seed.
Each end is a TUN device in its namespace. Lines on standard input: `cut`, `mend`. Ends with standard input.
"""

import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import sys
import time

CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TUN_NO_PI = 0x1001
QUEUED_MAX = 2000

left, left_address, right, right_address, delay_ms, loss, rate, seed = sys.argv[1:]
delay = float(delay_ms) / 1000
lost = float(loss)
chance = random.Random(int(seed))
libc = ctypes.CDLL(None, use_errno=True)


def end(namespace, address):
    """A device in the namespace; it goes away with this process."""
    own = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    if libc.setns(own, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", b"hm0", IFF_TUN_NO_PI))
    for command in (
        f"ip addr add {address}/24 dev hm0",
        "ip link set hm0 up",
        f"tc qdisc add dev hm0 root tbf rate {rate} burst 64kb latency 400ms",
    ):
        subprocess.run(command.split(), check=True)
    return device


ends = [end(left, left_address), end(right, right_address)]
other = {ends[0]: ends[1], ends[1]: ends[0]}
under_way = []
count = 0
is_cut = False
print("ready", flush=True)
while True:
    now = time.monotonic()
    while under_way and under_way[0][0] <= now:
        _, _, to, packet = heapq.heappop(under_way)
        if not is_cut:
            try:
                os.write(to, packet)
            except OSError:
                pass
    wait = max(0, under_way[0][0] - now) if under_way else None
    for device in select.select([*ends, sys.stdin], [], [], wait)[0]:
        if device is sys.stdin:
            line = sys.stdin.readline()
            if line == "":
                sys.exit()
            is_cut = line.strip() == "cut"
            continue
        packet = os.read(device, 65536)
        if is_cut or chance.random() < lost or len(under_way) >= QUEUED_MAX:
            continue
        count += 1
        heapq.heappush(under_way, (time.monotonic() + delay, count, other[device], packet))
