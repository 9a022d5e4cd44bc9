"""Hosts with addresses, files and links of their own: network namespaces on a bridge, and no shared folder but one."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from processes import kill
from ray_head import BIN

NET = "10.213.71"  # .1 is the bridge, and the head
TOP = Path(__file__).parents[2]
_TMP = "mount -t tmpfs none /tmp"
if TOP.is_relative_to("/tmp"):  # a host has raykd, also where it was cloned to a folder that it has not
    _TMP = f"mount --bind {TOP} /mnt && {_TMP} && mkdir -p {TOP} && mount --move /mnt {TOP}"
_OWN = f"mount --make-rprivate / && {_TMP} && mount -t tmpfs none /dev/shm && mkdir -p /tmp/home && "


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def can_make_networks() -> None:
    """Skips where it cannot, fails in CI."""
    reason = "" if shutil.which("ip") and shutil.which("unshare") else "no ip and unshare here (Debian: iproute2)"
    reason = reason or ("" if os.geteuid() == 0 else "network namespaces want root")
    if reason:
        assert "CI" not in os.environ, reason
        pytest.skip(reason)


class Host:
    """A worker node in a namespace of its own. /tmp (with its home) and /dev/shm are its own, too."""

    def __init__(self, number: int, gcs: str, environment: dict[str, str], cpus: int, pool: str) -> None:
        self.address, self.name, self.link = f"{NET}.{number}", f"raykd{number}", f"raykd-v{number}"
        ip("netns", "add", self.name)
        ip("link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        ip("link", "set", self.link, "master", "raykd-br", "up")
        ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        ip("-n", self.name, "link", "set", "eth0", "up")
        ip("-n", self.name, "link", "set", "lo", "up")
        start = f"exec {BIN}/ray start --address {gcs} --node-ip-address {self.address} --num-cpus {cpus} --block "
        start += f"--labels pool={pool} --object-store-memory {100 * 2**20} --disable-usage-stats"
        self.log = Path(tempfile.mkstemp(prefix=f"{self.name}-", suffix=".log")[1])
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", self.name, "unshare", "-m", "sh", "-c", _OWN + start],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment | {"HOME": "/tmp/home", "GLOO_SOCKET_IFNAME": "eth0"},  # its name means loopback
            )

    def files(self, pattern: str) -> list[Path]:
        """What is in its own /tmp."""
        return list(Path(f"/proc/{self.process.pid}/root/tmp").glob(pattern))

    def cut(self) -> None:
        ip("link", "set", self.link, "down")

    def mend(self) -> None:
        ip("link", "set", self.link, "up")

    def remove(self) -> None:
        """As when it loses its power. A second time does nothing."""
        if not self.log.exists():
            return
        kill(self.process)
        ip("link", "del", self.link)  # by itself it would go with the namespace, some time later
        ip("netns", "del", self.name)
        self.log.unlink()


@contextmanager
def network() -> Iterator[Path]:
    """The bridge, and the folder that all hosts share."""
    can_make_networks()
    shared = Path(tempfile.mkdtemp(prefix="raykd-shared-", dir="/var/tmp"))
    ip("link", "add", "raykd-br", "type", "bridge")
    try:
        ip("addr", "add", f"{NET}.1/24", "dev", "raykd-br")
        ip("link", "set", "raykd-br", "up")
        yield shared
    finally:
        ip("link", "del", "raykd-br")
        shutil.rmtree(shared)
