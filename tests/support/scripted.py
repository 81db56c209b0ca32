"""A server whose every answer a test decides, however wrong."""

import socket
import threading


class Scripted:
    """A server that answers the n-th request of all with what `answer(n, request)` gives; None: by closing.

    `closes`: after each answer; `idle_s`: a connection on which so long nothing comes. `counts`: the requests of each
    connection.
    """

    def __init__(self, answer, *, closes=False, idle_s=None, family=socket.AF_INET):
        self.answer = answer
        self.closes = closes
        self.idle_s = idle_s
        self.counts = []
        self.requests = []
        self.connections = 0
        self.lock = threading.Lock()
        self.listener = socket.socket(family)
        self.listener.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        self.listener.listen(128)
        self.host, self.port = self.listener.getsockname()[:2]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            connection.settimeout(self.idle_s)
            self.counts.append(0)
            self.connections += 1
            threading.Thread(target=self.serve, args=(connection, self.connections - 1), daemon=True).start()

    def serve(self, connection, place):
        with connection:
            data = b""
            while True:
                while b"\r\n\r\n" not in data:
                    try:
                        piece = connection.recv(65536)
                    except (ConnectionError, TimeoutError):
                        return
                    if not piece:
                        return
                    data += piece
                request, _, data = data.partition(b"\r\n\r\n")
                with self.lock:
                    self.requests.append(request)
                    self.counts[place] += 1
                    answer = self.answer(len(self.requests), request)
                if answer is None:
                    return
                connection.sendall(answer)
                if self.closes:
                    return

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
