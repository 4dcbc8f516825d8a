"""Trains chunks in processes of this machine: one per core, or per GPU, started once and used for all chunks.

On a CPU one process per core is faster than one process with a thread per core: threads wait for one another at every
step, which is slow if other programs run at the same time, and each process records its own runs (docs/benchmarks.md,
Sweeps).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from burgersgd import own_process
from burgersgd.config import TrainConfig
from burgersgd.interruption import SIGNALS, Interrupted, interruptible
from burgersgd.recording.progress import Progress, SweepProgress
from burgersgd.recording.warned import relay
from burgersgd.sweeps.chunks import Chunk, Outcome, train_chunk

_log = logging.getLogger("burgersgd")

POLL_SECONDS = 0.1
"""Longest delay until a signal is forwarded to the workers, and shortest time between two progress reports of one."""
PATIENCE_SECONDS = 60.0
"""Longest time that workers may take to save their runs."""


class WorkerDiedError(RuntimeError):
    """A worker process ended unexpectedly; the message says how."""


class Pool:
    """A pool of n worker processes with `threads` threads each; gpus: worker i sees only the i-th GPU."""

    def __init__(self, n: int, threads: int, gpus: bool = False) -> None:
        self.n, self._threads, self._gpus = n, threads, gpus
        self.workers = [self._start(i) for i in range(n)]

    def _start(self, i: int) -> _Worker:
        import torch

        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        devices = visible.split(",") if visible else [str(k) for k in range(torch.cuda.device_count())] or ["0"]
        return _Worker(self._threads, devices[i % len(devices)] if self._gpus else None)

    def measure(self, configs: Sequence[TrainConfig], seconds: float) -> float:
        """Return the gradient evaluations per second of one worker while all of them train such a fleet.

        Raises WorkerDiedError where a worker dies, and the errors of `planning.rate_of`.
        """
        for i, worker in enumerate(self.workers):
            if worker.connection.closed:
                self.workers[i] = self._start(i)
            self.workers[i].send("measure", list(configs), seconds)
        answers = []
        for worker in self.workers:
            try:
                while (message := worker.connection.recv())[0] == "logged":
                    _log.log(*message[1:])
                answers.append(message[1])
            except (EOFError, OSError):
                answers.append(WorkerDiedError(worker.end()))
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return sum(answers) / self.n

    def train(self, chunks: Sequence[Chunk], progress: SweepProgress) -> Iterator[tuple[Chunk, list[Outcome]]]:
        """Yield every chunk with its outcomes, as soon as it is trained.

        The chunk of a worker that dies is resumed once from its checkpoints; if that worker dies, too, its jobs have
        failed. Raises Interrupted where this process or a worker receives a signal, after all workers have saved their
        runs.
        """
        waiting = deque(chunks)
        lost: set[int] = set()  # chunks whose worker has died, by identity
        with interruptible() as interruption, interruption.deferred(), self._closed_on_error():
            while waiting or any(worker.chunk for worker in self.workers):
                if interruption.requested is not None:
                    interruption.step_ended()
                    raise self._interrupted(interruption.requested)
                for i, worker in enumerate(self.workers):
                    if worker.chunk is None and waiting:
                        if worker.connection.closed:
                            self.workers[i] = worker = self._start(i)
                        worker.begin(waiting.popleft())
                busy = {worker.connection: i for i, worker in enumerate(self.workers) if worker.chunk}
                for connection in wait(list(busy), POLL_SECONDS):
                    worker = self.workers[i := busy[connection]]  # pyright: ignore[reportArgumentType]
                    chunk = worker.chunk
                    assert chunk is not None
                    try:
                        kind, *content = worker.connection.recv()
                    except (EOFError, OSError):
                        how = worker.end()
                        progress.add(-worker.counted)
                        if id(chunk) not in lost:
                            lost.add(id(chunk))
                            waiting.appendleft(chunk)
                            continue
                        error = WorkerDiedError(f"its worker process {how}, twice; the system may be out of memory")
                        yield chunk, [Outcome("failed", job.folder, error=error) for job in chunk]
                        continue
                    if kind == "logged":
                        _log.log(*content)
                    elif kind == "progress":
                        worker.counted += content[0]
                        progress.percent = content[2]
                        progress.add(content[0], None, content[1])
                    elif kind == "interrupted":  # by a signal that this process did not send
                        worker.chunk = None
                        raise self._interrupted(content[0], content[1])
                    else:
                        worker.chunk = None
                        progress.under_way = sum(other.counted for other in self.workers if other.chunk)
                        yield chunk, content[0]

    def _interrupted(self, number: int, folders: Sequence[Path] = ()) -> Interrupted:
        """Stop all workers, wait until they have saved their runs, and return the exception to raise."""
        interrupted = Interrupted(number)
        interrupted.folders = list(folders)
        for worker in self.workers:
            worker.send("stop")
        until = time.monotonic() + PATIENCE_SECONDS
        left = [worker for worker in self.workers if worker.chunk]
        while left and time.monotonic() < until:
            for worker in list(left):
                with contextlib.suppress(EOFError, OSError):
                    if not worker.connection.poll(POLL_SECONDS):
                        continue
                    kind, *content = worker.connection.recv()
                    if kind in ("progress", "logged"):
                        continue
                    if kind == "interrupted":
                        interrupted.folders += content[1]
                left.remove(worker)
        return interrupted

    @contextlib.contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End all workers; those that still train save their runs first. May be called twice."""
        for worker in self.workers:
            worker.send("stop")
        for worker in self.workers:
            worker.process.join(PATIENCE_SECONDS)
            worker.end()
        self.workers = []


class _Worker:
    """One worker, as an object in the process that started it."""

    def __init__(self, threads: int, gpu: str | None) -> None:
        context: Any = multiprocessing.get_context("spawn" if gpu is not None else own_process.start_method())
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=own_process.worker, args=(theirs, threads, gpu), daemon=True)
        with own_process.signals_held():
            self.process.start()
        theirs.close()
        self.chunk: Chunk | None = None
        self.counted = 0
        """Number of gradient evaluations of the chunk so far."""

    def begin(self, chunk: Chunk) -> None:
        """Start training a chunk in the worker."""
        self.chunk, self.counted = chunk, 0
        self.send("train", chunk)

    def send(self, *message: Any) -> None:
        """Send a message; if the worker is dead the message is lost, and the next `recv` raises."""
        with contextlib.suppress(OSError):
            self.connection.send(message)

    def end(self) -> str:
        """Make sure that the process has ended, close the connection, and return how the process ended."""
        self.chunk = None
        self.process.join(1.0)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        self.connection.close()
        code = self.process.exitcode or 0
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


# ------------------------------------------------------------------------------------------------- in the worker


def work(connection: Connection, threads: int, gpu: str | None) -> None:
    """Run a worker process: do the tasks that arrive on the connection until it sends "stop" or is closed."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    try:
        with interruptible() as interruption:
            if hasattr(signal, "pthread_sigmask"):  # see own_process.signals_held
                signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            tasks: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()

            def listen() -> None:
                with contextlib.suppress(EOFError, OSError):
                    while (message := connection.recv())[0] != "stop":
                        tasks.put(message)
                if interruption.requested is None:
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

            threading.Thread(target=listen, daemon=True).start()
            import torch

            from burgersgd.sweeps.planning import rate_of

            torch.set_num_threads(threads)
            relay(functools.partial(_send_logged, connection))
            while True:
                kind, *content = tasks.get()
                if kind == "measure":
                    connection.send(("measured", _or_error(rate_of, *content)))
                else:
                    outcomes = train_chunk(content[0], _Relay(connection))  # pyright: ignore[reportArgumentType]
                    connection.send(("done", [sendable(outcome) for outcome in outcomes]))
    except Interrupted as interrupted:
        with contextlib.suppress(OSError):
            connection.send(("interrupted", interrupted.signal, interrupted.folders))
    except OSError:  # the other process has ended
        pass


def _send_logged(connection: Connection, level: int, text: str) -> None:
    with contextlib.suppress(OSError):  # the other process has ended, and this one stops soon
        connection.send(("logged", level, "%s", text))


class _Relay(Progress):
    """Sends the progress of a fleet to the other end of a connection."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(1, "", enabled=False)
        self._connection, self._sent, self._next = connection, 0, 0.0

    def update(self, evaluations: int, train_loss: float | None = None, validation_error: float | None = None) -> None:
        """Send the progress at most every POLL_SECONDS."""
        self._evaluations = evaluations
        if validation_error is not None:
            lowest = validation_error if self._validation_error is None else self._validation_error
            self._validation_error = min(validation_error, lowest)
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + POLL_SECONDS
            with contextlib.suppress(OSError):  # the other process has ended, and this one stops soon
                self._connection.send(("progress", evaluations - self._sent, self._validation_error, self.percent))
            self._sent = evaluations


def _or_error(function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except Exception as error:
        return _sendable_error(error)


def _sendable_error(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def sendable(outcome: Outcome) -> Outcome:
    """Return the outcome with an error that can be read back in another process."""
    return outcome if outcome.error is None else dataclasses.replace(outcome, error=_sendable_error(outcome.error))
