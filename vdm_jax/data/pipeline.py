"""From a source to batches, on Grain.

The stream is a function of (config, source, batch number) and nothing else: the order
comes from a seeded permutation of each epoch, all chance within an example from
(seed, position in the stream). So a position is the whole state of the iterator, and
the global batches are the same for every number of threads, workers and processes.
"""

import dataclasses
import hashlib
import multiprocessing
import multiprocessing.process
import multiprocessing.util
import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, cast

import grain
import numpy as np

from vdm_jax.data.source import BadClip, Source
from vdm_jax.errors import UserError

Batch = dict[str, np.ndarray]
Example = dict[str, Any]  # a Clip

MAX_RETRIES = 100  # unusable items in a row before giving up on a position
READ_THREADS = 2  # decode ahead of the training step when there are no worker processes
PREFETCH_BATCHES = 4  # batches in the buffer
# Schedulers and terminals send these to all processes; the run decides when to stop.
RUN_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
MAX_EXAMPLES = 2**48  # examples; Grain's own infinity overflows in batches of one


@dataclasses.dataclass
class _LoadBatch:
    """(batch number, indices of the global batch) -> this process's share of it."""

    source: Source
    seed: int
    frames: int
    joint_image_frames: int
    flip: bool
    max_bad_fraction: float
    local_rows: slice
    bad: dict[str, BadClip] = dataclasses.field(default_factory=dict)

    def __call__(self, number: int, indices: Sequence[int]) -> Batch:
        positions = range(number * len(indices), (number + 1) * len(indices))
        pairs = zip(positions[self.local_rows], indices[self.local_rows], strict=True)
        examples = [self._example(position, int(index)) for position, index in pairs]
        batch = {key: np.stack([e[key] for e in examples]) for key in examples[0]}
        if self.joint_image_frames:
            mask = np.arange(self.frames + self.joint_image_frames) < self.frames
            batch["frame_mask"] = np.tile(mask, (len(examples), 1))
        return batch

    def _example(self, position: int, index: int) -> Example:
        """A clip, and the extra images appended to its frames, with their own words."""
        clip = self._clip(position, 0, index, self.frames)
        if not self.joint_image_frames:
            return clip
        slots = range(1, self.joint_image_frames + 1)
        clips = [clip, *(self._clip(position, slot, None, 1) for slot in slots)]
        video = np.concatenate([each["video"] for each in clips])
        told = clip.keys() - {"video"}
        return {"video": video} | {k: np.stack([c[k] for c in clips]) for k in told}

    def _clip(
        self, position: int, slot: int, index: int | None, frames: int
    ) -> Example:
        """Item `index`, or a random one; where it is unusable, a random other one.

        Every attempt has a generator of its own: how far a failing load got before it
        failed leaves no trace in the stream.
        """
        last = None
        for attempt in range(MAX_RETRIES):
            rng = np.random.default_rng((self.seed, position, slot, attempt))
            if index is None:
                index = int(rng.integers(len(self.source)))
            try:
                clip: Example = {**self.source.load(index, rng, frames)}
            except BadClip as error:
                self._skip(error)
                index, last = None, error
                continue
            if self.flip and rng.random() < 0.5:
                clip["video"] = clip["video"][:, :, ::-1]
            return clip
        raise UserError(
            f"{self.source.name}: {MAX_RETRIES} unusable clips in a row, the last was {last}"
        )

    def _skip(self, error: BadClip) -> None:
        """Names an unusable item once; too many of them stop the run."""
        if self.bad.setdefault(error.name, error) is not error:  # atomic: no lock
            return
        bad, items = len(self.bad), len(self.source)
        print(f"skipped {error} ({bad} of {items} clips)", file=sys.stderr, flush=True)
        if bad > self.max_bad_fraction * items:
            raise UserError(
                f"{self.source.name}: {bad} of {items} clips are unusable, more than "
                f"config.data.max_bad_fraction={self.max_bad_fraction}; the last was {error}"
            )


def _dataset(
    config, source: Source, *, seed: int, batch_size: int, images: int, flip: bool,
    share: slice = slice(None),
) -> grain.MapDataset[Batch]:  # fmt: skip
    """The endless sequence of batches, by number."""
    if config.data.flip and not source.flip:
        raise UserError(
            f"config.data.flip=True: left and right have a meaning in {source.name}; "
            "set it to False"
        )
    frames, max_bad_share = config.video.frames, config.data.max_bad_fraction
    load = _LoadBatch(source, seed, frames, images, flip, max_bad_share, share)
    epochs = MAX_EXAMPLES // len(source)
    items = grain.MapDataset.range(len(source)).shuffle(seed).repeat(epochs)
    return items.batch(batch_size, batch_fn=list).map_with_index(load)


def _prefetch(
    dataset: grain.MapDataset[Batch], threads: int, ahead: int
) -> grain.DatasetIterator[Batch]:
    return iter(dataset.to_iter_dataset(grain.ReadOptions(threads, ahead)))


class _WorkerPool:
    """Batches in order, each n-th made by one of n processes.

    They come through pipes: what one process holds alone ends with it, where shared
    memory would stay behind a run that is killed. A worker ends with this process,
    however that ends, since it waits for the end of a pipe, too.
    """

    def __init__(self, dataset: grain.MapDataset[Batch], number: int):
        spawn = multiprocessing.get_context("spawn")
        self._processes: list[multiprocessing.process.BaseProcess] = []
        self._pipes: list[Connection] = []
        for worker in range(number):
            pipe, other = spawn.Pipe(duplex=False)
            process = spawn.Process(
                target=_worker_main,
                args=(dataset[worker::number], -(-PREFETCH_BATCHES // number), other),
                daemon=True,
            )
            _start_worker(process)
            other.close()  # so that the pipe ends with the worker
            self._processes.append(process)
            self._pipes.append(pipe)
        self._next_worker = 0
        # Before multiprocessing asks them to end at exit, which they do not listen to.
        self.close = multiprocessing.util.Finalize(
            self, _stop_workers, (self._processes, self._pipes), exitpriority=10
        )

    def __next__(self) -> Batch:
        try:
            answer = _receive(self._pipes[self._next_worker])
        except (EOFError, OSError) as error:
            raise self._worker_error(self._next_worker) from error
        if isinstance(answer, UserError):
            raise answer
        self._next_worker = (self._next_worker + 1) % len(self._pipes)
        return answer

    def _worker_error(self, turn: int) -> Exception:
        """What to say of a worker that has ended."""
        process = self._processes[turn]
        process.join()
        name = f"loader {turn} of config.data.workers={len(self._processes)}"
        name += f" (process {process.pid})"
        status = process.exitcode or 0
        if status >= 0:
            return RuntimeError(f"{name} ended with an error of its own, see above")
        killer = signal.Signals(-status).name
        return UserError(
            f"{name} was killed by {killer}: is there memory enough for so many? the "
            "same command goes on from the newest checkpoint",
            status=128 - status,
        )


def _start_worker(process: multiprocessing.process.BaseProcess) -> None:
    """Start a process that gets no signal of the run's, from its first moment on."""
    resource_tracker.ensure_running()  # or the first start would begin it and unblock
    before = signal.pthread_sigmask(signal.SIG_BLOCK, RUN_SIGNALS)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _stop_workers(
    processes: Iterable[multiprocessing.process.BaseProcess],
    pipes: Iterable[Connection],
) -> None:
    for pipe in pipes:
        pipe.close()
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


def _worker_main(
    dataset: grain.MapDataset[Batch], ahead: int, pipe: Connection
) -> None:
    """Send the batches of a data set without end: all that a worker process does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    batches = _prefetch(dataset, 1, ahead)
    try:
        for batch in batches:
            _send(pipe, batch)
    except UserError as error:
        _send(pipe, error)
    except ConnectionError:  # nobody reads any more
        return


def _send(pipe: Connection, answer: Batch | UserError) -> None:
    """Send what `_receive` gets; arrays go from where they lie, without a copy."""
    buffers: list[pickle.PickleBuffer] = []
    content = pickle.dumps(answer, 5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    pipe.send((content, [view.nbytes for view in views]))
    with open(pipe.fileno(), "wb", buffering=0, closefd=False) as file:
        for view in views:
            while view:
                view = view[file.write(view) :]


def _receive(pipe: Connection) -> Batch | UserError:
    """Raises EOFError where the sender ends amid an answer, or before it."""
    content, sizes = pipe.recv()
    buffers = [np.empty(size, np.uint8) for size in sizes]
    with open(pipe.fileno(), "rb", buffering=0, closefd=False) as file:
        for buffer in buffers:
            view = buffer.data
            while view:
                if not (number := file.readinto(view)):
                    raise EOFError
                view = view[number:]
    return pickle.loads(content, buffers=buffers)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # whatever other threads are at


class Batches:
    """An endless iterator of batches whose state is a count."""

    def __init__(self, dataset: grain.MapDataset[Batch], workers: int):
        self._dataset, self._workers = dataset, workers
        self._count, self._iterator = 0, None

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        if self._iterator is None:
            rest = self._dataset[self._count :]
            if self._workers:
                self._iterator = _WorkerPool(rest, self._workers)
            else:
                self._iterator = _prefetch(rest, READ_THREADS, PREFETCH_BATCHES)
        batch = next(self._iterator)
        self._count += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """Goes through JSON; valid for any number of workers and processes."""
        return {"batches": self._count}

    def set_state(self, state: dict[str, int]) -> None:
        """The next batch is the one that followed `get_state`."""
        self.close()
        self._count = int(state["batches"])

    def close(self) -> None:
        """Stops threads and workers; `next` starts them again."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


def train_batches(
    config, source: Source, process_index: int = 0, process_count: int = 1
) -> Batches:
    """Batches of the training part.

    Process p of n loads rows p b/n .. (p+1) b/n of each global batch and nothing else.

    Yields:
      dict of video uint8 [b, f + k, h, w, c], the last k = config.data.joint_image_frames frames
      independent images; frame_mask bool [b, f + k] (False on the images) if k > 0;
      label int32 [b, attributes] if the source has any; caption str [b]. With images
      both are [b, 1 + k, ...], of the video and then of each image.

    Raises:
      UserError: fewer clips than a batch, a batch that the processes cannot share, a
        flip that would make labels untrue, or (from `next`) too many unusable clips.
    """
    _check_ranges(config)
    source, batch_size = source.split(False), config.data.batch_size
    if len(source) < batch_size:
        raise UserError(
            f"{source.name} has {len(source)} clips for training, fewer than one batch "
            f"of config.data.batch_size={batch_size}: lower it or add clips"
        )
    if batch_size % process_count:
        raise UserError(
            f"config.data.batch_size={batch_size} does not divide among "
            f"{process_count} processes: the nearest that does is "
            f"{max(round(batch_size / process_count), 1) * process_count}"
        )
    local = batch_size // process_count
    dataset = _dataset(
        config, source, seed=config.seed, batch_size=batch_size,
        images=config.data.joint_image_frames, flip=config.data.flip,
        share=slice(process_index * local, (process_index + 1) * local),
    )  # fmt: skip
    return Batches(dataset, config.data.workers)


def _check_ranges(config) -> None:
    if not 0 <= config.seed < 2**32:
        raise UserError(f"config.seed={config.seed}: from 0 to {2**32 - 1}")
    for field, least in (("batch_size", 1), ("joint_image_frames", 0), ("workers", 0)):
        if config.data[field] < least:
            raise UserError(f"config.data.{field}={config.data[field]}: >= {least}")


def fixed_clips(config, part: Source, n: int, seed: int = 0) -> Iterator[Batch]:
    """The first n clips of a fixed shuffle of one part of a source, in batches of one.

    Without images or flips; beyond the last item the next shuffle goes on.
    """
    dataset = _dataset(config, part, seed=seed, batch_size=1, images=0, flip=False)
    return (cast(Batch, dataset[i]) for i in range(n))


def held_out_batch(config, source: Source, n: int, seed: int = 0) -> Batch:
    """`fixed_clips` of the held-out part as one batch.

    Raises:
      UserError: nothing is held out, or too many unusable clips.
    """
    held_out = source.split(True)
    if not len(held_out):
        raise UserError(
            f"{source.name} holds out no clip of {config.video.frames} frames: fewer "
            "frames, a smaller config.data.stride or a larger config.data.validation_fraction"
        )
    clips = list(fixed_clips(config, held_out, n, seed))
    return {key: np.concatenate([clip[key] for clip in clips]) for key in clips[0]}


def fingerprint(config, source: Source) -> dict:
    """What must be equal for a resumed run to go on with the same stream.

    Workers, threads and the number of processes are not in it: they change nothing.
    """
    digest = hashlib.sha256(repr((source.names, source.sizes)).encode())
    fields = (
        "batch_size", "joint_image_frames", "stride", "target_fps", "flip", "crop",
    )  # fmt: skip
    return {
        "seed": config.seed,
        **{field: config.data[field] for field in fields},
        **{field: config.video[field] for field in ("frames", "height", "width")},
        "source": source.name,
        "items": len(source),
        "digest": digest.hexdigest(),
        **{field: config.data[field] for field in ("mean", "variance")},
        # Until images had labels and captions of their own they had their video's.
        **({"image_conditions": "their own"} if config.data.joint_image_frames else {}),
    }
