"""Commands of Paceline, each in a fork of one process, which spares them its imports.

    python commands.py '[["runtime", "ls"], ...]'

Prints a JSON list of {"status", "out", "err"}.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from importlib import import_module

from paceline import cli
from paceline.cli import runtime

NEEDED = """
doctor host library manager.bundles manager.cleanup manager.diskspace manager.installation manager.mending manager.plan
manager.plugin_packages manager.policy manager.updating plugins registry.signed registry.trust store.health survey
verdict
"""
OF_OTHERS = "filelock httpx psutil sqlite3 paceline_llama_cpp.engine"


def run(arguments):
    out, err = os.memfd_create("out"), os.memfd_create("err")
    child = os.fork()
    if not child:
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        status = 70
        try:
            sys.argv = ["paceline", *arguments]
            cli.main()
        except SystemExit as end:
            status = end.code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {"status": status, "out": _text(out), "err": _text(err)}


def _text(handle):
    os.lseek(handle, 0, os.SEEK_SET)
    with os.fdopen(handle, "rb") as file:
        return file.read().decode()


if __name__ == "__main__":
    ours = [module for module, _ in cli.COMMANDS.values()] + [f"paceline.{name}" for name in NEEDED.split()]
    for module in (*ours, *runtime.MODULES.values(), *OF_OTHERS.split()):
        import_module(module)
    print(json.dumps([run(arguments) for arguments in json.loads(sys.argv[1])]))
