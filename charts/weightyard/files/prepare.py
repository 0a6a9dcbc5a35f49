"""Gives the store's directory on the node to the agent's user; kubelet makes host paths as root's.

Runs before the agent, as root with CAP_CHOWN alone. The directory itself only: what is in it is the agent's already.
"""

import os
import sys

directory, user = sys.argv[1], int(sys.argv[2])
if os.stat(directory).st_uid != user:
    os.chmod(directory, 0o755)
    os.chown(directory, user, user)
    print(f"gave {directory} to user {user}")
