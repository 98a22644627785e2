"""Find tasks by name: in `eval/tasks`, or among lm-eval's own.

lm-eval would index all of its 14,000 task files, which takes 15 s of every process. Here only those
of its directories are indexed in which a file has a name that is asked for, or that of a member.
"""

import re
from collections.abc import Iterable, Iterator, Set
from os.path import normpath
from pathlib import Path

import lm_eval.tasks
from lm_eval.tasks import TaskManager

TASKS_DIR = "eval/tasks"
INCLUDE = re.compile(rb"^\s*[\"']?include[\"']?\s*:\s*[\"']?([^\s\"']+)", re.MULTILINE)
NO_SETTINGS = (".md", ".py", ".pyc")
OWN_OF_LM_EVAL = Path(lm_eval.tasks.__file__).parent


def task_manager(root: Path, names: Set[str]) -> TaskManager:
    """Index `eval/tasks` of a workspace and what the tasks, groups and tags `names` need.

    A task of the workspace goes before one of lm-eval's. Names that nothing defines are not there.
    """
    manager = _manager(root, ())
    searched: Set[str] = frozenset()
    directories: Set[Path] = frozenset()
    while missing := _undefined(manager, names) - searched:
        searched |= missing
        directories |= _directories_of(missing)
        manager = _manager(root, sorted(directories))
    return manager


def _manager(root: Path, directories: Iterable[Path]) -> TaskManager:
    paths = [str(path) for path in (*directories, root / TASKS_DIR)]
    return TaskManager(include_path=paths, include_defaults=False)


def _undefined(manager: TaskManager, names: Set[str]) -> Set[str]:
    """List the names, and those of their members, that the index does not have."""
    undefined, seen, left = set(), set(), set(names)
    while left:
        name = left.pop()
        seen.add(name)
        if entry := manager.task_index.get(name):
            left |= set(_members((entry.cfg or {}).get("task"))) - seen
        else:
            undefined.add(name)
    return undefined


def _members(task: object) -> Iterator[str]:
    """Yield the names in the `task` of a group: a list of names or of settings with a name."""
    for member in task if isinstance(task, list) else ():
        name = member.get("task") if isinstance(member, dict) else member
        if isinstance(name, str):
            yield name
        yield from _members(name)


def _directories_of(names: Set[str]) -> Set[Path]:
    """Find the directories of lm-eval in which a file has a name, or includes one that has.

    Settings that files share, such as tags, are in files with any suffix or none.
    """
    either = "|".join(re.escape(name) for name in sorted(names))
    named = re.compile(rf"(?<![\w-])({either})(?![\w-])".encode())
    found, included = set(), {}
    for path in OWN_OF_LM_EVAL.rglob("*"):
        if path.suffix in NO_SETTINGS or not path.is_file():
            continue
        text = path.read_bytes()
        if named.search(text):
            found.add(path)
        elif include := INCLUDE.search(text):
            included[path] = Path(normpath(path.parent / include[1].decode()))
    while more := {path for path, other in included.items() if other in found}:
        found |= more
        included = {path: other for path, other in included.items() if path not in more}
    return {OWN_OF_LM_EVAL / path.relative_to(OWN_OF_LM_EVAL).parts[0] for path in found}
