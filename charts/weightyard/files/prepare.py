"""Opens to the agent's user the few directories of the node that it works in; kubelet makes host paths as root's.

    prepare.py USER own:DIRECTORY|enter:DIRECTORY|write:DIRECTORY...

`own` gives the directory away; `enter` and `write` give it the user's group, with what it may do there. Runs before the
agent, as root with CAP_CHOWN alone. What is inside is never touched.
"""

import os
import stat
import sys

RIGHTS = {"own": 0o700, "enter": 0o050, "write": 0o070}

user = int(sys.argv[1])
for argument in sys.argv[2:]:
    what, _, directory = argument.partition(":")
    found = os.stat(directory)
    owner = user if what == "own" else found.st_uid
    mode = stat.S_IMODE(found.st_mode)
    if (owner, user) != (found.st_uid, found.st_gid) or mode & RIGHTS[what] != RIGHTS[what]:
        # In this order: who isn't the owner any more may not change the mode.
        os.chmod(directory, mode | RIGHTS[what])
        os.chown(directory, owner, user)
        print(f"{what}: {directory} for user {user}")
