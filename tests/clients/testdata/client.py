# SPDX-License-Identifier: Apache-2.0
"""client.py PROTOCOL/ADDRESS:PORT...: asks each again and again, without a timeout; connects anew after an error."""
import asyncio
import errno
import sys


def say(target, transport, answer):
    peer = transport.get_extra_info("socket").getpeername()
    local = transport.get_extra_info("sockname")[1]
    print(target, "answer", answer.decode().strip(), local, "%s:%d" % peer[:2], flush=True)


class Datagrams(asyncio.DatagramProtocol):
    def __init__(self):
        self.received = asyncio.Queue()

    def datagram_received(self, data, addr):
        self.received.put_nowait(data)

    def error_received(self, exc):
        self.received.put_nowait(exc)


async def ask_datagrams(target, address, port):
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(Datagrams, remote_addr=(address, port))
    try:
        while True:
            transport.sendto(b"hello\n")
            got = await protocol.received.get()
            if isinstance(got, OSError):
                raise got
            say(target, transport, got)
            await asyncio.sleep(0.05)
    finally:
        transport.close()


async def ask_stream(target, address, port):
    reader, writer = await asyncio.open_connection(address, port)
    try:
        while True:
            writer.write(b"hello\n")
            say(target, writer, await reader.readuntil(b"\n"))
            await asyncio.sleep(0.05)
    finally:
        writer.close()


async def run(target):
    protocol, _, rest = target.partition("/")
    address, _, port = rest.rpartition(":")
    ask = ask_datagrams if protocol == "udp" else ask_stream
    while True:
        try:
            await ask(target, address, int(port))
        except OSError as err:
            print(target, "error", errno.errorcode.get(err.errno, err.errno), flush=True)
        except asyncio.IncompleteReadError:
            print(target, "error EOF", flush=True)
        await asyncio.sleep(0.05)


async def main():
    await asyncio.gather(*(run(target) for target in sys.argv[1:]))


asyncio.run(main())
