"""Several processes of one run: what they tell each other between the programs on devices.

Every process runs the same command on its own devices. JAX keeps their programs in step; this
module carries the rest: trajectories, which every process needs in full, stop requests, and
failures. They go through the key-value store of `jax.distributed`, from host to host: a process
that waits there for the slowest rollout holds no device memory, runs into no collective's time
limit, and learns meanwhile that another process was told to stop or failed.

With one process nothing here does anything.

What ends when a process fails:
  It raises                The others raise too, at their next exchange at the latest, and name it.
                           A process that hangs in a program on devices, which waits for the failed
                           process, ends itself after GRACE_SECONDS.
  It is killed             JAX ends the others: at once if it was process 0, else when its
                           heartbeats have been missing for 100 seconds.
"""

import atexit
import functools
import os
import pickle
import sys
import threading
import time
import zlib

import jax
from absl import logging
from jax._src import distributed  # the key-value store has no public name

PREFIX = "flow_grpo_jax"
NOTICES = f"{PREFIX}/notices/"
WAIT_MS = 500  # between two looks at the notices while waiting for an exchange
TRANSFER_MS = 600_000  # for a value that has been written
NOTICE_SECONDS = 1.0  # between two looks at the notices during rollouts
GRACE_SECONDS = 20.0  # from another process's failure to the end of one that does not react
LEAVE_SECONDS = 30.0  # for how long process 0 lets the others end before it does
ENVIRONMENT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def initialize(*, coordinator=None, processes=None, process_id=None):
    """Joins the other processes of the run, if there are any; before anything uses a device.

    Args:
      coordinator: "host:port" of process 0; any free port.
      processes: how many there are.
      process_id: which of them this is, from 0.

    Arguments left out come from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. If
    none is given, JAX finds the processes that SLURM, Open MPI, an indexed Kubernetes job or a TPU
    slice started; without any of these this does nothing. With SLURM and Open MPI, JAX expects one
    process for each GPU; JAX_LOCAL_DEVICE_IDS=0,1,... gives a process several.

    Raises:
      ValueError: some of the three are given and some are not, or one is no number.
    """
    if jax.distributed.is_initialized():
        return
    # One owner of SIGTERM: the command, which saves and says how it ended.
    jax.config.update("jax_enable_preemption_service", False)
    given = [
        os.environ.get(name) if value is None else value
        for name, value in zip(ENVIRONMENT, (coordinator, processes, process_id), strict=True)
    ]
    for name, value in zip(ENVIRONMENT[1:], given[1:], strict=True):
        if value is not None and not str(value).isdecimal():
            raise ValueError(f"{name}={value!r} is not a number.")
    if None not in given:
        address, total, this = given[0], *map(int, given[1:])
        if not 0 <= this < total:
            raise ValueError(f"process_id={this} must be from 0 to processes - 1 = {total - 1}.")
        if total > 1:
            jax.distributed.initialize(address, total, this, cluster_detection_method="deactivate")
    elif _several_were_launched():
        jax.distributed.initialize(coordinator_address=given[0])
    elif given != [None] * 3:
        missing = [name for name, value in zip(ENVIRONMENT, given, strict=True) if value is None]
        raise ValueError(
            f"{', '.join(missing)} missing: several processes need the address of process 0, their "
            "number and this one's, by environment variables or flags."
        )
    elif "TPU_SKIP_MDS_QUERY" not in os.environ and jax.config.jax_platforms != "cpu":
        try:  # JAX sets that variable where there is no TPU
            jax.distributed.initialize()
        except (ValueError, OSError) as error:
            logging.info("no other processes found: %s", error)


def _several_were_launched():
    """Returns whether a launcher that JAX knows started more than one process."""
    slurm = "SLURM_STEP_NODELIST" in os.environ and os.environ.get("SLURM_NTASKS", "1") != "1"
    open_mpi = os.environ.get("OMPI_COMM_WORLD_SIZE", "1") != "1"
    kubernetes = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= set(os.environ)
    tpu_slice = "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    return slurm or open_mpi or kubernetes or tpu_slice


def index():
    """Returns this process's number, from 0; process 0 writes the files of the run."""
    return distributed.global_state.process_id


def count():
    return distributed.global_state.num_processes


def share(total):
    """Returns the range of those of `total` things that this process does."""
    return range(index(), total, count())


def gather(items):
    """Returns the items of all processes, in their order; the same list in each.

    Every process must call it, in the same order of calls; items are pickled.

    Raises:
      PeerFailed: another process failed.
    """
    if not (peers := _peers()):
        return list(items)
    return [item for part in peers.exchange(list(items)) for item in part]


def together(work, *, stop):
    """Returns what `work()` returns in all processes, in their order; if one raises, all raise.

    Args:
      work: called without arguments in every process; returns a list of picklable items.
      stop: class of an exception without arguments that is no failure: if a process raises it and
        none fails, all raise it.

    Raises:
      PeerFailed: `work` failed in another process.
    """
    if count() == 1:
        return work()
    items, error = [], None
    try:
        items = work()
    except stop:
        error = stop()
    except PeerFailed:
        raise
    except Exception as problem:  # noqa: BLE001  the others must learn of any failure
        error = problem
    failed = "" if error is None or isinstance(error, stop) else describe(error)
    parts = gather([(items, failed, isinstance(error, stop))])
    if failed:
        raise error
    for process, (_, reason, _) in enumerate(parts):
        if reason:
            raise PeerFailed(f"Process {process} failed: {reason}")
    if True in [stopped for _, _, stopped in parts]:
        raise stop
    return [item for part, _, _ in parts for item in part]


def of_first(value):
    """Returns process 0's value, in every process."""
    return gather([value] if index() == 0 else [])[0]


def same(values):
    """Makes sure that a dict of picklable values is the same in all processes.

    Raises:
      ValueError: in every process; names what differs, and where.
    """
    first, *others = gather([values])
    different = [
        f"{name} (process {process}: {other.get(name)!r}, process 0: {first.get(name)!r})"
        for process, other in enumerate(others, start=1)
        for name in {**first, **other}
        if other.get(name) != first.get(name)
    ]
    if different:
        raise ValueError(
            f"The processes disagree in {'; '.join(different)}. Start all of them with the same "
            "command, code and files."
        )


def describe(error):
    return str(error) or repr(error)


def tell_failure(error, *, exit_code=1):
    """Tells the other processes of the exception that ends this one, so that they end too."""
    if not (peers := _peers()):
        return
    peers.exit_code = exit_code
    if isinstance(error, PeerFailed):
        peers.failure = str(error)
    else:
        peers.failure = f"Process {index()} failed: {describe(error)}"
        peers.publish("failure", peers.failure)


def tell_stop():
    """Asks all processes to stop; safe in a signal handler."""
    if peers := _peers():
        peers.stop = True


def told_to_stop():
    """Returns whether any process was asked to stop; polled while something takes long.

    Raises:
      PeerFailed: another process failed.
    """
    if not (peers := _peers()):
        return False
    peers.check()
    return peers.stop


def _peers():
    return _connected() if count() > 1 else None


@functools.cache
def _connected():
    return _Peers(distributed.global_state.client)


class PeerFailed(RuntimeError):
    """Another process failed; the message says which, and why."""


class _Peers:
    """The key-value store, and a thread that watches the notices in it.

    stop: a process, maybe this one, was asked to stop.
    failure: which process failed, and why; "" while none did.
    """

    def __init__(self, client):
        self.client, self.calls = client, 0
        self.stop, self.failure, self.exit_code = False, "", 1
        self.closing = threading.Event()
        self.watcher = threading.Thread(target=self.watch, name="processes", daemon=True)
        self.watcher.start()
        atexit.register(self.close)  # before JAX's own, which ends the client

    def exchange(self, value):
        """Returns the value of each process."""
        self.calls += 1
        place = f"{PREFIX}/exchange/{self.calls}"
        packed = zlib.compress(pickle.dumps(value, pickle.HIGHEST_PROTOCOL), level=1)
        self.client.key_value_set_bytes(f"{place}/{index()}/value", packed)
        self.client.key_value_set(f"{place}/{index()}/ready", "")
        found = [
            value if process == index() else self.read(f"{place}/{process}")
            for process in range(count())
        ]
        # A process that wrote to this exchange has read the one before.
        self.client.key_value_delete(f"{PREFIX}/exchange/{self.calls - 1}/{index()}")
        return found

    def read(self, place):
        self.check()
        while not self.ready(place):
            self.check()
        packed = self.client.blocking_key_value_get_bytes(f"{place}/value", TRANSFER_MS)
        return pickle.loads(zlib.decompress(packed))

    def ready(self, place):
        try:
            self.client.blocking_key_value_get(f"{place}/ready", WAIT_MS)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
            return False
        return True

    def check(self):
        if self.failure:
            raise PeerFailed(self.failure)

    def publish(self, name, text=""):
        self.client.key_value_set(f"{NOTICES}{name}/{index()}", text, allow_overwrite=True)

    def notices(self, name):
        """Returns the texts published under a name, in the order of the processes."""
        return [text for _, text in sorted(self.client.key_value_dir_get(f"{NOTICES}{name}/"))]

    def watch(self):
        published, failed_at = False, None
        while not self.closing.wait(NOTICE_SECONDS):
            try:
                if self.stop and not published:
                    self.publish("stop")
                if self.notices("stop"):
                    self.stop = published = True
                failures = self.notices("failure")
            except jax.errors.JaxRuntimeError:
                continue  # a late answer; or process 0 is gone, and JAX ends this one
            if failures and failed_at is None:
                self.failure, failed_at = self.failure or failures[0], time.monotonic()
            if failures and time.monotonic() - failed_at > GRACE_SECONDS:
                logging.error("%s", self.failure)
                self.leave()

    def close(self):
        self.closing.set()
        self.watcher.join()
        if self.failure:
            self.leave()

    def leave(self):
        """Ends without JAX's shutdown, which waits for all, even those that can no longer answer.

        Process 0 goes last: JAX aborts the others when it is gone.
        """
        try:
            self.publish("end")
            deadline = time.monotonic() + LEAVE_SECONDS
            while index() == 0 and time.monotonic() < deadline:
                if len(self.notices("end")) == count():
                    break
                time.sleep(0.1)
        except jax.errors.JaxRuntimeError:
            pass
        logging.flush()
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(self.exit_code)
