"""The versions of bench.compare: an earlier commit, built in a git worktree under build/, and this working tree."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Process:
    """A worker in a process of its own. library: the folder with the package; by default the installed one."""

    def __init__(self, library: Path | None = None, command: tuple[str, ...] = ("-m", "bench.compare.worker")) -> None:
        paths = [str(library)] if library else []
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, str(ROOT)])}
        pipe = subprocess.PIPE
        self.child = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True
        )

    def time(self, case: str) -> float:
        assert self.child.stdin and self.child.stdout
        self.child.stdin.write(case + "\n")
        self.child.stdin.flush()
        answer = self.child.stdout.readline()
        if not answer:
            raise RuntimeError(f"{case}: expected a time, but the process ended with status {self.child.wait()}")
        return float(answer)

    def close(self) -> None:
        """Closes the pipe, which ends the process."""
        self.child.communicate()


def resolve(commit: str) -> str:
    """The full name of a commit. Raises ValueError if git does not know it."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"BASE: expected a commit or a results file, got {commit!r}")
    return done.stdout.strip()


def built(commit: str) -> Path:
    """The folder with the package of a commit, built from a git worktree unless it is there already."""
    tree = ROOT / "build" / f"base-{commit[:12]}"
    library, complete = tree / "build" / "lib", tree / "build" / "complete"
    if complete.exists():
        return library
    git = ("git", "-C", str(ROOT))
    if not (tree / "setup.py").exists():
        subprocess.run([*git, "worktree", "add", "--force", "--detach", str(tree), commit], check=True)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # ninja is there
    command = [sys.executable, "setup.py", "--quiet", "build", "--build-lib", str(library)]
    log = ROOT / "build" / f"base-{commit[:12]}.log"
    print(f"building {commit[:12]}, for minutes: {log.relative_to(ROOT)}", flush=True)
    with log.open("w") as file:
        subprocess.run(command, cwd=tree, env={**os.environ, "PATH": path}, check=True, stdout=file, stderr=file)
    complete.touch()
    return library
