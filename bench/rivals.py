"""Runs another server for comparison, in the foreground, on one core, tuned for the case, its log off.

    python -m bench.rivals nginx|h2o|granian|epoll [--root DIR] [--port 8080]

nginx and h2o serve the files of --root; Granian (RSGI, one worker) and `epoll` answer GET /f with 64 fixed bytes.
`epoll` is the least that a user-mode server can do (the paper's Howl): wait, read, write one prepared response. It is
compiled here when it is first asked for.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

NGINX = """
worker_processes 1; daemon off; pid {scratch}/nginx.pid; error_log /dev/null; user root;
events {{ worker_connections 16384; }}
http {{
  access_log off; sendfile on; tcp_nopush on; tcp_nodelay on; keepalive_requests 1000000000;
  open_file_cache max=10000 inactive=600s; open_file_cache_valid 600s; default_type text/plain;
  server {{ listen {port} backlog=4096; root {root}; }}
}}
"""

H2O = """
num-threads: 1
listen: {port}
user: root
hosts: {{default: {{paths: {{/: {{file.dir: {root}}}}}}}}}
"""


def run(command: list[str]) -> None:
    """Becomes `command`; says what is missing when it is not there."""
    if shutil.which(command[0]) is None:
        sys.exit(f"{command[0]} is not installed")
    os.execvp(command[0], command)


def nginx(root: str, port: int) -> None:
    """nginx with everything cached that it caches."""
    scratch = tempfile.mkdtemp(prefix="nginx-")
    path = Path(scratch, "nginx.conf")
    path.write_text(NGINX.format(scratch=scratch, port=port, root=os.path.abspath(root)))
    run(["nginx", "-c", str(path)])


def h2o(root: str, port: int) -> None:
    """h2o with one thread."""
    path = Path(tempfile.mkdtemp(prefix="h2o-"), "h2o.conf")
    path.write_text(H2O.format(port=port, root=os.path.abspath(root)))
    run(["h2o", "-c", str(path)])


def granian(_root: str, port: int) -> None:
    """Granian, RSGI, one worker, its access log off."""
    here = str(Path(__file__).parent)
    quiet = ["--no-access-log", "--log-level", "warning"]
    where = ["--host", "0.0.0.0", "--port", str(port), "--working-dir", here]
    run([sys.executable, "-m", "granian", "--interface", "rsgi", "--workers", "1", *where, *quiet, "granian_app:app"])


def epoll(_root: str, port: int) -> None:
    """The user-mode baseline, in C."""
    binary = Path(tempfile.gettempdir(), f"batchbridge-baseline-{os.getuid()}")
    subprocess.run(["cc", "-O2", "-o", str(binary), str(Path(__file__).with_name("baseline_epoll.c"))], check=True)
    run([str(binary), str(port)])


RIVALS: dict[str, Callable[[str, int], None]] = {"nginx": nginx, "h2o": h2o, "granian": granian, "epoll": epoll}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rival", choices=RIVALS)
    parser.add_argument("--root", default=".")
    parser.add_argument("--port", type=int, default=8080)
    arguments = parser.parse_args()
    RIVALS[arguments.rival](arguments.root, arguments.port)


if __name__ == "__main__":
    main()
