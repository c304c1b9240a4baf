"""Numbered chunks of generated data, made by several processes, kept as files: an interrupted job goes on.

A chunk's bytes depend on its number alone, so the result is the same for any number of processes. Each process is a
fresh Python that imports the generator's module only. It is not a fork (the caller may have JAX threads) and does not
re-run the caller's main script (as multiprocessing's spawn would).
"""

import contextlib
import hashlib
import importlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from zoo.data.manifest import DataError
from zoo.files import write_bytes


def chunk_path(folder: Path, chunk: int) -> Path:
    """The file of a chunk."""
    return folder / f"chunk-{chunk:06d}"


def read_chunk(folder: Path, chunk: int) -> bytes | None:
    """The bytes of a finished chunk, or None where it is missing or damaged."""
    try:
        data = chunk_path(folder, chunk).read_bytes()
    except FileNotFoundError:
        return None
    return data[32:] if hashlib.sha256(data[32:]).digest() == data[:32] else None


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_chunks(
    function: str,
    arguments: Mapping[str, Any],
    chunks: Iterable[int],
    folder: Path,
    *,
    workers: int = 1,
    on_done: Callable[[int], None] = lambda chunk: None,
) -> None:
    """Makes the chunks that are missing in `folder`.

    Args:
      function: "package.module:name" of a function `(chunk, **arguments) -> bytes`.
      arguments: JSON-ready keyword arguments.
      chunks: numbers of the chunks to make; the caller leaves out finished ones.
      folder: where the files go; it exists.
      workers: number of processes; 1 works in this one.
      on_done: called in this thread with each chunk's number, in order of completion.

    Raises:
      ValueError: `workers` is below 1, or the function raised a ValueError.
      OSError: a chunk cannot be written.
      DataError: a process ended unexpectedly.
    """
    todo = list(chunks)
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}.")
    workers = min(workers, len(todo))
    if workers <= 1 or not sys.executable:
        for chunk in todo:
            _make_one(function, arguments, chunk, folder)
            on_done(chunk)
    else:
        _make_in_processes(
            {"function": function, "arguments": dict(arguments), "folder": str(folder)}, todo, workers, on_done
        )


def _make_one(function: str, arguments: Mapping[str, Any], chunk: int, folder: Path) -> None:
    module, _, name = function.partition(":")
    data = getattr(importlib.import_module(module), name)(chunk, **arguments)
    write_bytes(chunk_path(folder, chunk), hashlib.sha256(data).digest() + data)


def _make_in_processes(job: dict[str, Any], todo: list[int], workers: int, on_done: Callable[[int], None]) -> None:
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for chunk in todo:
        waiting.put(chunk)
    results: queue.SimpleQueue[int | BaseException] = queue.SimpleQueue()
    processes = [_start_process() for _ in range(workers)]
    threads = [threading.Thread(target=_feed, args=(p, job, waiting, results), daemon=True) for p in processes]
    try:
        for thread in threads:
            thread.start()
        for _ in todo:
            result = results.get()
            if isinstance(result, BaseException):
                raise result
            on_done(result)
    finally:
        for process in processes:
            process.kill()
        for thread in threads:
            thread.join()
        for process in processes:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def _start_process() -> subprocess.Popen[str]:
    # -P: a module in the working directory must not stand in for one of the standard library.
    command = [sys.executable, "-P", "-c", "from zoo.data.chunks import _serve; _serve()"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    # A group of its own: Ctrl-C in the terminal reaches the parent, which ends the others.
    group: dict[str, Any] = {} if os.name == "nt" else {"process_group": 0}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1, env=environment, **group)


def _feed(process: subprocess.Popen[str], job: dict[str, Any], waiting: queue.SimpleQueue, results: queue.SimpleQueue):
    """Hands chunk numbers to one process until none wait; runs in a thread of the parent."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(job) + "\n")
        while True:
            try:
                chunk = waiting.get_nowait()
            except queue.Empty:
                return
            process.stdin.write(f"{chunk}\n")
            answer = process.stdout.readline()
            if not answer:
                raise BrokenPipeError
            reply = json.loads(answer)
            results.put(chunk if reply is None else _as_error(**reply))
    except (OSError, ValueError):
        try:
            code = process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        results.put(
            DataError(f"A worker process ended unexpectedly (exit code {code}). Run again; finished parts are kept.")
        )


def _as_error(kind: str, number: int | None, text: str) -> Exception:
    if kind == "OSError":
        return OSError(number, text)
    return ValueError(text) if kind == "ValueError" else RuntimeError(text)


def _serve() -> None:
    """The loop of a worker process: a job, then chunk numbers, on standard input; it ends when the parent does."""
    answers, sys.stdout = sys.stdout, sys.stderr
    job = json.loads(sys.stdin.readline() or "null")
    if job is None:
        return
    folder = Path(job["folder"])
    for line in sys.stdin:
        reply = None
        try:
            _make_one(job["function"], job["arguments"], int(line), folder)
        except OSError as error:
            reply = {"kind": "OSError", "number": error.errno, "text": error.strerror or str(error)}
        except ValueError as error:
            reply = {"kind": "ValueError", "number": None, "text": str(error)}
        except Exception as error:
            reply = {"kind": "Exception", "number": None, "text": f"{type(error).__name__}: {error}"}
        try:
            print(json.dumps(reply), file=answers, flush=True)
        except BrokenPipeError:
            # The parent is gone; the file is written, and nobody else can read the rest.
            os._exit(0)
