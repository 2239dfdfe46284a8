"""What the kill tests kill: children of one parent that has loaded everything and run no tensor operation."""

import multiprocessing
import os
import resource
import signal
import statistics
import time
from itertools import pairwise
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["lficam.training", "timm", __name__])


def start(target, *arguments):
    process = CONTEXT.Process(target=target, args=arguments)
    process.start()
    return process


def saving(path, acknowledge):
    """Save ever newer checkpoints, and say which one is safe."""
    import torch

    from lficam.checkpoints import previous, write_checkpoint

    torch.set_num_threads(1)
    for number in range(1, 10**6):
        values = {"number": number, "weights": torch.full((20_000,), float(number))}
        write_checkpoint(values, Path(path), keep=previous(Path(path)))
        acknowledge.send(number)


def refusing(path, answer):
    """Read a checkpoint that cannot be read; say why, and by how many megabytes the peak of memory grew."""
    from lficam.checkpoints import read_checkpoint
    from lficam.errors import RunError

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        read_checkpoint(Path(path))
    except RunError as error:
        answer.send((str(error), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))


def training(recipe, out, at=None, deed="kill", threads=1, marker=None):
    """Train; do ``deed`` at a step. ``marker`` is touched at step 3, and every step then takes a twentieth second."""
    import torch

    from lficam.errors import RunError
    from lficam.training import ClassificationTask, fit

    torch.set_num_threads(threads)
    step = ClassificationTask.training_step

    def struck(self, batch, batch_idx):
        if marker and self.global_step == 3:
            Path(marker).touch()
        if marker:
            time.sleep(0.05)
        if self.global_step == at:
            DEEDS[deed]()
        return step(self, batch, batch_idx)

    ClassificationTask.training_step = struck
    try:
        fit(recipe, out)
    except RunError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        Path(out, "error.txt").write_text(str(error))
        raise SystemExit(2) from error


def training_with_a_worker(recipe, out, deed):
    """Train with loading processes, one of which dies or hangs at its third batch, once all have left their numbers."""
    from lficam.data.module import TrainingSet
    from lficam.errors import RunError
    from lficam.training import fit

    get = TrainingSet.__getitems__
    calls = []
    workers = Path(out).with_name("workers")
    workers.mkdir()

    def struck(self, keys):
        calls.append(keys)
        (workers / str(os.getpid())).touch()
        if len(calls) == 3:
            while len(list(workers.iterdir())) < recipe.workers:
                time.sleep(0.01)
            DEEDS[deed]()
        return get(self, keys)

    TrainingSet.__getitems__ = struck
    try:
        fit(recipe, out)
    except RunError as error:
        Path(out, "error.txt").write_text(str(error))
        raise SystemExit(2) from error


def _fill_the_disk():
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))


DEEDS = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "end": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "hang": lambda: time.sleep(600),
    "fill": _fill_the_disk,
}


def refusing_a_picture(path, answer):
    """Read a picture that is too large; say by how many megabytes the peak of memory grew."""
    from lficam.data.images import read_image
    from lficam.errors import DataError

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        read_image(path)
    except DataError:
        answer.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def explaining(times, answer):
    """Explain pictures, one after the other; say by how many megabytes per thousand of them memory grew.

    In the median of ten parts: a leak is in every part, a leap of the allocator in one.
    """
    import torch

    import lficam
    from lficam.contract import Preprocessing

    torch.set_num_threads(1)
    model = lficam.create_model("cifar_resnet20").eval()
    model.config.preprocessing = Preprocessing(32, 32)
    picture = (torch.rand(3, 40, 40) * 255).to(torch.uint8)

    def explain(count):
        for _ in range(count):
            list(lficam.explain_images(model, [picture]))
        return _resident()

    sizes = [explain(100)]  # allocators and caches have what they want
    sizes += [explain(times // 10) for _ in range(10)]
    answer.send(statistics.median(later - earlier for earlier, later in pairwise(sizes)) * 10_000 / times)


def _resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def explaining_to_parquet(run, paths, out, kill_after):
    """Explain into shards; die after some pictures."""
    import torch

    import lficam
    from lficam import batch

    torch.set_num_threads(1)
    explain = batch.explain_images

    def struck(model, pictures):
        for result in explain(model, pictures):
            nonlocal kill_after
            kill_after -= 1
            if kill_after == 0:
                DEEDS["kill"]()
            yield result

    batch.explain_images = struck
    batch.explain_to_parquet(run, lficam.load(run), [Path(path) for path in paths], out, device="cpu", shard_rows=5)


def explaining_ever_more(run, picture, times, out, answer):
    """Explain one picture many times into shards; say by how many megabytes memory grew after the first fifth."""
    import torch

    import lficam
    from lficam import batch

    torch.set_num_threads(1)
    model, sizes = lficam.load(run), []
    write = batch._write

    def watched(*arguments):
        write(*arguments)
        sizes.append(_resident())

    batch._write = watched
    batch.explain_to_parquet(run, model, [Path(picture)] * times, out, device="cpu", shard_rows=max(times // 20, 1))
    answer.send(sizes[-1] - sizes[len(sizes) // 5])
