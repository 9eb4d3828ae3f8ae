"""Run a command in a network of its own and print whom its processes addressed: `unshare -rn python every_packet.py
ARGV…`.

The network has one interface, loopback, and every IPv4 address lies behind it, so that whatever any process below sends
is seen here, whichever library or language sends it. Printed is a JSON object: `status` and `out` of the command, and
`addressed`: "tcp ADDRESS:PORT" for each connection that was begun, "udp ADDRESS:PORT" for each datagram.
"""

from __future__ import annotations

import ctypes
import fcntl
import ipaddress
import json
import socket
import struct
import subprocess
import sys
import threading

_SIOCADDRT, _SIOCSIFFLAGS = 0x890B, 0x8914
_IFF_UP, _RTF_UP = 1, 1
_ETH_P_ALL, _ETH_P_IP, _ETH_P_IPV6 = 0x0003, 0x0800, 0x86DD
_TCP, _UDP = 6, 17
_SYN, _ACK = 2, 16


def main(argv: list[str]) -> None:
    _open_loopback()
    addressed: set[str] = set()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL)) as tap:
        tap.settimeout(0.2)
        ended = threading.Event()
        listening = threading.Thread(target=_listen, args=(tap, addressed, ended))
        listening.start()
        done = subprocess.run(argv, stdout=subprocess.PIPE, text=True)
        ended.set()
        listening.join()
    print(json.dumps({"status": done.returncode, "out": done.stdout, "addressed": sorted(addressed)}))


def _open_loopback() -> None:
    """Set the interface up and make it the way to every address (struct ifreq, struct rtentry of 64-bit Linux)."""
    name = ctypes.create_string_buffer(b"lo")
    anywhere = struct.pack("H14x", socket.AF_INET)
    route = struct.pack("8x16s16s16sH6x8x8xh6xP8x8xH6x", *[anywhere] * 3, _RTF_UP, 0, ctypes.addressof(name), 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", _IFF_UP))
        fcntl.ioctl(control, _SIOCADDRT, route)


def _listen(tap: socket.socket, addressed: set[str], ended: threading.Event) -> None:
    while True:
        try:
            frame = tap.recv(256)
        except TimeoutError:
            if ended.is_set():
                return
            continue
        if whom := _addressed(frame):
            addressed.add(whom)


def _addressed(frame: bytes) -> str | None:
    (kind,) = struct.unpack_from("!H", frame, 12)
    packet = frame[14:]
    if kind == _ETH_P_IP:
        protocol, to, payload = packet[9], packet[16:20], packet[(packet[0] & 15) * 4 :]
    elif kind == _ETH_P_IPV6:
        protocol, to, payload = packet[6], packet[24:40], packet[40:]
    else:
        return None
    (port,) = struct.unpack_from("!H", payload, 2)
    if protocol == _TCP and payload[13] & (_SYN | _ACK) == _SYN:
        return f"tcp {ipaddress.ip_address(to)}:{port}"
    return f"udp {ipaddress.ip_address(to)}:{port}" if protocol == _UDP else None


if __name__ == "__main__":
    main(sys.argv[1:])
