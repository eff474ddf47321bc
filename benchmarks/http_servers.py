"""The servers that bench_http.py compares, each in a process of its own: `http_servers.py KIND BUNDLES PORT`.

All answer POST {"user": …, "k": 10} with the ids and scores of the user's best items, those he has seen left out, from the same
bundle: `ours` with everything the service does, `plain` by GEMM and argpartition, `bare` by the search of `ours` and with
nothing else.
"""

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from recsys.bundle import store
from recsys.bundle.read import open_bundle
from recsys.errors import RequestError
from recsys.retrieval.recommender import Answer, Recommender, Request

BATCH = 64
HAPROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}


class PlainSearch:
    """What one writes in an afternoon: a table of users, one GEMM, seen items masked, argpartition, sort."""

    def __init__(self, bundles: str) -> None:
        self.bundle = open_bundle(store.resolve(Path(bundles)))
        self.item_ids = self.bundle.items.column("item_id").to_pylist()

    def __call__(self, questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
        rows = [self.bundle.users.row(question["user"]) for question in questions]
        scores_BN = self.bundle.user_vectors[rows] @ self.bundle.item_vectors.T
        for place, row in enumerate(rows):
            scores_BN[place, self.bundle.histories.item[self.bundle.histories.events(row, "end")]] = -np.inf
        best_BK = np.argpartition(scores_BN, -10, axis=1)[:, -10:]
        return [self._answer(scores_BN[place], best_BK[place]) for place in range(len(rows))]

    def _answer(self, scores_N: np.ndarray, best_K: np.ndarray) -> dict[str, Any]:
        order = best_K[np.argsort(-scores_N[best_K])]
        return {"items": [{"item_id": self.item_ids[item], "score": float(scores_N[item])} for item in order]}


class SameSearch:
    """The project's own search, and no more of an answer than ids and scores."""

    def __init__(self, bundles: str) -> None:
        bundle = open_bundle(store.resolve(Path(bundles)))
        self.recommender, self.item_ids = Recommender(bundle), bundle.items.column("item_id").to_pylist()

    def __call__(self, questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
        answers = self.recommender.recommend([Request(user=question["user"], k=question["k"]) for question in questions])
        return [self._answer(answer) for answer in answers]

    def _answer(self, answer: Answer | RequestError) -> dict[str, Any]:
        assert isinstance(answer, Answer), answer
        pairs = zip(answer.items.tolist(), answer.scores.tolist(), strict=True)
        return {"items": [{"item_id": self.item_ids[item], "score": score} for item, score in pairs]}


def ours(bundles: str, port: int, ingress: str, **more: Any) -> None:
    """This project's service."""
    from serve.app import run
    from serve.args import ServeArgs

    host = "0.0.0.0" if ingress == "haproxy" else "127.0.0.1"
    args = ServeArgs(bundles=bundles, host=host, open=True, port=port, ingress=ingress, max_batch=BATCH, **more)
    run(args, ready=lambda _: _ready())


def plain(bundles: str, port: int) -> None:
    """FastAPI and @serve.batch round PlainSearch on Ray Serve's default ingress."""
    import ray
    from fastapi import FastAPI
    from pydantic import BaseModel
    from ray import serve as ray_serve

    app = FastAPI()

    class Question(BaseModel):
        user: str
        k: int = 10

    @ray_serve.deployment(max_ongoing_requests=512)
    @ray_serve.ingress(app)
    class Plain:
        def __init__(self) -> None:
            self.search = PlainSearch(bundles)

        @ray_serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=0.002)
        async def batch(self, questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return self.search(questions)

        @app.post("/v1/recommend")
        async def recommend(self, question: Question) -> dict[str, Any]:
            return await self.batch(question.model_dump())  # type: ignore[no-any-return]

    ray.init(address="local", num_cpus=3, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
    ray_serve.start(http_options={"host": "127.0.0.1", "port": port})
    ray_serve.run(Plain.bind(), route_prefix="/")
    _ready()
    threading.Event().wait()


def bare(bundles: str, port: int) -> None:
    """An ASGI function on uvicorn, nothing checked, no Ray: the limit."""
    import uvicorn

    from serve.batching import Batcher

    search = SameSearch(bundles)
    batcher: Batcher[dict[str, Any], dict[str, Any]] = Batcher(search, max_batch=BATCH)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        [answer] = await batcher.submit([orjson.loads(message["body"])])
        body = orjson.dumps(answer)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    server = uvicorn.Server(uvicorn.Config(app, port=port, lifespan="off", log_level="warning", access_log=False))
    asyncio.run(_serve(server))


async def _serve(server: Any) -> None:
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.05)
    _ready()
    await task


def _ready() -> None:
    print("READY", flush=True)


KINDS: dict[str, Callable[[str, int], None]] = {
    "ours": lambda bundles, port: ours(bundles, port, "haproxy"),
    "ours, in a thread": lambda bundles, port: ours(bundles, port, "haproxy", batch_in_thread=True),
    "ours, Ray's proxy": lambda bundles, port: ours(bundles, port, "ray"),
    "plain": plain,
    "plain, HAProxy": lambda bundles, port: (os.environ.update(HAPROXY), plain(bundles, port))[1],
    "bare": bare,
}

if __name__ == "__main__":
    KINDS[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
