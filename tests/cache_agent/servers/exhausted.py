"""A program for a test: takes every descriptor of this process while a public and a control listener are open.

Prints `control` and `public` for those that answer meanwhile, then `again` once the public one answers afterwards.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from aiohttp import web

from cache_agent.net.listen_addresses import Address
from cache_agent.net.sockets import listen
from cache_agent.servers.listener import serve, serve_control


def take_all() -> list[int]:
    taken: list[int] = []
    try:
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        return taken


def client(family: socket.AddressFamily) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setblocking(False)
    return made


async def answers(client: socket.socket, address: tuple[str, int] | str) -> bool:
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, address)
    await loop.sock_sendall(client, b"GET / HTTP/1.0\r\n\r\n")
    return bool(await loop.sock_recv(client, 1))


async def main(path: Path) -> None:
    app = web.Application()

    async def hello(request: web.Request) -> web.Response:
        return web.Response(text="hello")

    app.router.add_get("/", hello)
    control = web.Application()
    control.router.add_get("/", hello)
    async with AsyncExitStack() as stack:
        at = await serve(stack, app, Address("127.0.0.1", 0))
        await serve_control(stack, control, [listen(path)])
        # Made before the descriptors are taken: the clients are in this process too.
        public = client(socket.AF_INET)
        commands = [client(socket.AF_UNIX) for _ in range(3)]
        taken = take_all()
        waiting = asyncio.create_task(answers(public, (at.host, at.port)))
        for each in commands:
            if await answers(each, str(path)):
                print("control")
            # One at a time is what the reserve is for.
            each.close()
        for fd in taken:
            os.close(fd)
        if await waiting:
            print("again")
        public.close()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
    asyncio.run(main(Path(sys.argv[1])))
