"""A machine that is not there: `ssh` and `rsync` on PATH, whose hosts are folders below one folder.

They do what ours are asked to and refuse any other option, so that a new one is noticed. `break_next` makes
the next copy of a file of that name arrive with a byte changed.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

SSH = """\
import os, subprocess, sys
host, command = sys.argv[1:]
home = os.path.join(os.environ["FAKE_HOSTS"], host)
if not os.path.isdir(home):
    print("ssh: could not resolve " + host, file=sys.stderr)
    sys.exit(255)
sys.exit(subprocess.run(["sh", "-c", command], cwd=home, env={**os.environ, "HOME": home}).returncode)
"""
RSYNC = """\
import fnmatch, os, shutil, sys
options, (source, target) = sys.argv[1:-2], sys.argv[-2:]
rules, broken = [], os.path.join(os.environ["FAKE_HOSTS"], "break")
for option in options:
    name, _, value = option.partition("=")
    if name in ("--include", "--exclude"):
        rules.append((name == "--include", value))
    elif option not in ("-a", "--delete"):
        sys.exit("unknown option " + option)

def place(text):
    host, colon, path = text.partition(":")
    if not colon or "/" in host:
        return text
    home = os.path.join(os.environ["FAKE_HOSTS"], host)
    if not os.path.isdir(home):
        print("ssh: could not resolve " + host, file=sys.stderr)
        sys.exit(255)
    return os.path.join(home, path)

def kept(path, folder):
    for include, pattern in rules:
        if pattern.endswith("/") and not folder:
            continue
        plain = pattern.strip("/")
        if fnmatch.fnmatch(path if pattern.startswith("/") else os.path.basename(path), plain):
            return include
    return True

source, target = place(source), place(target)
if not os.path.isdir(source):
    sys.exit("rsync: change_dir " + source + " failed: No such file or directory (2)")
if "--delete" in options:
    shutil.rmtree(target, ignore_errors=True)
os.makedirs(target, exist_ok=True)
for root, folders, files in os.walk(source):
    at = os.path.relpath(root, source)
    inside = lambda name: os.path.normpath(os.path.join(at, name))
    folders[:] = [name for name in folders if kept(inside(name), True)]
    for name in files:
        if kept(inside(name), False):
            to = os.path.join(target, inside(name))
            os.makedirs(os.path.dirname(to), exist_ok=True)
            shutil.copy2(os.path.join(root, name), to)
            if os.path.exists(broken) and open(broken).read() == name:
                os.unlink(broken)
                with open(to, "r+b") as file:
                    byte = file.read(1)
                    file.seek(0)
                    file.write(bytes([byte[0] ^ 1]))
"""


def install(folder: Path, monkeypatch, *hosts: str) -> Path:
    """The folder whose folders are the hosts' homes; `ssh` and `rsync` are found before the system's."""
    homes, programs = folder / "hosts", folder / "programs"
    programs.mkdir(parents=True)
    for host in hosts:
        (homes / host).mkdir(parents=True)
    for name, source in (("ssh", SSH), ("rsync", RSYNC)):
        program = programs / name
        program.write_text(f"#!{sys.executable}\n{source}")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_HOSTS", str(homes))
    return homes


def break_next(homes: Path, name: str) -> None:
    (homes / "break").write_text(name)
