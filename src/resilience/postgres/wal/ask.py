"""Asks whoever serves a spool for a file, or whether one is archived. Run by PostgreSQL's shell, so it must start fast.

    python -I -S ask.py FOLDER SECONDS fetch NAME DESTINATION [COMMAND …]
    python -I -S ask.py FOLDER SECONDS push PATH [COMMAND …]

It sends the line `fetch NAME`, or `push` and the full path, to the socket in FOLDER and gets one line back: a status,
and perhaps a sentence for PostgreSQL's log. Status 0 of a fetch means that FOLDER/NAME is there, or that the sentence
is the name of the file instead; it is renamed to DESTINATION. Without an answer within SECONDS it becomes COMMAND, if
there is one.

Statuses: 0 done, 100 proven not to be there, 130 it cannot be told; of a push, 1 that it failed. 100 and not 1, because
an interpreter that cannot even start ends with 1, and PostgreSQL would end recovery; the shell that fetches makes 1 of
100 and of nothing else.
"""

# Nothing but built-in modules: `socket` alone costs as much as the interpreter's own start.
import _socket
import os
import sys

ABSENT, UNKNOWN = 100, 130
UNTOLD = -1
SOCKET = "ask"
ANSWER_AT_MOST = 4096


def ask(folder: str, seconds: float, request: str) -> str:
    """Return the answer to one request; empty if the peer went away. Raises OSError."""
    # The path of a socket may have 107 bytes only; this one is short, however long the folder's is (unix(7), proc(5)).
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    connection.settimeout(seconds)
    connection.connect(f"/proc/self/fd/{handle}/{SOCKET}")
    connection.sendall(os.fsencode(request + "\n"))
    answer = b""
    while not answer.endswith(b"\n") and len(answer) < ANSWER_AT_MOST:
        received = connection.recv(ANSWER_AT_MOST)
        if not received:
            return ""
        answer += received
    return answer.decode(errors="replace").strip()


def main(folder: str, seconds: str, verb: str, name: str, *rest: str) -> int:
    """Do what the arguments say and return the exit status."""
    if verb == "fetch":
        destination, *command = rest
    else:
        name, command = f"{os.getcwd()}/{name}" if not name.startswith("/") else name, [*rest]  # noqa: PTH109
    try:
        status, _, text = ask(folder, float(seconds), f"{verb} {name}").partition(" ")
        if status == "0" and verb == "fetch":
            os.rename(f"{folder}/{text or name}", destination)  # noqa: PTH104
            text = ""
        known, why = int(status or UNTOLD), text
    except OSError as error:
        known, why = UNTOLD, f"{error}"
    if known == UNTOLD and command:
        os.execv(command[0], command)  # noqa: S606
    if known != 0 and known != ABSENT:
        sys.stderr.write(f"resilience: {verb} {name}: {why or 'nobody answered'}\n")
    return UNKNOWN if known == UNTOLD else known


if __name__ == "__main__":
    try:
        ended = main(*sys.argv[1:])
    except BaseException as error:  # noqa: BLE001
        sys.stderr.write(f"resilience: {error!r}\n")
        ended = UNKNOWN
    sys.stderr.flush()
    os._exit(ended)
