"""Simulate several hosts on one machine: Linux network namespaces on a bridge, each with its own Ray.

    python tests/integration/hosts.py                                              # a shell on the head of three hosts
    python tests/integration/hosts.py -- python pipelines/full.py tiny --compute.workers 2

Each host has an address, a name, a link that can be cut and processes that can be killed. Hosts share the disk, as a
cluster shares its storage. The machine's own network is not changed. Needs root and iproute2.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NETWORK = "10.123.0"
RAY_PORT, JOBS_PORT = 6379, 8265
PREFIX = "egic"
"""Namespaces are named egic<process id>-<host>, so that those of killed runs can be recognised."""


@dataclass
class Host:
    """One host. folder: for its Ray sessions and token."""

    namespace: str
    number: int
    folder: Path
    env: dict[str, str] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"{NETWORK}.{self.number}"

    @property
    def name(self) -> str:
        return f"host{self.number}"

    def start(self, command: Sequence[object], **kwargs) -> subprocess.Popen:
        """Start a command on this host, under its own host name."""
        return subprocess.Popen(self._on_host(command), **self._options(kwargs))

    def run(self, command: Sequence[object], **kwargs) -> subprocess.CompletedProcess:
        """Run a command on this host; its output is captured by default."""
        return subprocess.run(self._on_host(command), **({"capture_output": True} | self._options(kwargs)))

    def start_ray(self, head: "Host | None" = None, *, num_cpus: int = 0) -> None:
        """Start Ray, as the head or joining one."""
        role = [f"--address={head.address}:{RAY_PORT}"] if head else [
            "--head", f"--port={RAY_PORT}", f"--dashboard-host={self.address}", f"--dashboard-port={JOBS_PORT}",
        ]  # fmt: skip
        options = [f"--node-ip-address={self.address}", f"--num-cpus={num_cpus}", "--object-store-memory=120000000",
                   f"--temp-dir={self.folder}", "--disable-usage-stats"]  # fmt: skip
        for _ in range(3):  # Ray's timeout of 30 s may be too short on a busy machine
            started = self.run(["ray", "start", *role, *options])
            if started.returncode == 0:
                return
            self.kill()
        raise RuntimeError(f"{self.name}: ray start failed\n{started.stdout[-2000:]}\n{started.stderr[-2000:]}")

    def cut(self) -> None:
        """Cut the link: packets are lost, and the host's own address still works on the host itself."""
        ip("-n", switch_of(self.namespace), "link", "set", self.name, "down")

    def join(self) -> None:
        """Restore the link."""
        ip("-n", switch_of(self.namespace), "link", "set", self.name, "up")

    def kill(self) -> None:
        """Kill all processes of this host at once. If the link is cut, other hosts receive no RST."""
        while pids := processes(self.namespace):
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            time.sleep(0.05)

    def _on_host(self, command: Sequence[object]) -> list[str]:
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0"; exec "$@"', self.name]
        return ["ip", "netns", "exec", self.namespace, *named, *map(str, command)]

    def _options(self, given: dict) -> dict:
        return {"text": True, "cwd": ROOT} | given | {"env": os.environ | self.env | given.get("env", {})}


def ip(*args: object) -> str:
    """Run iproute2's `ip`."""
    done = subprocess.run(["ip", *map(str, args)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(map(str, args))}: {done.stderr.strip()}")
    return done.stdout


def switch_of(namespace: str) -> str:
    """The namespace of the bridge."""
    return namespace.rpartition("-")[0] + "-net"


def processes(namespace: str) -> list[int]:
    """Ids of the processes in a namespace."""
    return [int(pid) for pid in ip("netns", "pids", namespace).split()]


def why_not() -> str:
    """The reason why hosts cannot be created on this machine; "" if they can."""
    if not sys.platform.startswith("linux") or not all(map(shutil.which, ("ip", "unshare", "hostname"))):
        return "needs Linux with iproute2, unshare and hostname"
    namespace = f"{PREFIX}{os.getpid()}-try"
    try:
        ip("netns", "add", namespace)
        ip("netns", "del", namespace)
    except RuntimeError as error:
        return f"network namespaces are not permitted here ({error})"
    return ""


@contextmanager
def hosts(count: int, folder: Path) -> Iterator[list[Host]]:
    """`count` connected hosts without processes; all are killed and removed at the end.

    `folder` must have a short path: Ray's sockets are below it, and their paths may have at most 107 bytes.
    """
    remove_leftovers()
    prefix = f"{PREFIX}{os.getpid()}"
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # as in an activated environment
    env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_ADDRESS": "", "PATH": path}
    made = [Host(f"{prefix}-{n}", n, folder / str(n), dict(env)) for n in range(1, count + 1)]
    try:
        build(f"{prefix}-net", made)
        yield made
    finally:
        remove(prefix)


def build(switch: str, made: list[Host]) -> None:
    """Create the bridge in its own namespace, and connect each host to it."""
    ip("netns", "add", switch)
    ip("-n", switch, "link", "add", "bridge", "type", "bridge")
    ip("-n", switch, "link", "set", "bridge", "up")
    names = "".join(f"{host.address} {host.name}\n" for host in made)
    for host in made:
        host.folder.mkdir()
        etc = Path("/etc/netns", host.namespace)  # `ip netns exec` lays these files over those of /etc
        etc.mkdir(parents=True)
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        (etc / "resolv.conf").write_text("")
        ip("netns", "add", host.namespace)
        ip("-n", host.namespace, "link", "add", "eth0", "type", "veth", "peer", "name", host.name, "netns", switch)
        ip("-n", switch, "link", "set", host.name, "master", "bridge", "up")
        ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", host.namespace, "link", "set", device, "up")
        ip("-n", host.namespace, "route", "add", "default", "dev", "eth0")  # unused, but Ray needs a default route


def remove(prefix: str) -> None:
    """Kill and remove all hosts whose namespaces start with `prefix-`, and their bridge."""
    for namespace in (line.split()[0] for line in ip("netns", "list").splitlines()):
        if namespace.startswith(f"{prefix}-"):
            Host(namespace, 0, Path()).kill()
            ip("netns", "del", namespace)
            shutil.rmtree(Path("/etc/netns", namespace), ignore_errors=True)


def remove_leftovers() -> None:
    """Remove the hosts of runs whose process has ended."""
    for line in ip("netns", "list").splitlines():
        pid = line.split()[0].removeprefix(PREFIX).rpartition("-")[0]
        if line.startswith(PREFIX) and pid.isdigit() and not Path("/proc", pid).exists():
            remove(f"{PREFIX}{pid}")


def start_cluster(head: Host, workers: Sequence[Host], *, num_cpus: int = 2) -> None:
    """Start Ray: a head that runs no workers, and worker nodes."""
    for host in (head, *workers):
        host.env["RAY_ADDRESS"] = ""  # `ray start` fails with another value
    head.start_ray()
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda worker: worker.start_ray(head, num_cpus=num_cpus), workers))
    head.env["RAY_ADDRESS"] = f"{head.address}:{RAY_PORT}"


@contextmanager
def cluster(folder: Path, *, num_workers: int = 2, num_spare: int = 0) -> Iterator[list[Host]]:
    """A head and worker nodes with Ray, then spare hosts without any process."""
    with hosts(1 + num_workers + num_spare, folder) as made:
        start_cluster(made[0], made[1 : 1 + num_workers])
        yield made


def shards(root: Path) -> Path:
    """Prepared shards of a few drawn scenes, for runs on the hosts: epochs of 10 end in the middle of a batch."""
    from jobs.data.preparation import prepare  # here, since this file is also a script that does not need it
    from jobs.data.sources.scenes.scenes import SceneConfig, write_scenes

    write_scenes(root / "coco", SceneConfig(num_train=10, num_val=4, min_side=128, max_side=160))
    prepare((root / "coco",), root / "shards")
    return root / "shards"


def main() -> int:
    """Run a command (or a shell) on the head of three hosts, and remove them when it ends."""
    if reason := why_not():
        print(f"error: {reason}", file=sys.stderr)
        return 2
    command = sys.argv[2:] if sys.argv[1:2] == ["--"] else sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder, cluster(Path(folder)) as (head, *workers):
        print(f"head {head.address}, workers {', '.join(w.address for w in workers)}", file=sys.stderr)
        shell = [os.environ.get("SHELL", "/bin/sh")]
        return head.run(command or shell, cwd=os.getcwd(), capture_output=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
