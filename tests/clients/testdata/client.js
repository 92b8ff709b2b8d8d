// SPDX-License-Identifier: Apache-2.0
// client.js PROTOCOL/ADDRESS:PORT...: asks each again and again, without a timeout; connects anew after an error.
const dgram = require('node:dgram');
const net = require('node:net');

function ask(target, send, socket, lines) {
  lines(line => {
    const { address, port } = socket.remoteAddress instanceof Function ? socket.remoteAddress()
      : { address: socket.remoteAddress, port: socket.remotePort };
    const local = socket.localPort ?? socket.address().port;
    console.log(`${target} answer ${line.trim()} ${local} ${address}:${port}`);
    setTimeout(send, 50);
  });
  socket.on('error', err => {
    console.log(`${target} error ${err.code}`);
    socket instanceof net.Socket ? socket.destroy() : socket.close();
    setTimeout(() => start(target), 50);
  });
}

function start(target) {
  const [, protocol, address, port] = target.match(/(.*)\/(.*):(.*)/);
  if (protocol === 'udp') {
    const socket = dgram.createSocket('udp4');
    const send = () => socket.send('hello\n');
    ask(target, send, socket, f => socket.on('message', msg => f(msg.toString())));
    socket.connect(Number(port), address, send);
  } else {
    const socket = net.connect(Number(port), address, () => send());
    const send = () => socket.write('hello\n');
    ask(target, send, socket, f => socket.on('data', data => f(data.toString())));
  }
}

process.argv.slice(2).forEach(start);
