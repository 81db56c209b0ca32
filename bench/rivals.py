"""Runs another server for comparison, in the foreground, on one core, tuned for the case, its log off.

    python -m bench.rivals nginx|h2o|apache|granian|epoll [--root DIR] [--port 8080]

nginx, h2o and Apache serve the files of --root; Granian (RSGI, one worker) and `epoll` answer GET /f with 64 fixed
bytes. `epoll` is the least that a user-mode server can do (the paper's Howl): wait, read, write one prepared response.
It is compiled when it is asked for.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from batchbridge.errors import BatchBridgeError

__all__ = ["RIVALS", "RivalError", "command_of", "why_not"]

NGINX = """
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log /dev/null; {user}
events {{ worker_connections 16384; }}
http {{
  access_log off; sendfile on; tcp_nopush on; tcp_nodelay on; keepalive_requests 1000000000;
  open_file_cache max=10000 inactive=600s; open_file_cache_valid 600s; default_type text/plain;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{ listen {port} backlog=4096; root {root}; }}
}}
"""

H2O = """
num-threads: 1
listen: {port}
{user}
hosts: {{default: {{paths: {{/: {{file.dir: {root}}}}}}}}}
"""

#: One process, its threads enough for all connections: the event MPM needs one only while it answers.
APACHE = """
ServerRoot {folder}
DefaultRuntimeDir {folder}
PidFile {folder}/apache.pid
ServerName localhost
Listen {port}
ListenBacklog 4096
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
{user}
DocumentRoot {root}
<Directory {root}>
  Require all granted
  AllowOverride None
  Options FollowSymLinks
</Directory>
ErrorLog {folder}/apache.log
LogLevel crit
KeepAlive On
MaxKeepAliveRequests 0
EnableSendfile On
EnableMMAP On
StartServers 1
ServerLimit 1
ThreadLimit 256
ThreadsPerChild 256
MaxRequestWorkers 256
AsyncRequestWorkerFactor 64
"""
APACHE_MODULES = ("/usr/lib/apache2/modules", "/usr/lib/httpd/modules")

#: File names of the programs, where a rival is a program.
PROGRAMS = {"nginx": "nginx", "h2o": "h2o", "apache": "apache2", "epoll": "cc"}


class RivalError(BatchBridgeError):
    """A rival cannot be run here. One sentence."""


def why_not(rival: str) -> str | None:
    """Why it cannot be run here, in half a sentence; None: it can."""
    if rival == "granian":
        return None if importlib.util.find_spec("granian") else "granian is not installed"
    program = PROGRAMS[rival]
    if shutil.which(program) is None:
        return f"{program} is not installed"
    if rival == "apache" and apache_modules() is None:
        return f"apache's modules are in none of {', '.join(APACHE_MODULES)}"
    return None


def command_of(rival: str, root: Path, port: int, folder: Path) -> list[str]:
    """What runs it on that port, with the files of `root`; its own files are in `folder`, which it can read.

    Raises RivalError where it cannot be run.
    """
    if (reason := why_not(rival)) is not None:
        raise RivalError(reason)
    return RIVALS[rival](root.resolve(), port, folder)


def nginx(root: Path, port: int, folder: Path) -> list[str]:
    """nginx with everything cached that it caches."""
    path = folder / "nginx.conf"
    user = "user root;" if is_root() else ""
    path.write_text(NGINX.format(folder=folder, port=port, root=root, user=user))
    return ["nginx", "-c", str(path)]


def h2o(root: Path, port: int, folder: Path) -> list[str]:
    """h2o with one thread."""
    path = folder / "h2o.conf"
    path.write_text(H2O.format(port=port, root=root, user="user: root" if is_root() else ""))
    return ["h2o", "-c", str(path)]


def apache(root: Path, port: int, folder: Path) -> list[str]:
    """Apache with one process of threads. Its workers are nobody where it is started by root: it insists."""
    path = folder / "apache.conf"
    user = "User nobody\nGroup nogroup" if is_root() else ""
    path.write_text(APACHE.format(folder=folder, port=port, root=root, modules=apache_modules(), user=user))
    return ["apache2", "-f", str(path), "-DFOREGROUND"]


def apache_modules() -> str | None:
    """The folder of its modules."""
    return next((folder for folder in APACHE_MODULES if os.path.isdir(folder)), None)


def granian(_root: Path, port: int, _folder: Path) -> list[str]:
    """Granian, RSGI, one worker, its access log off."""
    here = str(Path(__file__).parent)
    quiet = ["--no-access-log", "--log-level", "warning"]
    where = ["--host", "0.0.0.0", "--port", str(port), "--working-dir", here]
    return [sys.executable, "-m", "granian", "--interface", "rsgi", "--workers", "1", *where, *quiet, "granian_app:app"]


def epoll(_root: Path, port: int, folder: Path) -> list[str]:
    """The user-mode baseline, in C."""
    binary = folder / "baseline"
    if not binary.exists():
        source = Path(__file__).with_name("baseline_epoll.c")
        done = subprocess.run(
            ["cc", "-O2", "-o", str(binary), str(source)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RivalError(f"the baseline cannot be compiled: {done.stderr.strip()}")
    return [str(binary), str(port)]


def is_root() -> bool:
    """Whether servers have to be told to stay the user that starts them: the folders may be that user's alone."""
    return os.geteuid() == 0


RIVALS: dict[str, Callable[[Path, int, Path], list[str]]] = {
    "nginx": nginx, "h2o": h2o, "apache": apache, "granian": granian, "epoll": epoll,
}  # fmt: skip


def main() -> None:
    """The command: becomes the server."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rival", choices=RIVALS)
    parser.add_argument("--root", type=Path, default=Path())
    parser.add_argument("--port", type=int, default=8080)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix=f"{options.rival}-"))
    folder.chmod(0o755)
    try:
        command = command_of(options.rival, options.root, options.port, folder)
    except RivalError as error:
        sys.exit(str(error))
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
