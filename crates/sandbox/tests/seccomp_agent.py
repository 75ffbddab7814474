"""A seccomp agent: takes a listener from a socket, answers every held call with 4711 until it ends.

Usage: seccomp_agent.py SOCKET. Prints the state that came with the listener, then each call's number.
"""

import array
import errno
import fcntl
import socket
import struct
import sys

# _IOWR('!', 0, struct seccomp_notif of 80 bytes), _IOWR('!', 1, struct seccomp_notif_resp of 24 bytes)
RECV, SEND = 0xC0502100, 0xC0182101

with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
    server.bind(sys.argv[1])
    server.listen()
    print("ready", flush=True)
    connection, _ = server.accept()
    state, fds, _, _ = socket.recv_fds(connection, 65536, 1)
print(state.decode(), flush=True)
listener = fds[0]
while True:
    held = array.array("B", bytes(80))
    try:
        fcntl.ioctl(listener, RECV, held)
    except OSError as error:
        # The process is gone.
        assert error.errno in (errno.ENOENT, errno.EINTR), error
        break
    identity, pid, flags, number = struct.unpack_from("QIIi", held)
    print(number, flush=True)
    fcntl.ioctl(listener, SEND, array.array("B", struct.pack("QqiI", identity, 4711, 0, 0)))
    break
