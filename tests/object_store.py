"""A real S3 server (moto's) in this process, with one bucket per test and a record of its requests."""

import itertools
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow.fs
from moto.server import ThreadedMotoServer

KEY, SECRET = "AKIAEXAMPLE", "verysecret+key"
_buckets = itertools.count()


class ObjectStore(logging.Handler):
    """`requests`: one a request, such as "GET /bucket-0/fingerprint/name.block"."""

    def __init__(self, address: str) -> None:
        super().__init__(logging.INFO)
        self.requests: list[str] = []
        self.server = ThreadedMotoServer(ip_address=address, port=0)

    def emit(self, record: logging.LogRecord) -> None:
        if asked := re.search(r"([A-Z]+ \S+) HTTP/", record.getMessage()):
            self.requests.append(asked[1])

    def new_uri(self) -> str:
        """The URI of a new, empty bucket."""
        host, port = self.server.get_host_and_port()
        name = f"bucket-{next(_buckets)}"
        server = {"endpoint_override": f"{host}:{port}", "scheme": "http", "region": "us-east-1"}
        pyarrow.fs.S3FileSystem(allow_bucket_creation=True, **server).create_dir(name)
        return f"s3://{name}/logits?" + "&".join(f"{k}={v}" for k, v in server.items())

    def count(self, method: str, ending: str = ".block") -> int:
        return sum(r.startswith(f"{method} ") and r.endswith(ending) for r in self.requests)


@contextmanager
def object_store(address: str = "127.0.0.1") -> Iterator[ObjectStore]:
    os.environ |= {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_EC2_METADATA_DISABLED": "true"}
    store, log = ObjectStore(address), logging.getLogger("werkzeug")
    log.addHandler(store)
    log.setLevel(logging.INFO)
    log.propagate = False
    store.server.start()
    try:
        yield store
    finally:
        store.server.stop()
        log.removeHandler(store)
