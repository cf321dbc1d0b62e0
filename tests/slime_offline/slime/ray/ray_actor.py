import socket


class RayActor:
    @staticmethod
    def _get_current_node_ip_and_free_port(start_port=10000, consecutive=1):
        port = start_port
        while not all(map(_is_free, range(port, port + consecutive))):
            port += 1
        return "127.0.0.1", port

    def get_master_addr_and_port(self):
        return self.master_addr, self.master_port


def _is_free(port):
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("", port))
        except OSError:
            return False
    return True
