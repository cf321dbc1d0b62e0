"""What a container's host gives it and this machine may not: the name of its own address, and a network interface.

Python imports this at its start, because the folder is on the container's PYTHONPATH.
"""

import fcntl
import os
import socket

_getaddrinfo, _ioctl = socket.getaddrinfo, fcntl.ioctl
SIOCGIFADDR = 0x8915


def getaddrinfo(host, *args, **kwargs):
    return _getaddrinfo(os.environ["STAND_IN_IPV6"] if host == "i6pn.modal.local" else host, *args, **kwargs)


def ioctl(fd, request, arg=0, *rest):
    if request == SIOCGIFADDR and arg[:5] == b"eth0\0" and not os.path.exists("/sys/class/net/eth0"):
        arg = b"lo\0\0" + arg[4:]
    return _ioctl(fd, request, arg, *rest)


socket.getaddrinfo, fcntl.ioctl = getaddrinfo, ioctl
