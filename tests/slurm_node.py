"""A SLURM of one node on this machine, for tests/test_slurm.py; also by hand:

    python tests/slurm_node.py start FOLDER [--cgroup] [--port 17017]    prints the SLURM_CONF to export
    python tests/slurm_node.py stop FOLDER

Needs root and the commands slurmctld, slurmd, munged, sbatch (Debian: slurmctld slurmd slurm-client munge).
Configuration, key, logs and process ids lie in FOLDER; /etc/slurm is left alone. The node says it has four
CPUs and two GPUs, which open no device. Partitions: main; low, whose jobs go back into the queue for those of
high.
"""
import argparse
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = ("slurmctld", "slurmd", "munged", "sbatch")
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={next_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
ProctrackType=proctrack/{proctrack}
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,requeue_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{notice}
JobRequeue={requeue}
KillWait=10
OverTimeLimit=0
MaxArraySize=9
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES PriorityTier=5 PreemptMode=off
PartitionName=low Nodes={host} PriorityTier=1 PreemptMode=requeue GraceTime=30
PartitionName=high Nodes={host} PriorityTier=9 PreemptMode=off
"""
# before 23.02 the preemption's notice is asked for in another place
NOTICE = {True: "PreemptParameters=send_user_signal", False: "SlurmctldParameters=preempt_send_user_signal"}


def path_with_sbin():
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def missing():
    """What a node needs and this machine does not have, in words; '' if it has all."""
    lacking = [command for command in COMMANDS if not shutil.which(command, path=path_with_sbin())]
    return "root" if os.geteuid() else ", ".join(lacking)


def call(*command, **more):
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60,
                          stdin=subprocess.DEVNULL, **more)


def until(seconds, what, condition):
    """Wait for a condition. RuntimeError after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what}: not after {seconds} s")
        time.sleep(0.1)


def start(folder, proctrack="linuxproc", requeue=1, notice=True, port=17017):
    """Start a node; returns the environment in which sbatch and the others talk to it. requeue: JobRequeue;
    notice: whether a job that makes way is sent its --signal, or SIGTERM. RuntimeError where it does not come
    up."""
    folder.mkdir(parents=True)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host = socket.gethostname().split(".")[0]
    environment = {**os.environ, "PATH": path_with_sbin(), "SLURM_CONF": str(folder / "slurm.conf")}
    version = tuple(map(int, call("slurmctld", "-V", env=environment).stdout.split()[-1].split(".")[:2]))
    (folder / "slurm.conf").write_text(CONFIG.format(
        folder=folder, host=host, port=port, next_port=port + 1, proctrack=proctrack, requeue=requeue,
        notice=NOTICE[version >= (23, 2)] if notice else ""))
    for number in (0, 1):  # SLURM counts a GPU by its device file
        call("mknod", folder / f"gpu{number}", "c", 1, 3)
    (folder / "gres.conf").write_text(f"NodeName={host} Name=gpu File={folder}/gpu[0-1]\n")
    if proctrack == "cgroup":
        (folder / "cgroup.conf").write_text("CgroupPlugin=autodetect\nCgroupAutomount=yes\n")
    elif version >= (23, 11):
        (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(64))
    for command in (
            ("munged", "--force", f"--socket={folder}/munge.socket", f"--key-file={key}",
             f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munge.seed",
             f"--log-file={folder}/munged.log"),
            ("slurmctld",), ("slurmd", "-N", host)):
        done = call(*command, env=environment)
        if done.returncode:
            raise RuntimeError(f"{command[0]}: {done.stderr.strip()}; its log is in {folder}")
    until(30, f"the node is idle, logs in {folder}",
          lambda: call("sinfo", "-h", "-p", "main", "-o", "%T", env=environment).stdout.strip() == "idle")
    return environment


def stop(folder):
    """End what start() began, and the jobs that it runs."""
    environment = {**os.environ, "PATH": path_with_sbin(), "SLURM_CONF": str(folder / "slurm.conf")}
    call("scancel", "--me", env=environment)
    try:
        until(30, "no job is left", lambda: not call("squeue", "-h", env=environment).stdout.strip())
    finally:
        for name in ("slurmd", "slurmctld", "munged"):
            path = folder / f"{name}.pid"
            if path.is_file():
                call("kill", path.read_text().strip())
                until(20, f"{name} has ended", lambda name=name, path=path: not is_alive(name, path))


def is_alive(name, path):
    """Whether the process whose id is in the file is there, and is that daemon."""
    try:
        text = (Path("/proc") / path.read_text().strip() / "status").read_text()
    except OSError:  # it is just ending
        return False
    return f"Name:\t{name}" in text and "State:\tZ" not in text


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("start", "stop"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cgroup", action="store_true")
    parser.add_argument("--port", type=int, default=17017)
    args = parser.parse_args()
    if missing():
        sys.exit(f"error: a SLURM of one node needs {missing()}")
    if args.what == "stop":
        return stop(args.folder.resolve())
    environment = start(args.folder.resolve(), "cgroup" if args.cgroup else "linuxproc", port=args.port)
    print(f"export SLURM_CONF={environment['SLURM_CONF']}")


if __name__ == "__main__":
    main()
