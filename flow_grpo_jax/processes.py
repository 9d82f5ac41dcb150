"""Several processes of one run: what they tell each other between the programs on devices.

Every process runs the same command on its own devices. JAX keeps their programs in step; this
module carries the rest: trajectories, which every process needs in full, stop requests, and
failures. They go through the key-value store of `jax.distributed`, from host to host: a process
that waits there for the slowest rollout holds no device memory, runs into no collective's time
limit, and learns meanwhile that another process was told to stop or failed.

Whoever reaches the coordinator's port can write to that store, so every message is data (`wire`),
sealed with a secret of this start that process 0 leaves in the run folder until all have read it.
What is not sealed is not read. So nobody else can run code or forge what is exchanged here; but
nothing is hidden, and JAX's own messages are not sealed: docs/scaling.md.

With one process nothing here does anything.

What ends when a process fails:
  It raises                The others raise too, at their next exchange at the latest, and name it.
                           A process that hangs in a program on devices, which waits for the failed
                           process, ends itself after GRACE_SECONDS.
  It is killed             JAX ends the others: at once if it was process 0, else when its
                           heartbeats have been missing for 100 seconds.
"""

import atexit
import contextlib
import functools
import hashlib
import os
import re
import secrets
import sys
import threading
import time

import jax
from absl import logging
from jax._src import distributed  # the key-value store has no public name

from flow_grpo_jax import files, wire

PREFIX = "flow_grpo_jax"
NOTICES = f"{PREFIX}/notices/"
WAIT_MS = 500  # between two looks at the notices while waiting for an exchange
TRANSFER_MS = 600_000  # for a value that has been written
NOTICE_SECONDS = 1.0  # between two looks at the notices during rollouts
GRACE_SECONDS = 20.0  # from another process's failure to the end of one that does not react
LEAVE_SECONDS = 30.0  # for how long process 0 lets the others end before it does
LOOK_SECONDS = 0.1  # between two looks at whether the secret is there
SECRET = ".secret-"  # in the run folder, with the start of the secret's digest
SECRET_NAME = re.compile(re.escape(SECRET) + "[0-9a-f]{32}")
ENVIRONMENT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
INTRUDER = (
    "Something else writes to the coordinator of this run: let only the run's hosts reach its port."
)
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


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
            here = address.rpartition(":")[0] in LOOPBACK  # else JAX listens on all addresses
            jax.distributed.initialize(
                address,
                total,
                this,
                cluster_detection_method="deactivate",
                coordinator_bind_address=address if here else None,
            )
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


def meet(folder, *, seconds):
    """Shares a secret through a folder that all processes see, before they tell each other more.

    Every process must call it; once is enough for all that follows. Process 0 removes the file.

    Args:
      folder: pathlib.Path; process 0 writes to it.
      seconds: for how long to look for what process 0 has written.

    Returns:
      Whether this process sees in the folder what process 0 writes there.

    Raises:
      PeerFailed: another process failed.
    """
    return not (peers := _peers()) or peers.meet(folder, seconds)


def gather(items, *, kinds=()):
    """Returns the items of all processes, in their order; the same list in each.

    Every process must call it, in the same order of calls.

    Args:
      items: plain data as `wire` has it.
      kinds: the dataclasses and enums that they may hold besides.

    Raises:
      PeerFailed: another process failed.
      wire.Forged: what stands for another process's items is not of this run.
    """
    if not (peers := _peers()):
        return list(items)
    return [item for part in peers.exchange(list(items), kinds) for item in part]


def together(work, *, stop, kinds=()):
    """Returns what `work()` returns in all processes, in their order; if one raises, all raise.

    Args:
      work: called without arguments in every process; returns a list of items.
      kinds: of the items, as in `gather`.
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
    parts = gather([(items, failed, isinstance(error, stop))], kinds=kinds)
    if failed:
        raise error
    for process, (_, reason, _) in enumerate(parts):
        if reason:
            raise PeerFailed(f"Process {process} failed: {reason}")
    if True in [stopped for _, _, stopped in parts]:
        raise stop
    return [item for part, _, _ in parts for item in part]


def of_first(value, *, kinds=()):
    """Returns process 0's value, in every process; kinds as in `gather`."""
    return gather([value] if index() == 0 else [], kinds=kinds)[0]


def same(values):
    """Makes sure that a dict of plain data is the same in all processes.

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


def _name_of(secret):
    """Returns the name of the file with a secret; it tells who reads it whether that is whole."""
    return SECRET + hashlib.sha256(secret).hexdigest()[:32]


class PeerFailed(RuntimeError):
    """Another process failed; the message says which, and why."""


class _Peers:
    """The key-value store, and a thread that watches the notices in it.

    stop: a process, maybe this one, was asked to stop.
    failure: which process failed, and why; "" while none did.
    secret: seals messages; None until `meet` has found it.
    met: whether all processes have the secret. Until then a notice without a seal counts, but not
      its text.
    """

    def __init__(self, client):
        self.client, self.calls, self.meetings = client, 0, 0
        self.secret, self.met = None, False
        self.stop, self.failure, self.exit_code = False, "", 1
        self.closing = threading.Event()
        self.watcher = threading.Thread(target=self.watch, name="processes", daemon=True)
        self.watcher.start()
        atexit.register(self.close)  # before JAX's own, which ends the client

    def meet(self, folder, seconds):
        self.meetings += 1
        place = f"{PREFIX}/secret/{self.meetings}"
        if index() == 0:
            return self.hand_out(folder, place)
        secret = self.look_for(folder, place, seconds)
        self.secret = self.secret or secret
        if secret:
            self.exchange(None)
            self.met = True
        return bool(secret)

    def hand_out(self, folder, place):
        """Leaves a secret in the folder until all processes have read it."""
        for left in folder.glob(f"{SECRET}*"):  # by a start that was killed
            left.unlink()
        secret = secrets.token_bytes()
        path = folder / _name_of(secret)
        self.secret = self.secret or secret
        try:
            with (
                files.writing(path),
                open(path, "xb", opener=functools.partial(os.open, mode=0o600)) as file,
            ):
                file.write(secret)
            self.client.key_value_set(place, path.name)
            self.exchange(None)
        finally:
            path.unlink(missing_ok=True)
        self.met = True
        return True

    def look_for(self, folder, place, seconds):
        """Returns the secret that process 0 left; None if the folder does not show it in time."""
        while not self.ready(place):
            self.check()
        name = self.client.blocking_key_value_get(place, TRANSFER_MS)
        deadline = time.monotonic() + seconds
        while SECRET_NAME.fullmatch(name) and time.monotonic() < deadline:
            self.check()
            with contextlib.suppress(FileNotFoundError):
                if _name_of(secret := (folder / name).read_bytes()) == name:  # it is whole
                    return secret
            time.sleep(LOOK_SECONDS)
        return None

    def exchange(self, value, kinds=()):
        """Returns the value of each process."""
        if self.secret is None:
            raise RuntimeError("Processes must meet before they exchange anything.")
        self.calls += 1
        place = f"{PREFIX}/exchange/{self.calls}"
        mine = f"{place}/{index()}/value"
        sealed = wire.seal(wire.encode(value, kinds), secret=self.secret, place=mine)
        self.client.key_value_set_bytes(mine, sealed)
        self.client.key_value_set(f"{place}/{index()}/ready", "")
        found = [
            value if process == index() else self.read(f"{place}/{process}", kinds)
            for process in range(count())
        ]
        # A process that wrote to this exchange has read the one before.
        self.client.key_value_delete(f"{PREFIX}/exchange/{self.calls - 1}/{index()}")
        return found

    def read(self, place, kinds):
        self.check()
        while not self.ready(f"{place}/ready"):
            self.check()
        place = f"{place}/value"
        sealed = self.client.blocking_key_value_get_bytes(place, TRANSFER_MS)
        try:
            return wire.decode(wire.unseal(sealed, secret=self.secret, place=place), kinds)
        except wire.Forged as error:
            raise wire.Forged(f"{error} {INTRUDER}") from error

    def ready(self, place):
        try:
            self.client.blocking_key_value_get(place, WAIT_MS)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
            return False
        return True

    def check(self):
        if self.failure:
            raise PeerFailed(self.failure)

    def publish(self, name, text=""):
        place = f"{NOTICES}{name}/{index()}"
        sealed = b""
        if self.secret:
            sealed = wire.seal(wire.encode(text), secret=self.secret, place=place)
        self.client.key_value_set_bytes(place, sealed, allow_overwrite=True)

    def notices(self, name):
        """Returns the texts published under a name, in the order of the processes."""
        found = dict(self.client.key_value_dir_get_bytes(f"{NOTICES}{name}/"))
        places = {process: f"{NOTICES}{name}/{process}" for process in range(count())}
        texts = [
            self.notice(process, place, found[place])
            for process, place in places.items()
            if place in found
        ]
        return [text for text in texts if text is not None]

    def notice(self, process, place, sealed):
        """Returns the text of a notice; None if it is not of this run."""
        if self.secret:
            with contextlib.suppress(wire.Forged, ValueError):
                return wire.decode(wire.unseal(sealed, secret=self.secret, place=place))
        if not self.met:
            return f"Process {process} failed early on; its own output says why."
        logging.log_first_n(logging.ERROR, "A notice is not of this run. %s", 1, INTRUDER)
        return None

    def watch(self):
        published, failed_at = False, None
        while not self.closing.wait(NOTICE_SECONDS):
            try:
                if self.stop and not published and self.met:
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
