"""The socket that the server listens on: TCP or Unix, with or without TLS. Knows no HTTP.

What cannot be had is a ConfigError in one line.
"""

import contextlib
import os
import socket
import ssl
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from assay.config import ServerConfig
from assay.errors import ConfigError

BACKLOG = 2048
_PROBE_SECONDS = 2.0  # a socket file whose server is too busy to take a connection so long is not a dead one's


@contextmanager
def listening(config: ServerConfig) -> Iterator[socket.socket]:
    """The bound and listening socket; a Unix socket's file goes with it. Raises ConfigError."""
    if config.uds is None:
        with _on_port(config.host, config.port) as listener:
            yield listener
        return
    path = Path(config.uds)
    with _on_path(path) as listener:
        ours = path.stat().st_ino
        try:
            yield listener
        finally:
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ino == ours:  # and not one that somebody put in its place
                    path.unlink()


def tls_context(config: ServerConfig) -> ssl.SSLContext | None:
    """What makes HTTPS of HTTP, if that is wanted. Raises ConfigError that names the file and what is wrong with it."""
    if config.ssl_certfile is None:
        return None
    for setting, name in (("--ssl-certfile", config.ssl_certfile), ("--ssl-keyfile", config.ssl_keyfile)):
        if name is not None:
            _check_readable(setting, name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:  # without a password of ours, an encrypted key would have one asked for at the terminal
        context.load_cert_chain(config.ssl_certfile, config.ssl_keyfile, password="")
    except (OSError, ValueError) as error:  # SSLError is an OSError
        reason = getattr(error, "reason", None) or "they are no certificate and key in PEM, or the key is encrypted"
        files = " and ".join(name for name in (config.ssl_certfile, config.ssl_keyfile) if name is not None)
        raise ConfigError(f"Cannot use {files} for HTTPS: {reason.lower().replace('_', ' ')}.") from error
    return context


def address_of(config: ServerConfig, listener: socket.socket) -> str:
    """As a URL, with the port that was taken; a path for a Unix socket."""
    if config.uds is not None:
        return f"unix:{config.uds}" + (" (https)" if config.ssl_certfile else "")
    host, port = listener.getsockname()[:2]
    scheme = "https" if config.ssl_certfile else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _on_port(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"Cannot listen on {host}:{port}: {error.strerror or error}. Choose another --port."
        ) from error
    return listener


def _on_path(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)  # the file is born 0600: nobody connects before a chmod
    try:
        _remove_dead(path)
        listener.bind(str(path))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(f"Cannot listen on {path}: {error.strerror or error}. Choose another --uds.") from error
    except ConfigError:
        listener.close()
        raise
    finally:
        os.umask(mask)
    return listener


def _remove_dead(path: Path) -> None:
    """Remove the socket file of a server that ended without doing so. Raises ConfigError for anything else."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"Cannot listen on {path}: there is a file that is no socket. Choose another --uds.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except TimeoutError:
            pass  # its backlog is full: somebody listens
    raise ConfigError(f"Cannot listen on {path}: another server does. Stop it, or choose another --uds.")


def _check_readable(setting: str, name: str) -> None:
    try:
        with open(name, "rb"):
            pass
    except OSError as error:
        raise ConfigError(f"Cannot read {name}, which {setting} names: {error.strerror or error}.") from error
