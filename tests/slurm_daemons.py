"""Slurm for tests: real daemons on this machine, or programs that behave like its commands."""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

FAKE = '''#!{python}
"""sbatch, squeue and scancel: a folder a job, a process a task."""
import os, pathlib, re, signal, subprocess, sys

STATE = pathlib.Path({state!r})
name, arguments = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
options = dict(x.removeprefix("--").partition("=")[::2] for x in arguments if x.startswith("--"))
(STATE / "calls").open("a").write(repr([name, *arguments]) + "\\n")


def is_running(pid):
    try:
        return pathlib.Path(f"/proc/{{pid}}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


if (STATE / "down").exists():
    sys.exit(f"{{name}}: error: Unable to contact slurm controller (connect failure)")
if name == "sbatch":
    if options.get("partition") == "none":
        sys.exit("sbatch: error: invalid partition specified: none")
    number = sum(path.is_dir() for path in STATE.iterdir()) + 1
    job = STATE / str(number)
    job.mkdir()
    (job / "script").write_text(sys.stdin.read())
    last = int(re.fullmatch(r"0-(\\d+)(%\\d+)?", options["array"])[1])
    for task in range(last + 1):
        log = open(options["output"].replace("%A", str(number)).replace("%a", str(task)), "w")
        environment = {{**os.environ, "SLURM_ARRAY_TASK_ID": str(task)}}
        process = subprocess.Popen(
            ["bash", str(job / "script")], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )
        (job / str(task)).write_text(str(process.pid))
    print(number)
elif name == "squeue":
    job = STATE / options["jobs"]
    if not job.exists():
        sys.exit("slurm_load_jobs error: Invalid job id specified")
    for path in job.iterdir():
        if path.name.isdigit() and is_running(int(path.read_text())):
            print(f"{{job.name}}_{{path.name}}")
else:
    for path in (path for job in arguments for path in (STATE / job).iterdir() if path.name.isdigit()):
        if is_running(int(path.read_text())):
            os.killpg(int(path.read_text()), signal.SIGKILL)
'''

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0
ReturnToService=2
MinJobAge=2
KillWait=1
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def has_slurm() -> bool:
    """Say whether Slurm's daemons are installed."""
    return all(shutil.which(name, path=_path()) for name in ("munged", "slurmctld", "slurmd", "sbatch"))


def write_fake(folder: Path) -> None:
    """Write programs named sbatch, squeue and scancel; their state goes to `folder/state`."""
    (folder / "state").mkdir()
    for name in ("sbatch", "squeue", "scancel"):
        path = folder / name
        path.write_text(FAKE.format(python=sys.executable, state=str(folder / "state")))
        path.chmod(0o755)


@contextlib.contextmanager
def running_slurm(folder: Path) -> Iterator[Path]:
    """Run munged, slurmctld and slurmd with a node of four places; give the configuration for SLURM_CONF."""
    for name in ("state", "spool", "munge"):
        (folder / name).mkdir(mode=0o700)
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    ports = []
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ports.append(listener.getsockname()[1])
    config = folder / "slurm.conf"
    host = socket.gethostname().partition(".")[0]
    config.write_text(
        CONFIG.format(
            host=host, folder=folder, user=getpass.getuser(), controller_port=ports[0], node_port=ports[1]
        )
    )
    environment = {**os.environ, "SLURM_CONF": str(config), "PATH": _path()}
    munge = folder / "munge"
    commands = [
        [
            *("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"),
            *(f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed"),
        ],
        ["slurmctld", "-D", "-c"],
        ["slurmd", "-D", "-N", host],
    ]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            with (folder / f"{command[0]}.out").open("wb") as log:
                started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            _wait_until(lambda: (folder / "munge.socket").exists(), folder)
        show = ["sinfo", "--noheader", "--format=%T"]
        _wait_until(
            lambda: b"idle" in subprocess.run(show, env=environment, capture_output=True).stdout, folder
        )
        yield config
        subprocess.run(["scancel", f"--user={getpass.getuser()}"], env=environment, check=True)
        queue = ["squeue", "--noheader"]
        _wait_until(lambda: not subprocess.run(queue, env=environment, capture_output=True).stdout, folder)
    finally:
        for process in reversed(started):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def _wait_until(is_so: Callable[[], bool], folder: Path) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        if time.monotonic() > deadline:
            logs = {path.name: path.read_text(errors="replace")[-2000:] for path in folder.glob("*.log")}
            logs |= {path.name: path.read_text(errors="replace")[-2000:] for path in folder.glob("*.out")}
            raise RuntimeError(f"Slurm does not start: {logs}")
        time.sleep(0.05)
