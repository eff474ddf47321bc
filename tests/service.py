"""`recsys serve` as people run it, watched from outside."""

import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil

from tests.processes import below, end, free_ports


class Service:
    """`recsys serve` in a process of its own."""

    def __init__(self, folder: Path, *options: str, **environment: str) -> None:
        """folder: with `bundles`; what is logged and cached lies there, too. Returns when it is ready to answer."""
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        command = [str(Path(sys.executable).with_name("recsys")), "serve", str(folder / "bundles"), "--port", str(self.port)]
        kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        environment = kept | {"RECSYS_CACHE": str(folder / "cache")} | environment
        self.log = (folder / f"serve-{self.port}.log").open("w")
        self.process = subprocess.Popen(
            [*command, "--replicas", "2", *options], env=environment, stdout=self.log, stderr=subprocess.STDOUT
        )
        try:
            self._until_ready()
        except BaseException:
            self.close()
            raise

    def _until_ready(self) -> None:
        late = time.monotonic() + 240
        while True:
            try:
                if httpx.get(f"{self.url}/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            assert time.monotonic() < late and self.process.poll() is None, Path(self.log.name).read_text()
            time.sleep(0.2)

    def named(self, title: str) -> list[psutil.Process]:
        """Processes of this service whose title holds these words."""
        return below(psutil.Process(self.process.pid), title)

    def close(self) -> None:
        """At once, whether it runs or not."""
        if self.process.poll() is None:
            end(psutil.Process(self.process.pid))
        self.process.wait(30)  # psutil has reaped it: Popen has to be told, or warns when it is collected
        self.log.close()
